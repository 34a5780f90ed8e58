/* What the ranks compare when each call may ask for something else: texts, before a plan is made or looked up. */
#include <string.h>

#include "allreduce/allreduce.h"
#include "base/hash.h"
#include "base/memory.h"

#define CALL_MAGIC 0x4C4C4143u /* "CALL" */
#define CALL_TEXT_MAX ((uint64_t)1 << 26)
#define CALL_SHOWN 200 /* bytes of an item in a message */

/* No padding: it is sent. */
typedef struct CallMark {
    uint64_t magic, hash, bytes, number, made;
} CallMark;

/* The item that begins at `at`: up to the next "; ". */
static int item_length(const char *text, size_t at) {
    const char *end = strstr(text + at, "; ");
    size_t length = end == NULL ? strlen(text + at) : (size_t)(end - (text + at));
    return length < CALL_SHOWN ? (int)length : CALL_SHOWN;
}

/* Where the first item that differs begins. */
static size_t differing_item(const char *a, const char *b) {
    size_t begin = 0;
    for (size_t i = 0; a[i] != '\0' && a[i] == b[i]; i++) {
        if (a[i] == ' ' && i > 0 && a[i - 1] == ';') begin = i + 1;
    }
    return begin;
}

static Status fail_calls(const Comm *comm, const char *mine, const char *texts, size_t room) {
    int me = comm_rank(comm), other = 0;
    while (strcmp(texts + (size_t)other * room, mine) == 0) other++;
    const char *theirs = texts + (size_t)other * room;
    size_t at = differing_item(mine, theirs);
    const char *none = "nothing more";
    bool ends[2] = {mine[at] == '\0', theirs[at] == '\0'};
    return error_at_rank(error_fail(STATUS_TRANSPORT, "the ranks disagree: rank %d expected %.*s; rank %d has %.*s", me,
                                    ends[0] ? (int)strlen(none) : item_length(mine, at), ends[0] ? none : mine + at,
                                    other, ends[1] ? (int)strlen(none) : item_length(theirs, at),
                                    ends[1] ? none : theirs + at),
                         other);
}

/* Everyone shows the others what it was asked for. */
static Status exchange_calls(Comm *comm, const char *text, const CallMark *marks) {
    Status status = STATUS_OK;
    char *mine = NULL, *texts = NULL;
    uint64_t most = 0;
    int size = comm_size(comm), rank = comm_rank(comm);
    for (int r = 0; r < size; r++) {
        if (marks[r].magic != CALL_MAGIC || marks[r].bytes > CALL_TEXT_MAX) {
            return error_at_rank(error_fail(STATUS_TRANSPORT, "rank %d is in another operation", r), r);
        }
        if (marks[r].bytes > most) most = marks[r].bytes;
    }
    size_t room = (size_t)most + 1;
    TRY(memory_calloc(room, 1, &mine));
    memcpy(mine, text, (size_t)marks[rank].bytes);
    TRY_GOTO(memory_calloc((size_t)size, room, &texts));
    TRY_GOTO(comm_allgather(comm, mine, room, texts));
    for (int r = 0; r < size; r++) texts[(size_t)(r + 1) * room - 1] = '\0';
    status = fail_calls(comm, mine, texts, room);
done:
    memory_free(texts);
    memory_free(mine);
    return status;
}

static Status compare(Comm *comm, const char *text, CallMark mine, CallMark *marks, AllreduceCall *call) {
    bool same_text = true, same_number = true;
    TRY(comm_allgather(comm, &mine, sizeof mine, marks));
    call->made = mine.made;
    for (int r = 0; r < comm_size(comm); r++) {
        same_text = same_text && marks[r].magic == CALL_MAGIC && marks[r].hash == mine.hash;
        same_number = same_number && marks[r].number == mine.number;
        if (marks[r].made > call->made) call->made = marks[r].made;
    }
    call->same = same_number;
    return same_text ? STATUS_OK : exchange_calls(comm, text, marks);
}

Status allreduce_compare_calls(Comm *comm, const char *text, double timeout_s, AllreduceCall *call) {
    Status status = STATUS_OK;
    CallMark *marks = NULL;
    size_t bytes = strlen(text);
    CallMark mine = {CALL_MAGIC, hash_bytes(text, bytes, 0), bytes, call->number, call->made};
    if (bytes > CALL_TEXT_MAX)
        FAIL(STATUS_ARGUMENT, "an allreduce of too many arrays: the text that describes them is too long");
    TRY(memory_calloc((size_t)comm_size(comm), sizeof *marks, &marks));
    TRY_GOTO(comm_begin(comm, "allreduce", timeout_s));
    status = comm_end(comm, compare(comm, text, mine, marks, call));
done:
    memory_free(marks);
    return status;
}
