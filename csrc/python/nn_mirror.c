/* Host copies of a model's buffers on a GPU, which Python reads and writes as NumPy arrays. They are copied to the
 * device before a call and back after it. A mirror that has not been written since is not copied to the device: a
 * Trainer, which ignores mirrors, may have trained the model there in the meantime. */
#include "base/hash.h"
#include "base/memory.h"
#include "python/nn.h"

static float *device_data(const ModelObject *self, ModelBuffer buffer) {
    return buffer == MODEL_PARAMETERS  ? nn_model_parameter_data(self->model)
           : buffer == MODEL_GRADIENTS ? nn_model_gradient_data(self->model)
                                       : nn_model_statistic_data(self->model);
}

size_t py_nn_buffer_elems(const ModelObject *self, ModelBuffer buffer) {
    return buffer == MODEL_PARAMETERS  ? nn_model_parameter_elems(self->model)
           : buffer == MODEL_GRADIENTS ? nn_model_gradient_elems(self->model, 0)
                                       : nn_model_statistic_elems(self->model);
}

float *py_nn_buffer_data(const ModelObject *self, ModelBuffer buffer) {
    return self->mirrors[buffer].data == NULL ? device_data(self, buffer) : self->mirrors[buffer].data;
}

static uint64_t hash_of(const ModelObject *self, ModelBuffer buffer) {
    return hash_bytes(self->mirrors[buffer].data, py_nn_buffer_elems(self, buffer) * sizeof(float), 0);
}

Status py_nn_mirrors_init(ModelObject *self) {
    if (nn_model_stream(self->model) == NULL) return STATUS_OK;
    for (int i = 0; i < MODEL_BUFFERS; i++) {
        Mirror *mirror = &self->mirrors[i];
        TRY(memory_calloc(py_nn_buffer_elems(self, (ModelBuffer)i) + 1, sizeof *mirror->data, &mirror->data));
        mirror->exchanged = hash_of(self, (ModelBuffer)i);
    }
    return STATUS_OK;
}

void py_nn_mirrors_fini(ModelObject *self) {
    for (int i = 0; i < MODEL_BUFFERS; i++) memory_free(self->mirrors[i].data);
}

Status py_nn_upload(ModelObject *self) {
    for (int i = 0; i < MODEL_BUFFERS; i++) {
        ModelBuffer buffer = (ModelBuffer)i;
        Mirror *mirror = &self->mirrors[i];
        if (mirror->data == NULL) continue;
        uint64_t hash = hash_of(self, buffer);
        if (hash == mirror->exchanged) continue;
        TRY(nn_model_write(self->model, device_data(self, buffer), 0, mirror->data, py_nn_buffer_elems(self, buffer)));
        mirror->exchanged = hash;
    }
    return STATUS_OK;
}

Status py_nn_download(ModelObject *self) {
    for (int i = 0; i < MODEL_BUFFERS; i++) {
        ModelBuffer buffer = (ModelBuffer)i;
        Mirror *mirror = &self->mirrors[i];
        if (mirror->data == NULL) continue;
        TRY(nn_model_read(self->model, device_data(self, buffer), 0, mirror->data, py_nn_buffer_elems(self, buffer)));
        mirror->exchanged = hash_of(self, buffer);
    }
    return STATUS_OK;
}
