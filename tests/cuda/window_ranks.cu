// rooms: base comm device, with cuda
/* Windows between ranks (test_window.py): `window_ranks CASE KIND RANKS [NAME=VALUE@RANK ...]` starts that many
 * processes, the named ones with more in their environment; each says how the case went, in a line. */
#include "comm/window.cuh"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RANKS_MAX = 8, WINDOW_BYTES = 3 << 20, PART = 4000, PARTS = 20, WORDS = PART * PARTS };
enum { SLOT_BYTES = 8192 }; /* a part takes two */

static const CommWindowSizes sizes = {WINDOW_BYTES, WINDOW_BYTES, RANKS_MAX *PARTS};

typedef struct Case {
    const char *name;
    CommWindowKind kind;
    int ranks;
} Case;

typedef struct Fixture {
    Comm *comm;
    CommWindow *window;
    DeviceStream *stream;
    int rank, ranks;
} Fixture;

/* A block writes one part of the words. */
static __global__ void send_kernel(uint8_t *base, uint64_t at, uint64_t flag_at, int from, int rank,
                                   CommWindowSendQueue send_queue) {
    uint32_t first = blockIdx.x * PART, *to = (uint32_t *)(base + at);
    for (uint32_t i = first + threadIdx.x; i < first + PART; i += blockDim.x) {
        to[i] = (uint32_t)(1000000 * from + 1000 * rank) + i;
    }
    __syncthreads();
    uint32_t *flag = (uint32_t *)(base + flag_at) + blockIdx.x;
    if (threadIdx.x == 0) window_raise(send_queue, flag, 7, to + first, PART * sizeof(uint32_t));
}

static __global__ void wait_kernel(const uint32_t *flag, int rank, CommWindowStatus *status_words, double timeout_s) {
    bool here = window_await(flag + threadIdx.x, 7, status_words, (uint64_t)(timeout_s * 1e9));
    if (__syncthreads_and(here) == 0 && threadIdx.x == 0) window_report(status_words, COMM_WINDOW_TERMS, rank, 3, 4);
}

/* Where the words that `from` writes into a window begin, and their flags, one for each part. */
static uint64_t words_at(int from) { return (uint64_t)from * WORDS * sizeof(uint32_t); }
static uint64_t flags_at(const Fixture *f, int from) {
    return words_at(f->ranks) + (uint64_t)from * PARTS * sizeof(uint32_t);
}

/* Where what goes to a rank is written, and where what has come from one lies; NULL where this rank has no window, for
 * itself. */
static uint8_t *base_to(const Fixture *f, int rank) {
    void *buffer = comm_window_send_buffer(f->window, rank);
    return (uint8_t *)(buffer == NULL ? comm_window_base(f->window, rank) : buffer);
}
static uint8_t *base_from(const Fixture *f, int rank) {
    void *buffer = comm_window_receive_buffer(f->window, rank);
    return (uint8_t *)(buffer == NULL ? comm_window_base(f->window, f->rank) : buffer);
}

static Status put_wait(const Fixture *f, int rank, double timeout_s) {
    const uint32_t *flags = (const uint32_t *)(base_from(f, rank) + flags_at(f, rank));
    return LAUNCH(wait_kernel, 1, PARTS, 0, f->stream, flags, rank, comm_window_status_words(f->window), timeout_s);
}

static Status put_send(const Fixture *f, int rank) {
    return LAUNCH(send_kernel, PARTS, 64, 0, f->stream, base_to(f, rank), words_at(f->rank), flags_at(f, f->rank),
                  f->rank, rank, comm_window_send_queue(f->window));
}

static Status check_zeros(const Fixture *f) {
    unsigned char *host = (unsigned char *)malloc(WINDOW_BYTES);
    for (int rank = 0; rank < f->ranks; rank++) {
        if (base_to(f, rank) == NULL) continue;
        memset(host, 1, WINDOW_BYTES);
        TRY(device_copy(host, base_to(f, rank), WINDOW_BYTES, f->stream));
        TRY(comm_window_wait(f->window, f->stream, NULL));
        for (size_t i = 0; i < WINDOW_BYTES; i++) {
            if (host[i] != 0) FAIL(STATUS_CUDA, "byte %zu of rank %d is %d", i, rank, host[i]);
        }
    }
    free(host);
    return comm_barrier(f->comm);
}

static Status check_words(const Fixture *f, int from) {
    static uint32_t host[WORDS];
    TRY(device_copy(host, base_from(f, from) + words_at(from), sizeof host, f->stream));
    TRY(comm_window_wait(f->window, f->stream, NULL));
    for (int i = 0; i < WORDS; i++) {
        if (host[i] != (uint32_t)(1000000 * from + 1000 * f->rank + i)) FAIL(STATUS_CUDA, "word %d is wrong", i);
    }
    return STATUS_OK;
}

static Status exchange(const Fixture *f) {
    TRY(check_zeros(f));
    for (int rank = 0; rank < f->ranks; rank++) {
        if (base_to(f, rank) != NULL) TRY(put_send(f, rank));
    }
    for (int rank = 0; rank < f->ranks; rank++) {
        if (base_to(f, rank) != NULL) TRY(put_wait(f, rank, 60));
    }
    for (int from = 0; from < f->ranks; from++) {
        if (base_to(f, from) != NULL) TRY(check_words(f, from));
    }
    return STATUS_OK;
}

/* Rank 1 stands still while rank 0 has more for it than there are slots, and comes to its end; then rank 1 goes on. */
static Status pause(const Fixture *f) {
    TRY(comm_barrier(f->comm));
    if (f->rank == 0) {
        usleep(300000);
        TRY(put_send(f, 1));
        return comm_window_wait(f->window, f->stream, NULL);
    }
    raise(SIGSTOP);
    TRY(put_wait(f, 0, 60));
    return check_words(f, 0);
}

/* All wait on their GPUs for the last rank, which does something else. */
static Status lose(const Fixture *f, const char *how) {
    double timeout_s = strcmp(how, "late") == 0 ? 0.5 : 60;
    if (f->rank < f->ranks - 1) {
        TRY(put_wait(f, f->ranks - 1, timeout_s));
        return comm_window_wait(f->window, f->stream, NULL);
    }
    if (strcmp(how, "killed") == 0) raise(SIGKILL);
    if (strcmp(how, "stopped") == 0) raise(SIGSTOP);
    if (strcmp(how, "abort") == 0) comm_abort(f->comm, "of its own will");
    return comm_barrier(f->comm);
}

/* What a kernel is told to do after a failure: it has ended although nothing came. */
static bool quiet(const Fixture *f) {
    bool done = false;
    return device_query(f->stream, NULL, &done) == STATUS_OK && done;
}

static Status set_up(Fixture *f, const Case *c, int fd, char *why) {
    CommOptions options = {};
    options.nodes = c->kind == COMM_WINDOW_FORWARDED ? c->ranks : c->kind == COMM_WINDOW_MIXED ? 2 : 1;
    options.timeout_s = strcmp(c->name, "stopped") == 0 ? 3 : 40;
    TRY(comm_attach(fd, f->rank, f->ranks, &options, &f->comm));
    if (device_count() > 0) {
        TRY(device_select(f->rank % device_count()));
        TRY(device_stream_create(&f->stream));
    }
    return comm_window_create(f->comm, c->kind, &sizes, &f->window, why);
}

static Status run_case(Fixture *f, const Case *c, int fd) {
    char why[COMM_WHY_BYTES] = "";
    TRY(set_up(f, c, fd, why));
    if (f->window == NULL) printf("rank %d: no window: %s\n", f->rank, why);
    if (f->window == NULL) return comm_barrier(f->comm);
    if (strcmp(c->name, "paused") == 0) {
        TRY(pause(f));
    } else if (strcmp(c->name, "exchange") != 0) {
        return lose(f, c->name);
    } else {
        TRY(exchange(f));
        comm_window_destroy(f->window);
        TRY(comm_window_create(f->comm, c->kind, &sizes, &f->window, why)); /* it is like new */
        TRY(exchange(f));
    }
    const char *inside[] = {"peer", "staged", "mixed", "forwarded"};
    const bool mixed = c->kind == COMM_WINDOW_MIXED;
    printf("rank %d: exchanged%s%s\n", f->rank, mixed ? ", inside " : "",
           mixed ? inside[comm_window_inside(f->window)] : "");
    return STATUS_OK;
}

static int run_rank(const Case *c, int rank, int fd) {
    Fixture f = {};
    f.rank = rank, f.ranks = c->ranks;
    Status status = run_case(&f, c, fd);
    ErrorRecord error = *error_record();
    if (status != STATUS_OK) {
        printf("rank %d: failed in '%s' with %d of rank %d: %s%s\n", rank, error.operation, status, error.rank,
               error.message, f.window == NULL || quiet(&f) ? "" : " (its kernel still runs)");
    }
    comm_window_destroy(f.window);
    device_stream_destroy(f.stream);
    comm_destroy(f.comm);
    fflush(stdout);
    return 0;
}

/* NAME=VALUE@RANK */
static void set_environment(char *text, int rank) {
    char *value = strchr(text, '='), *at = strrchr(text, '@');
    if (value == NULL || at == NULL || atoi(at + 1) != rank) return;
    *value = *at = '\0';
    setenv(text, value + 1, 1);
}

int main(int count, char **arguments) {
    if (count < 4) return 2;
    CommWindowKind kind = strcmp(arguments[2], "peer") == 0     ? COMM_WINDOW_PEER
                          : strcmp(arguments[2], "staged") == 0 ? COMM_WINDOW_STAGED
                          : strcmp(arguments[2], "mixed") == 0  ? COMM_WINDOW_MIXED
                                                                : COMM_WINDOW_FORWARDED;
    Case c = {arguments[1], kind, atoi(arguments[3])};
    int fd, children[RANKS_MAX];
    if (comm_segment_create(c.ranks, SLOT_BYTES, &fd) != STATUS_OK) return 3;
    for (int rank = 0; rank < c.ranks; rank++) {
        children[rank] = (int)fork();
        if (children[rank] != 0) continue;
        for (int i = 4; i < count; i++) set_environment(arguments[i], rank);
        _exit(run_rank(&c, rank, fd));
    }
    if (strcmp(c.name, "paused") == 0) {
        waitpid(children[1], NULL, WUNTRACED);
        usleep(6000000);
        kill(children[1], SIGCONT);
    }
    for (int rank = 0; rank < c.ranks; rank++) {
        int state = 0;
        bool stopped = rank == c.ranks - 1 && strcmp(c.name, "stopped") == 0;
        if (stopped) kill(children[rank], SIGKILL); /* the others have ended */
        waitpid(children[rank], &state, 0);
    }
    return 0;
}
