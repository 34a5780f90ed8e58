/* Switching to the GPUs of tensors, and their streams. */
#include "python/arguments.h"
#include "python/tensor.h"

Status py_tensor_device_enter(int device, PyTensorDeviceGuard *guard) {
    int before = -1;
    *guard = (PyTensorDeviceGuard){.before = -1};
    if (device < 0) return STATUS_OK;
    TRY(device_current(&before));
    if (before == device) return STATUS_OK;
    TRY(device_select(device));
    guard->before = before;
    return STATUS_OK;
}

void py_tensor_device_leave(const PyTensorDeviceGuard *guard) {
    if (guard->before < 0) return;
    ErrorRecord record = *error_record();
    (void)device_select(guard->before);
    (void)error_adopt(&record);
}

int py_tensor_parse_stream(PyObject *object, DeviceStream **out) {
    uint64_t number = 0;
    if (object != NULL && py_arguments_whole(object, "stream", 0, UINTPTR_MAX, &number) < 0) return -1;
    *out = (DeviceStream *)(uintptr_t)number;
    return 0;
}

static Status order_streams(int device, DeviceStream *later, DeviceStream *earlier) {
    Status status = STATUS_OK;
    DeviceEvent *event = NULL;
    PyTensorDeviceGuard guard;
    TRY(py_tensor_device_enter(device, &guard));
    TRY_GOTO(device_event_create(&event));
    TRY_GOTO(device_event_record(event, earlier));
    TRY_GOTO(device_stream_wait(later, event));
done:
    device_event_destroy(event);
    py_tensor_device_leave(&guard);
    return status;
}

static PyObject *device_order(PyObject *module, PyObject *args) {
    PyObject *later_number, *earlier_number;
    DeviceStream *later, *earlier;
    ArgumentsNumber device = {"device", INT32_MAX, 0};
    if (!PyArg_ParseTuple(args, "O&OO:device_order", py_arguments_number, &device, &later_number, &earlier_number) ||
        py_tensor_parse_stream(later_number, &later) < 0 || py_tensor_parse_stream(earlier_number, &earlier) < 0) {
        return NULL;
    }
    Status status = order_streams((int)device.value, later, earlier);
    return py_errors_none(py_module_state(module), status);
}

static PyMethodDef functions[] = {
    {"device_order", device_order, METH_VARARGS,
     "device_order(device, later, earlier)\n--\n\n"
     "Makes what follows on the stream `later` wait for what is on `earlier`."},
    {NULL, NULL, 0, NULL},
};

int py_tensor_streams_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
