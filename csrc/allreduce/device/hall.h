/* A hall: the window of a communicator, with its state, shared by all plans of that communicator on GPUs, whose runs
 * come one after the other. Private to this folder. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_HALL_H
#define CGXFFCV_ALLREDUCE_DEVICE_HALL_H

#include "allreduce/device/exchange.h"

/* Memory for what one rank writes for another: two halves, for even and odd rounds, each with `parts` parts of data,
 * followed by as many of flags. */
typedef struct ExchangeBlock {
    uint8_t *at; /* NULL: there is none */
    uint64_t half_bytes;
    int parts;
    bool far; /* in host memory */
} ExchangeBlock;

typedef struct ExchangeHall {
    CommWindow *window;   /* owned */
    ExchangeState *state; /* owned, in device memory */
    uint8_t *own;         /* owned, in device memory: a part of data, for what stays with this rank */
    CommWindowKind kind;
    uint64_t part_bytes; /* of data in a part */
    uint32_t part_flags; /* words of flags in a part */
    int inside;          /* parts of a block between ranks that reach each other in place */
    /* private to hall.c */
    const Comm *comm; /* borrowed */
    DeviceEvent *ran; /* owned: recorded after the run that was enqueued last */
    uint32_t number;
    int users;
    struct ExchangeHall *next;
} ExchangeHall;

/* Where this rank writes for another, and where another has written for this one. */
ExchangeBlock allreduce_hall_outgoing(const ExchangeHall *hall, int rank);
ExchangeBlock allreduce_hall_incoming(const ExchangeHall *hall, int rank);

/* Called around the kernels of a run, which waits for the previous one, perhaps on another stream. The order of
 * captured runs is up to whoever launches the graph. */
Status allreduce_hall_enter(ExchangeHall *hall, DeviceStream *stream);
Status allreduce_hall_ran(ExchangeHall *hall, DeviceStream *stream);

/* Collective. *out is NULL on all ranks if there cannot be one, with the reason in `why` (ALLREDUCE_WHY_BYTES). */
Status allreduce_hall_join(Comm *comm, ExchangeHall **out, char *why);
void allreduce_hall_leave(ExchangeHall *hall); /* NULL does nothing */

#endif
