/* Private to loader/: work on a GPU for a thread of the program, whose own choice of a device stays as it is. */
#ifndef CGXFFCV_LOADER_APART_H
#define CGXFFCV_LOADER_APART_H

#include "base/status.h"

typedef Status (*LoaderApartWork)(void *context);

/* Does the work in a thread of its own, which has selected the device, and waits for it. To select the caller's device
 * again afterwards would set up GPU 0 for a caller that has chosen none. */
Status loader_apart(int device, LoaderApartWork work, void *context);

/* What a thread of this room does first: selects the device, and leaves recordings of other threads alone. A failure
 * is left to what comes next. */
void loader_apart_enter(int device);

#endif
