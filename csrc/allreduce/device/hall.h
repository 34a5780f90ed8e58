/* The window of a communicator, which all its plans on GPUs share, since their runs come one after the other. Private
 * to this folder. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_HALL_H
#define CGXFFCV_ALLREDUCE_DEVICE_HALL_H

#include "allreduce/device/exchange.h"

/* Memory for what one rank writes for another: two halves, for even and odd rounds, each `parts` parts of data and
 * behind them as many of flags. */
typedef struct ExchangeBlock {
    uint8_t *at; /* NULL: there is none */
    uint64_t half_bytes;
    int parts;
    bool far; /* in host memory */
} ExchangeBlock;

typedef struct ExchangeHall {
    CommWindow *window;   /* owned */
    ExchangeState *state; /* owned, in device memory */
    uint8_t *own;         /* owned, in device memory: a part of data, for what is this rank's own */
    CommWindowKind kind;
    uint64_t part_bytes; /* of a part: of data; */
    uint32_t part_flags; /* words */
    int inside;          /* parts of a block between ranks that reach each other in place */
    /* private to hall.c */
    const Comm *comm; /* borrowed */
    DeviceEvent *ran; /* owned: after the run that was put last */
    uint32_t number;
    int users;
    struct ExchangeHall *next;
} ExchangeHall;

/* Where this rank writes for another, and where another has written for this one. */
ExchangeBlock allreduce_hall_outgoing(const ExchangeHall *hall, int rank);
ExchangeBlock allreduce_hall_incoming(const ExchangeHall *hall, int rank);

/* Around the kernels of a run: it waits for that before it, which may be on another stream. What is recorded runs where
 * whoever launches it puts it. */
Status allreduce_hall_enter(ExchangeHall *hall, DeviceStream *stream);
Status allreduce_hall_ran(ExchangeHall *hall, DeviceStream *stream);

/* Collective. *out NULL on all ranks where there can be none, with the reason in `why` (ALLREDUCE_WHY_BYTES). */
Status allreduce_hall_join(Comm *comm, ExchangeHall **out, char *why);
void allreduce_hall_leave(ExchangeHall *hall); /* NULL does nothing */

#endif
