#include "loader/apart.h"

#include <pthread.h>

#include "device/device.h"

typedef struct Apart {
    int device;
    LoaderApartWork work;
    void *context;
    Status status;
    ErrorRecord error;
} Apart;

void loader_apart_enter(int device) {
    if (device_select(device) == STATUS_OK) device_relax_capture();
}

static void *run(void *argument) {
    Apart *apart = argument;
    loader_apart_enter(apart->device);
    apart->status = apart->work(apart->context);
    if (apart->status != STATUS_OK) apart->error = *error_record();
    return NULL;
}

Status loader_apart(int device, LoaderApartWork work, void *context) {
    Apart apart = {.device = device, .work = work, .context = context};
    pthread_t thread;
    int failed = pthread_create(&thread, NULL, run, &apart);
    if (failed != 0) return error_fail_errno(STATUS_IO, failed, "cannot start a thread for work on GPU %d", device);
    pthread_join(thread, NULL);
    return apart.status == STATUS_OK ? STATUS_OK : error_adopt(&apart.error);
}
