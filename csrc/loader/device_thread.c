#include "loader/device_thread.h"

#include <pthread.h>

#include "device/device.h"

typedef struct DeviceJob {
    int device;
    LoaderDeviceWork work;
    void *context;
    Status status;
    ErrorRecord error;
} DeviceJob;

void loader_device_thread_enter(int device) {
    if (device_select(device) == STATUS_OK) device_relax_capture();
}

static void *run(void *argument) {
    DeviceJob *job = argument;
    loader_device_thread_enter(job->device);
    job->status = job->work(job->context);
    if (job->status != STATUS_OK) job->error = *error_record();
    return NULL;
}

Status loader_device_thread_run(int device, LoaderDeviceWork work, void *context) {
    DeviceJob job = {.device = device, .work = work, .context = context};
    pthread_t thread;
    int failed = pthread_create(&thread, NULL, run, &job);
    if (failed != 0) return error_fail_errno(STATUS_IO, failed, "cannot start a thread for work on GPU %d", device);
    pthread_join(thread, NULL);
    return job.status == STATUS_OK ? STATUS_OK : error_adopt(&job.error);
}
