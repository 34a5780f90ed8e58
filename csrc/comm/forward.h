/* Forwarding: a thread sends on what kernels hand over for the windows of ranks that this rank's GPU does not reach.
 * Private to this folder. */
#ifndef CGXFFCV_COMM_FORWARD_H
#define CGXFFCV_COMM_FORWARD_H

#include "comm/window.h"

typedef struct CommForward CommForward;

/* Makes buffers for the ranks that are `remote` ([ranks], symmetric between ranks); `status_words` are borrowed until
 * comm_forward_destroy. */
Status comm_forward_create(Comm *comm, const bool *remote, const CommWindowSizes *sizes, CommWindowStatus *status_words,
                           CommForward **out);
/* Collective, once all ranks have theirs. */
Status comm_forward_start(CommForward *forward);

/* With `flush` sends what is left and waits a moment for what the others still send, unless the communicator is
 * broken. Does nothing if NULL. */
void comm_forward_destroy(CommForward *forward, bool flush);

CommWindowSendQueue comm_forward_send_queue(const CommForward *forward);

/* NULL for a rank that is not remote. */
unsigned char *comm_forward_send_buffer(const CommForward *forward, int rank);
unsigned char *comm_forward_receive_buffer(const CommForward *forward, int rank);

#endif
