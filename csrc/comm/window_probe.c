/* The probe of windows: kernels write into every rank's, then kernels and copies check what has arrived in this rank's
 * window (what others push) and in everyone's own (what this rank pulls). Has a deadline. */
#include "comm/window_probe.h"

#include <string.h>

#include "base/environment.h"
#include "comm/internal.h"

#define TIMEOUT_VARIABLE "CGXFFCV_P2P_TIMEOUT"
#define TIMEOUT_S 5.0
#define MOST_TIMEOUT_S 600.0

typedef struct Probe {
    Comm *comm;
    void *const *bases;
    ProbePlan plan;
    CommWindowStatus *status_words;
    DeviceStream *stream;
    double timeout_s;
} Probe;

static ProbePlan plan_of(size_t bytes, int ranks) {
    ProbePlan plan = {.groups = PROBE_GROUPS};
    size_t flags = (size_t)ranks * sizeof(uint32_t), part = (bytes - flags) / PROBE_VECTOR_BYTES / (size_t)ranks;
    plan.part = part > UINT32_MAX ? UINT32_MAX : (uint32_t)part;
    if (plan.part < PROBE_GROUPS) plan.groups = 1;
    plan.spread = plan.part / plan.groups;
    plan.vectors = plan.spread < PROBE_GROUP_VECTORS ? plan.spread : PROBE_GROUP_VECTORS;
    plan.flags_at = (bytes - flags) / sizeof(uint32_t) * sizeof(uint32_t);
    return plan;
}

static Status choose_timeout(double *out) {
    *out = TIMEOUT_S;
    return environment_seconds(TIMEOUT_VARIABLE, MOST_TIMEOUT_S, out);
}

static Status no_check(void *context) {
    (void)context;
    return STATUS_OK;
}

/* A rank writes to its own window first: others read that once they have the rank's flag. */
static Status put_kernels(const Probe *p) {
    int me = p->comm->rank;
    for (int i = 0; i < p->comm->size; i++) {
        int target = (me + i) % p->comm->size;
        TRY(comm_probe_push(p->bases[target], &p->plan, me, target, p->stream));
    }
    for (int i = 0; i < p->comm->size; i++) {
        int source = (me + i) % p->comm->size;
        TRY(comm_probe_check(p->bases[me], p->bases[source], &p->plan, source, me, p->status_words, p->timeout_s,
                             p->stream));
    }
    return comm_poll_device(p->comm, p->stream, NULL, no_check, NULL);
}

static Status check_report(const Probe *p) {
    unsigned rank = p->status_words->rank;
    if (__atomic_load_n(&p->status_words->reported, __ATOMIC_ACQUIRE) == 0) return STATUS_OK;
    switch ((ProbeFault)p->status_words->tile) {
    case PROBE_LATE:
        FAIL(STATUS_CUDA, "nothing that rank %u wrote into its window arrived within %g s", rank, p->timeout_s);
    case PROBE_PUSHED:
        FAIL(STATUS_CUDA, "what rank %u wrote into its window arrived as something else", rank);
    case PROBE_PULLED:
        FAIL(STATUS_CUDA, "what rank %u has in its window reads as something else", rank);
    }
    FAIL(STATUS_CUDA, "the probe has reported an unknown fault (%u)", p->status_words->tile);
}

/* Checks that a copy of a rank's part of a window holds what that rank has written there. */
static Status check_copy(const Probe *p, const void *window, int source, int target) {
    uint32_t got[PROBE_GROUP_VECTORS][4];
    for (uint32_t group = 0; group < p->plan.groups; group++) {
        size_t first = probe_group_at(&p->plan, (uint32_t)source, group);
        const unsigned char *from = (const unsigned char *)window + first * PROBE_VECTOR_BYTES;
        TRY(device_copy(got, from, (size_t)p->plan.vectors * PROBE_VECTOR_BYTES, p->stream));
        TRY(comm_poll_device(p->comm, p->stream, NULL, no_check, NULL));
        for (uint32_t i = 0; i < p->plan.vectors; i++) {
            uint32_t word = probe_word((uint32_t)source, (uint32_t)target, first + i);
            if (got[i][0] == word && got[i][1] == word + 1 && got[i][2] == word + 2 && got[i][3] == word + 3) continue;
            FAIL(STATUS_CUDA, "what rank %d has written into the window of rank %d is copied as something else", source,
                 target);
        }
    }
    return STATUS_OK;
}

Status comm_probe_run(Comm *comm, void *const *bases, size_t bytes, CommWindowStatus *status_words,
                      DeviceStream *stream) {
    Probe p = {.comm = comm,
               .bases = bases,
               .plan = plan_of(bytes, comm->size),
               .status_words = status_words,
               .stream = stream};
    TRY(choose_timeout(&p.timeout_s));
    TRY(put_kernels(&p));
    TRY(check_report(&p));
    for (int source = 0; source < comm->size; source++) {
        TRY(check_copy(&p, bases[comm->rank], source, comm->rank));
        TRY(check_copy(&p, bases[source], source, source));
    }
    return STATUS_OK;
}
