/* Status codes, the thread's error record, and the macros that propagate failures.
 *
 * A fallible function returns Status, gives its results through pointers and writes nothing on failure. The first
 * failure fills the calling thread's record; callers only pass the code on, and may add what they know (path, sample,
 * field, rank) where it is still unset. */
#ifndef CGXFFCV_BASE_STATUS_H
#define CGXFFCV_BASE_STATUS_H

#include <errno.h>
#include <stdint.h>

/* Stable numbers, grouped with gaps. */
typedef enum Status {
    STATUS_OK = 0,
    STATUS_ARGUMENT = 1,     /* ValueError */
    STATUS_TYPE = 2,         /* TypeError */
    STATUS_INDEX = 3,        /* IndexError */
    STATUS_FORMAT = 20,      /* BetonError */
    STATUS_IO = 40,          /* OSError, with errno and file name */
    STATUS_MEMORY = 60,      /* MemoryError */
    STATUS_CUDA = 80,        /* CudaError */
    STATUS_LIBRARY = 100,    /* RuntimeError: cuDNN, oneDNN, libjpeg-turbo */
    STATUS_TRANSPORT = 120,  /* CommError */
    STATUS_TIMEOUT = 140,    /* CommTimeout */
    STATUS_PEER_LOST = 141,  /* PeerLost */
    STATUS_NOT_BUILT = 160,  /* NotBuiltError */
    STATUS_INTERRUPTED = 180 /* a Python signal handler has raised */
} Status;

#define STATUS_MESSAGE_BYTES 768
#define STATUS_PATH_BYTES 512
#define STATUS_NAME_BYTES 32

/* What is known about a failure; -1 or "" where nothing is. */
typedef struct ErrorRecord {
    Status code;
    int errno_value; /* 0 if no system call failed */
    int rank;        /* the peer concerned */
    int64_t offset;  /* byte offset in the file */
    int64_t sample;
    char message[STATUS_MESSAGE_BYTES];
    char path[STATUS_PATH_BYTES];
    char field[STATUS_NAME_BYTES];
    char operation[STATUS_NAME_BYTES];
} ErrorRecord;

/* The calling thread's record: valid until its next failure. */
const ErrorRecord *error_record(void);

/* Starts a fresh record with a printf-style message and returns `code`. */
Status error_fail(Status code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* Like error_fail, also storing errno's value and appending its text to the message. */
Status error_fail_errno(Status code, int errno_value, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

/* Add to the record what the failing function did not know; a value already set is kept. Return `code`. */
Status error_at_path(Status code, const char *path);
Status error_at_offset(Status code, int64_t offset);
Status error_at_sample(Status code, int64_t sample);
Status error_at_field(Status code, const char *field);
Status error_at_rank(Status code, int rank);
Status error_at_operation(Status code, const char *operation);

/* Appends to the message what to do; returns `code`. */
Status error_advise(Status code, const char *remedy);

/* Makes another thread's record the calling thread's (worker to consumer); returns its code. */
Status error_adopt(const ErrorRecord *record);

/* Returns at once with a printf-style failure; only before the first acquisition. */
#define FAIL(code, ...) return error_fail(code, __VA_ARGS__)
#define FAIL_ERRNO(...) return error_fail_errno(STATUS_IO, errno, __VA_ARGS__)

/* Returns a failure to the caller at once; only before the first acquisition. */
#define TRY(expression)                                                                                                \
    do {                                                                                                               \
        Status try_status_ = (expression);                                                                             \
        if (try_status_ != STATUS_OK) return try_status_;                                                              \
    } while (0)

/* The same for functions that own something: they declare `Status status` and end in `done:`. */
#define TRY_GOTO(expression)                                                                                           \
    do {                                                                                                               \
        status = (expression);                                                                                         \
        if (status != STATUS_OK) goto done;                                                                            \
    } while (0)

#define FAIL_GOTO(code, ...)                                                                                           \
    do {                                                                                                               \
        status = error_fail(code, __VA_ARGS__);                                                                        \
        goto done;                                                                                                     \
    } while (0)

#define FAIL_ERRNO_GOTO(...)                                                                                           \
    do {                                                                                                               \
        status = error_fail_errno(STATUS_IO, errno, __VA_ARGS__);                                                      \
        goto done;                                                                                                     \
    } while (0)

/* A pthread call: its result is the error number. */
#define TRY_PTHREAD(call)                                                                                              \
    do {                                                                                                               \
        int try_pthread_ = (call);                                                                                     \
        if (try_pthread_ != 0) return error_fail_errno(STATUS_IO, try_pthread_, "%s", #call);                          \
    } while (0)

/* Repeats a system call that a signal interrupted; stores the call's result. */
#define RETRY_EINTR(result, call)                                                                                      \
    do {                                                                                                               \
        (result) = (call);                                                                                             \
    } while ((result) == -1 && errno == EINTR)

#endif
