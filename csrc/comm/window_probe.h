/* Checks that all ranks really reach each other's windows: each writes some vectors, spread over its part of every
 * window, and all read them back. Private to this folder.
 *
 * A window is divided into one part per source rank, followed by one flag per source rank. A part holds groups of
 * 16-byte vectors: `groups` groups, `spread` vectors apart. */
#ifndef CGXFFCV_COMM_WINDOW_PROBE_H
#define CGXFFCV_COMM_WINDOW_PROBE_H

#include "base/host_device.h"
#include "comm/window.h"

#define PROBE_VECTOR_BYTES 16
#define PROBE_GROUPS 16
#define PROBE_GROUP_VECTORS 256

typedef struct ProbePlan {
    uint32_t part, groups, vectors, spread; /* vectors in a part; its groups; vectors in each; vectors between starts */
    size_t flags_at;                        /* bytes from a window's start */
} ProbePlan;

/* What is wrong; in status_words->tile. */
typedef enum ProbeFault { PROBE_LATE, PROBE_PUSHED, PROBE_PULLED } ProbeFault;

/* The first vector of a group, from the window's start. */
HOST_DEVICE size_t probe_group_at(const ProbePlan *plan, uint32_t source, uint32_t group) {
    return (size_t)source * plan->part + (size_t)group * plan->spread;
}

/* The first word of a vector that `source` writes into the window of `target`; the other words count up from it. */
HOST_DEVICE uint32_t probe_word(uint32_t source, uint32_t target, size_t vector) {
    uint32_t word = (uint32_t)vector * 0x9E3779B1u ^ (source + 1) * 0x85EBCA6Bu ^ (target + 1) * 0xC2B2AE35u;
    word ^= word >> 15;
    return word * 0x2C1B3C6Du | 1; /* never 0, which was there before */
}

/* Launches a kernel that writes this rank's vectors into a window, and then the flag. */
Status comm_probe_push(void *base, const ProbePlan *plan, int source, int target, DeviceStream *stream);

/* Launches one that waits for a rank's flag and checks what arrived in `own`, the window of this rank `me`, and what
 * that rank has written into its own, `theirs`; reports what is wrong, unless there is a report already. */
Status comm_probe_check(const void *own, const void *theirs, const ProbePlan *plan, int source, int me,
                        CommWindowStatus *status_words, double timeout_s, DeviceStream *stream);

/* Runs the whole probe on this rank, between begin and end; every rank does the same. */
Status comm_probe_run(Comm *comm, void *const *bases, size_t bytes, CommWindowStatus *status_words,
                      DeviceStream *stream);

#endif
