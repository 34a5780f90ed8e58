/* The thread-local error record. Knows nothing about Python or about who reads the record. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local ErrorRecord record = {.rank = -1, .offset = -1, .sample = -1};

const ErrorRecord *error_record(void) { return &record; }

static void record_start(Status code, int errno_value, const char *format, va_list arguments) {
    record = (ErrorRecord){.code = code, .errno_value = errno_value, .rank = -1, .offset = -1, .sample = -1};
    vsnprintf(record.message, sizeof record.message, format, arguments);
}

Status error_fail(Status code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record_start(code, 0, format, arguments);
    va_end(arguments);
    return code;
}

Status error_fail_errno(Status code, int errno_value, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record_start(code, errno_value, format, arguments);
    va_end(arguments);
    char text[128];
    size_t used = strlen(record.message);
    snprintf(record.message + used, sizeof record.message - used, ": %s", strerror_r(errno_value, text, sizeof text));
    return code;
}

static void set_text(char *to, size_t size, const char *from) {
    if (to[0] == '\0') snprintf(to, size, "%s", from);
}

Status error_at_path(Status code, const char *path) {
    if (code != STATUS_OK) set_text(record.path, sizeof record.path, path);
    return code;
}

Status error_at_field(Status code, const char *field) {
    if (code != STATUS_OK) set_text(record.field, sizeof record.field, field);
    return code;
}

Status error_at_operation(Status code, const char *operation) {
    if (code != STATUS_OK) set_text(record.operation, sizeof record.operation, operation);
    return code;
}

Status error_at_offset(Status code, int64_t offset) {
    if (code != STATUS_OK && record.offset < 0) record.offset = offset;
    return code;
}

Status error_at_sample(Status code, int64_t sample) {
    if (code != STATUS_OK && record.sample < 0) record.sample = sample;
    return code;
}

Status error_at_rank(Status code, int rank) {
    if (code != STATUS_OK && record.rank < 0) record.rank = rank;
    return code;
}

Status error_advise(Status code, const char *remedy) {
    size_t used = strlen(record.message);
    if (code != STATUS_OK) snprintf(record.message + used, sizeof record.message - used, "%s", remedy);
    return code;
}

Status error_adopt(const ErrorRecord *other) {
    record = *other;
    return record.code;
}
