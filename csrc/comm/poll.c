/* Waiting for a GPU: always by polling, so that each wait has the operation's deadline and notices abort, lost ranks
 * and signals. */
#include "comm/internal.h"

#include <sched.h>
#include <unistd.h>

#include "base/clock.h"

#define YIELD_NS 1000000LL
#define SLEEP_US 50
#define LOOK_EVERY_NS 1000000LL
#define LOSS_S 2.0 /* within which a lost rank is noticed */

void comm_poll_pause(int64_t since_ns) {
    if (clock_now_ns() - since_ns < YIELD_NS) {
        sched_yield();
    } else {
        usleep(SLEEP_US);
    }
}

Status comm_poll_blame(Comm *comm, Status status) {
    ErrorRecord cause = *error_record();
    int64_t deadline_ns = clock_deadline_ns(LOSS_S), since_ns = clock_now_ns();
    while (status != STATUS_OK && !clock_expired(deadline_ns)) {
        TRY(comm_progress(comm));
        comm_poll_pause(since_ns);
    }
    return status == STATUS_OK ? status : error_adopt(&cause);
}

Status comm_poll_device(Comm *comm, DeviceStream *stream, DeviceEvent *event, Status (*check)(void *context),
                        void *context) {
    int64_t since_ns = clock_now_ns(), next_ns = since_ns;
    for (;;) {
        bool done = false;
        TRY(comm_poll_blame(comm, device_query(stream, event, &done)));
        if (done) return STATUS_OK;
        TRY(comm_progress(comm));
        if (clock_now_ns() >= next_ns) {
            TRY(comm_poll_blame(comm, check(context)));
            next_ns = clock_now_ns() + LOOK_EVERY_NS;
        }
        comm_poll_pause(since_ns);
    }
}
