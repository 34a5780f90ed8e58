/* jpeg_decode, jpeg_encode, jpeg_header, resize_area: the image functions that need no file. */
#include "image/jpeg.h"

#include "image/resize.h"
#include "python/arguments.h"
#include "python/array.h"

static PyObject *header(PyObject *module, PyObject *object) {
    Py_buffer stream;
    JpegInfo info;
    if (PyObject_GetBuffer(object, &stream, PyBUF_SIMPLE) < 0) return NULL;
    Status status = jpeg_parse_header(stream.buf, (size_t)stream.len, &info);
    PyBuffer_Release(&stream);
    if (status != STATUS_OK) return py_errors_raise(py_module_state(module), status);
    return Py_BuildValue("(IIiN)", info.width, info.height, info.components, PyBool_FromLong(info.progressive));
}

/* What is requested of an image, and where its rows go. */
typedef struct Decoding {
    JpegRequest request;
    bool whole;
    uint8_t *to;
} Decoding;

static void jpeg_copy_rows(void *context, const uint8_t *rgb, size_t stride, uint32_t count) {
    Decoding *decoding = context;
    const size_t row_bytes = (size_t)decoding->request.region.width * 3;
    for (uint32_t y = 0; y < count; y++, decoding->to += row_bytes) memcpy(decoding->to, rgb + y * stride, row_bytes);
}

static Status decode_into(const Py_buffer *stream, Decoding *decoding) {
    const JpegRequest *request = &decoding->request;
    JpegDecoder *decoder = NULL;
    TRY(jpeg_decoder_create(&decoder));
    Status status =
        decoding->whole
            ? jpeg_decode(decoder, stream->buf, (size_t)stream->len, request->idct, request->width, request->height,
                          decoding->to, (size_t)request->width * 3)
            : jpeg_decode_region(decoder, stream->buf, (size_t)stream->len, request, jpeg_copy_rows, decoding);
    jpeg_decoder_destroy(decoder);
    return status;
}

/* (y, x, height, width) within the shrunk image, or None: all of it. 0 or -1. */
static int region_of(PyObject *object, uint32_t height, uint32_t width, JpegRegion *region) {
    const char *names[] = {"the region's y", "the region's x", "the region's height", "the region's width"};
    const uint64_t most[] = {height, width, height, width};
    uint64_t values[4] = {0, 0, height, width};
    if (object != NULL && object != Py_None) {
        PyObject *tuple = py_arguments_tuple(object, "numbers of the region (y, x, height, width)", 4, 4);
        if (tuple == NULL) return -1;
        int failed = 0;
        for (int i = 0; i < 4 && failed == 0; i++) {
            failed = py_arguments_whole(PyTuple_GET_ITEM(tuple, i), names[i], 0, most[i], &values[i]);
        }
        Py_DECREF(tuple);
        if (failed != 0) return -1;
    }
    *region = (JpegRegion){(uint32_t)values[0], (uint32_t)values[1], (uint32_t)values[2], (uint32_t)values[3]};
    return 0;
}

static PyObject *decode_stream(PyObject *module, const Py_buffer *stream, PyObject *region, bool fast,
                               uint32_t shrink) {
    Decoding decoding = {.whole = (region == NULL || region == Py_None) && shrink == 1};
    JpegInfo info;
    Status status = jpeg_parse_header(stream->buf, (size_t)stream->len, &info);
    if (status != STATUS_OK) return py_errors_raise(py_module_state(module), status);
    decoding.request = (JpegRequest){fast ? JPEG_IDCT_FAST : JPEG_IDCT_ACCURATE, info.width, info.height, shrink, {0}};
    const uint32_t height = jpeg_shrunk(info.height, shrink), width = jpeg_shrunk(info.width, shrink);
    if (region_of(region, height, width, &decoding.request.region) < 0) return NULL;
    const JpegRegion *part = &decoding.request.region;
    PyObject *array = py_array_new(ARRAY_U8, 3, (const int64_t[]){part->height, part->width, 3});
    if (array == NULL) return NULL;
    decoding.to = py_array_data(array);
    Py_BEGIN_ALLOW_THREADS;
    status = decode_into(stream, &decoding);
    Py_END_ALLOW_THREADS;
    return py_errors_result(py_module_state(module), status, array);
}

static PyObject *jpeg_decode_array(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"data", "fast", "region", "shrink", NULL};
    PyObject *object, *region = NULL;
    ArgumentsNumber shrink = {"shrink", 8, 1};
    int fast = 0;
    Py_buffer stream;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|pOO&:jpeg_decode", names, &object, &fast, &region,
                                     py_arguments_number, &shrink)) {
        return NULL;
    }
    if (shrink.value < 1) return PyErr_Format(PyExc_ValueError, "shrink must be 1, 2, 4 or 8, not 0");
    if (PyObject_GetBuffer(object, &stream, PyBUF_SIMPLE) < 0) return NULL;
    PyObject *array = decode_stream(module, &stream, region, fast != 0, (uint32_t)shrink.value);
    PyBuffer_Release(&stream);
    return array;
}

/* uint8 (height, width, 3), C-contiguous; 0 or -1. */
static int acquire_image(PyObject *object, ArrayView *view, ImageSize *size) {
    if (py_array_acquire(object, "image", 1u << ARRAY_U8, 3, false, view) < 0) return -1;
    bool fits = view->shape[2] == 3 && view->shape[0] >= 1 && view->shape[1] >= 1 &&
                view->shape[0] <= RESIZE_MAX_SIDE && view->shape[1] <= RESIZE_MAX_SIDE;
    if (fits) {
        *size = (ImageSize){(uint32_t)view->shape[1], (uint32_t)view->shape[0]};
        return 0;
    }
    PyErr_Format(PyExc_ValueError,
                 "image must have shape (height, width, 3) with sides of 1 to %d, not (%lld, %lld, %lld)",
                 RESIZE_MAX_SIDE, (long long)view->shape[0], (long long)view->shape[1], (long long)view->shape[2]);
    py_array_release(view);
    return -1;
}

static PyObject *jpeg_encode_image(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"image", "quality", NULL};
    PyObject *object, *result = NULL;
    int quality = 90;
    ArrayView view;
    ImageSize size;
    JpegEncoder *encoder = NULL;
    const uint8_t *data = NULL;
    size_t bytes = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|i:jpeg_encode", names, &object, &quality)) return NULL;
    if (acquire_image(object, &view, &size) < 0) return NULL;
    Status status = jpeg_encoder_create(&encoder);
    if (status == STATUS_OK) {
        Py_BEGIN_ALLOW_THREADS;
        status =
            jpeg_encode(encoder, view.data, (size_t)size.width * 3, size.width, size.height, quality, &data, &bytes);
        Py_END_ALLOW_THREADS;
    }
    if (status == STATUS_OK)
        result = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)bytes);
    else
        py_errors_raise(py_module_state(module), status);
    jpeg_encoder_destroy(encoder);
    py_array_release(&view);
    return result;
}

static Status resize_into(const uint8_t *from, ImageSize size, uint8_t *out, ImageSize to) {
    Resizer *resizer = NULL;
    TRY(resizer_create(&resizer));
    Status status = resizer_begin(resizer, RESIZE_AREA, size, to, out, (size_t)to.width * 3);
    if (status == STATUS_OK) resizer_push(resizer, from, (size_t)size.width * 3, size.height);
    resizer_destroy(resizer);
    return status;
}

static PyObject *resize(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"image", "height", "width", NULL};
    PyObject *object, *array;
    ArrayView view;
    ArgumentsNumber height = {"height", RESIZE_MAX_SIDE, 0}, width = {"width", RESIZE_MAX_SIDE, 0};
    ImageSize size;
    Status status;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO&O&:resize_area", names, &object, py_arguments_number, &height,
                                     py_arguments_number, &width)) {
        return NULL;
    }
    const ImageSize to = {.width = (uint32_t)width.value, .height = (uint32_t)height.value};
    if (to.height < 1 || to.width < 1) {
        return PyErr_Format(PyExc_ValueError, "height and width must be in 1..%d, not %u and %u", RESIZE_MAX_SIDE,
                            to.height, to.width);
    }
    status = jpeg_check_pixels(to.width, to.height);
    if (status != STATUS_OK) return py_errors_raise(py_module_state(module), status);
    if (acquire_image(object, &view, &size) < 0) return NULL;
    array = py_array_new(ARRAY_U8, 3, (const int64_t[]){to.height, to.width, 3});
    if (array != NULL) {
        uint8_t *pixels = py_array_data(array);
        Py_BEGIN_ALLOW_THREADS;
        status = resize_into(view.data, size, pixels, to);
        Py_END_ALLOW_THREADS;
        if (status != STATUS_OK) {
            Py_CLEAR(array);
            py_errors_raise(py_module_state(module), status);
        }
    }
    py_array_release(&view);
    return array;
}

static PyObject *max_pixels(PyObject *module, PyObject *Py_UNUSED(unused)) {
    uint64_t limit = 0;
    Status status = jpeg_limit_get(&limit);
    if (status != STATUS_OK) return py_errors_raise(py_module_state(module), status);
    return PyLong_FromUnsignedLongLong(limit);
}

static PyObject *set_max_pixels(PyObject *Py_UNUSED(module), PyObject *object) {
    uint64_t limit;
    if (py_arguments_whole(object, "a limit of pixels (0: none)", 0, UINT64_MAX, &limit) < 0) return NULL;
    jpeg_limit_set(limit);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"jpeg_header", header, METH_O,
     "jpeg_header(data)\n--\n\n"
     "Return (width, height, components, progressive) of a JPEG stream without decoding it."},
    {"jpeg_decode", PY_KEYWORDS(jpeg_decode_array),
     "jpeg_decode(data, fast=False, region=None, shrink=1)\n--\n\n"
     "Decode a JPEG stream to uint8 (height, width, 3) RGB. `fast` uses libjpeg-turbo's fast IDCT, as FFCV does. "
     "With `region` (y, x, height, width), decode only that part, to the same pixels; nothing after its last row "
     "is read. `shrink` 2, 4 or 8: decode at that fraction of the size, rounded up, from each block's low "
     "frequencies; `region` then refers to the result. Raises BetonError for truncated or corrupt data."},
    {"jpeg_encode", PY_KEYWORDS(jpeg_encode_image),
     "jpeg_encode(image, quality=90)\n--\n\n"
     "Encode uint8 (height, width, 3) RGB as baseline 4:2:0 JPEG; returns bytes."},
    {"resize_area", PY_KEYWORDS(resize),
     "resize_area(image, height, width)\n--\n\nResize uint8 (H, W, 3) by exact box averages, rounded to nearest."},
    {"max_image_pixels", max_pixels, METH_NOARGS,
     "max_image_pixels()\n--\n\nThe maximum number of pixels of an image to be decoded; 0: no limit."},
    {"set_max_image_pixels", set_max_pixels, METH_O,
     "set_max_image_pixels(pixels)\n--\n\n"
     "Set the maximum number of pixels of an image to be decoded, for this process; 0: no limit. Initially it "
     "comes from the environment variable CGXFFCV_MAX_IMAGE_PIXELS, by default 178,956,970."},
    {NULL, NULL, 0, NULL},
};

int py_jpeg_add(PyObject *module) { return PyModule_AddFunctions(module, functions); }
