/* The window of a communicator, which all its plans on GPUs share, since their runs come one after the other. Private
 * to this folder. */
#ifndef CGXFFCV_ALLREDUCE_DEVICE_HALL_H
#define CGXFFCV_ALLREDUCE_DEVICE_HALL_H

#include "allreduce/device/exchange.h"

typedef struct ExchangeHall {
    CommWindow *window;   /* owned */
    ExchangeState *state; /* owned, in device memory */
    uint8_t *own;         /* owned, in device memory: a region for what is this rank's own */
    CommWindowKind kind;
    uint64_t data_bytes, flags; /* of a half: of all regions, words of all rows */
    uint64_t half_bytes;
    /* private to hall.c */
    const Comm *comm; /* borrowed */
    DeviceEvent *ran; /* owned: after the run that was put last */
    uint32_t number;
    int users;
    struct ExchangeHall *next;
} ExchangeHall;

/* Around the kernels of a run: it waits for that before it, which may be on another stream. What is recorded runs where
 * whoever launches it puts it. */
Status allreduce_hall_enter(ExchangeHall *hall, DeviceStream *stream);
Status allreduce_hall_ran(ExchangeHall *hall, DeviceStream *stream);

/* Collective. *out NULL on all ranks where there can be none, with the reason in `why` (ALLREDUCE_WHY_BYTES). */
Status allreduce_hall_join(Comm *comm, ExchangeHall **out, char *why);
void allreduce_hall_leave(ExchangeHall *hall); /* NULL does nothing */

#endif
