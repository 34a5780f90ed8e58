/* What kernels hand over for the windows of ranks that this rank's GPU does not reach: a thread sends it on. Private to
 * this folder. */
#ifndef CGXFFCV_COMM_FORWARD_H
#define CGXFFCV_COMM_FORWARD_H

#include "comm/window.h"

typedef struct CommForward CommForward;

/* Collective. `bases` are this rank's window and an outbox for each other rank's, in page-locked host memory, `bytes`
 * each; they and the signs are borrowed until comm_forward_destroy. */
Status comm_forward_create(Comm *comm, void *const *bases, size_t bytes, CommWindowSigns *signs, CommForward **out);

/* With `farewell` sends what is left, and waits a moment for what others still send, unless the communicator is broken.
 * Does nothing if NULL. */
void comm_forward_destroy(CommForward *forward, bool farewell);

const CommWindowPost *comm_forward_post(const CommForward *forward);

#endif
