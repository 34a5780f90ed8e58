/* Initialising a library that may wait for other processes for ever: on a thread of its own, so that whoever waits for
 * it has a deadline and lets signals through. */
#ifndef CGXFFCV_COMM_START_H
#define CGXFFCV_COMM_START_H

#include "comm/comm.h"

/* Runs `work` on a thread, once in this process, and waits until it has returned, the deadline has passed (TIMEOUT,
 * naming `what`) or the check hook fails. In the latter cases it keeps running, and a later call waits for it again. */
Status comm_start_once(void (*work)(void), const char *what, int64_t deadline_ns, const CommHooks *hooks);

/* Runs `body` on a detached thread with all signals blocked: those belong to the threads of the program. `what` is for
 * the message of a failure. */
Status comm_start_thread(void *(*body)(void *unused), const char *what);

#endif
