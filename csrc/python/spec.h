/* Fills C structs from dicts: one way for everything that has more members than a pair or a triple. A table lists the
 * keys and, for each, the member that it fills and its range. Missing and unknown keys and values that do not fit are
 * refused with a message that names the key, what it must be and what was found. */
#ifndef CGXFFCV_PYTHON_SPEC_H
#define CGXFFCV_PYTHON_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/names.h"
#include "python/module.h"

typedef enum SpecType {
    SPEC_BOOL, /* the truth of any object */
    SPEC_INT,
    SPEC_U32,
    SPEC_I64,
    SPEC_U64,
    SPEC_FLOAT,
    SPEC_DOUBLE,
    SPEC_CHARS,  /* char[], copied */
    SPEC_TEXT,   /* const char *, borrowed from `keep`; NULL for None */
    SPEC_NAME,   /* an enum, by name */
    SPEC_PARSED, /* what `parse` fills */
} SpecType;

typedef struct SpecMember {
    const char *key;
    SpecType type;
    size_t offset, bytes;
    int64_t least; /* of a whole number */
    uint64_t most; /* both 0: what the member can hold */
    NamesOf names;
    int (*parse)(PyObject *value, void *member); /* 0, or -1 with an exception set */
} SpecMember;

#define SPEC_MAX_MEMBERS 32

/* Ends with a member without a key. */
typedef struct SpecTable {
    const char *what; /* such as "an optimizer group"; messages begin with it and the dict's own "name", if any */
    SpecMember members[SPEC_MAX_MEMBERS];
} SpecTable;

#define SPEC_PLACE(type, member) .offset = offsetof(type, member), .bytes = sizeof(((type *)0)->member)
#define SPEC_TYPE_OF(type, member)                                                                                     \
    _Generic(((type *)0)->member,                                                                                      \
        bool: SPEC_BOOL,                                                                                               \
        int: SPEC_INT,                                                                                                 \
        uint32_t: SPEC_U32,                                                                                            \
        int64_t: SPEC_I64,                                                                                             \
        uint64_t: SPEC_U64,                                                                                            \
        float: SPEC_FLOAT,                                                                                             \
        double: SPEC_DOUBLE,                                                                                           \
        char *: SPEC_CHARS,                                                                                            \
        const char *: SPEC_TEXT)

/* A member filled by a key of the same name, or of another one; a whole number within a range. */
#define SPEC_KEY(type, member, text)                                                                                   \
    { text, SPEC_TYPE_OF(type, member), SPEC_PLACE(type, member) }
#define SPEC_MEMBER(type, member) SPEC_KEY(type, member, #member)
#define SPEC_RANGE(type, member, low, high)                                                                            \
    { #member, SPEC_TYPE_OF(type, member), SPEC_PLACE(type, member), .least = (low), .most = (high) }
/* An enum by its names; a member filled by a function. */
#define SPEC_ENUM_KEY(type, member, text, list)                                                                        \
    { text, SPEC_NAME, SPEC_PLACE(type, member), .names = (list) }
#define SPEC_ENUM(type, member, list) SPEC_ENUM_KEY(type, member, #member, list)
#define SPEC_PARSE_KEY(type, member, text, function)                                                                   \
    { text, SPEC_PARSED, SPEC_PLACE(type, member), .parse = (function) }
#define SPEC_PARSE(type, member, function) SPEC_PARSE_KEY(type, member, #member, function)
/* Fills several members: `function` gets the struct. */
#define SPEC_WHOLE(text, function)                                                                                     \
    { text, SPEC_PARSED, .parse = (function) }

/* Fills the members of *out that the table names; 0, or -1 with an exception set and *out partly filled. `dict` may be
 * NULL, as for no keyword arguments. Texts are borrowed from `keep`, a list that holds them from now on; without texts
 * it may be NULL. */
int py_spec_fill(const SpecTable *table, PyObject *dict, PyObject *keep, void *out);

/* The number of the name that `dict` has under `key`, which decides what other keys it has; -1 with an exception. */
int py_spec_kind(PyObject *dict, const char *what, const char *key, NamesOf names);

/* The number of a name, or -1 with an exception that lists all of them. */
int py_spec_name(PyObject *value, const char *argument, NamesOf names);

#endif
