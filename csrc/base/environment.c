#include "base/environment.h"

#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* NULL if unset or empty. */
static const char *text_of(const char *name) {
    const char *text = getenv(name);
    return text == NULL || *text == '\0' ? NULL : text;
}

Status environment_whole(const char *name, const char *unit, int64_t least, int64_t most, int64_t *value) {
    const char *text = text_of(name);
    char *end = NULL;
    if (text == NULL) return STATUS_OK;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || number < least || number > most) {
        FAIL(STATUS_ARGUMENT, "%s='%.40s': a whole number of %s from %lld to %lld is expected", name, text, unit,
             (long long)least, (long long)most);
    }
    *value = number;
    return STATUS_OK;
}

/* Like strtod in the C locale; *end == text if that locale is unavailable. */
static double plain_strtod(const char *text, char **end) {
    locale_t plain = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
    *end = (char *)text;
    if (plain == (locale_t)0) return 0;
    double number = strtod_l(text, end, plain);
    freelocale(plain);
    return number;
}

Status environment_seconds(const char *name, double most, double *value) {
    const char *text = text_of(name);
    char *end = NULL;
    if (text == NULL) return STATUS_OK;
    double seconds = plain_strtod(text, &end);
    if (end == text || *end != '\0' || !(seconds > 0 && seconds <= most)) {
        FAIL(STATUS_ARGUMENT, "%s='%.40s': seconds above 0, up to %g, are expected", name, text, most);
    }
    *value = seconds;
    return STATUS_OK;
}

Status environment_switch(const char *name, bool *value) {
    const char *text = text_of(name);
    if (text == NULL) return STATUS_OK;
    if (strcmp(text, "0") != 0 && strcmp(text, "1") != 0) {
        FAIL(STATUS_ARGUMENT, "%s='%.40s': 0 or 1 is expected", name, text);
    }
    *value = text[0] == '1';
    return STATUS_OK;
}

/* The position among `words` of the text's first word, whose length is given; -1 if it is not one of them. */
static int find_word(const char *text, size_t length, const char *const *words) {
    for (int i = 0; words[i] != NULL; i++) {
        if (strlen(words[i]) == length && memcmp(words[i], text, length) == 0) return i;
    }
    return -1;
}

static Status refuse_words(const char *name, const char *text, const char *const *words) {
    char known[128] = "";
    for (int i = 0; words[i] != NULL; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i == 0 ? "" : ",", words[i]);
    }
    FAIL(STATUS_ARGUMENT, "%s='%.40s': %s%s is expected", name, text, words[1] == NULL ? "" : "one or more of ", known);
}

Status environment_words(const char *name, const char *const *words, uint32_t *value) {
    const char *text = text_of(name);
    uint32_t found = 0;
    if (text == NULL) return STATUS_OK;
    for (const char *at = text;; at++) {
        size_t length = strcspn(at, ",");
        int word = find_word(at, length, words);
        if (word < 0) return refuse_words(name, text, words);
        found |= UINT32_C(1) << word;
        at += length;
        if (*at == '\0') break;
    }
    *value = found;
    return STATUS_OK;
}
