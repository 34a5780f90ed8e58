/* Convolutions by oneDNN 3; the only file that uses it. A single-threaded primitive is created for each expected number
 * of images, and each of our threads has its own stream and memory objects, so that any number of them can run the same
 * primitive at the same time. oneDNN's blocked form of the filters is kept as an index map: packing is a gather from
 * (out, kernel, kernel, in), unpacking a gather from the blocked gradient. */
#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <stdio.h>

#include "base/memory.h"
#include "nn/cpu/conv.h"

#define CONV_MAX_ARGS 4

typedef struct ConvSize {
    int images;
    dnnl_primitive_t primitive; /* owned */
    dnnl_exec_arg_t *arguments; /* owned, like their memory objects; CONV_MAX_ARGS per thread */
} ConvSize;

typedef struct DnnlConv {
    Conv base;
    ConvShape shape;
    ConvDirection direction;
    Precision precision;
    const Kernels *kernels; /* static */
    int threads;
    dnnl_engine_t engine;       /* owned */
    dnnl_stream_t *streams;     /* owned, one per thread */
    dnnl_memory_desc_t filters; /* owned: the layout of the filters, or of their gradient */
    ConvSize sizes[CONV_MAX_SIZES];
    int size_count;
    size_t filter_elems, packed_elems; /* packed: with the padding of the blocked form */
    int32_t *map;                      /* owned: forward and data, packed -> flat; filter, flat -> packed */
    void *packed;                      /* owned; NULL for the filter gradient */
} DnnlConv;

/* libgomp's functions; NULL if oneDNN was built on something else. */
static pthread_once_t threads_once = PTHREAD_ONCE_INIT;
static int (*threads_get)(void);
static void (*threads_set)(int);

static void find_threads(void) {
    void *library = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD);
    void *get = library == NULL ? NULL : dlsym(library, "omp_get_max_threads");
    void *set = library == NULL ? NULL : dlsym(library, "omp_set_num_threads");
    if (get == NULL || set == NULL) return;
    __builtin_memcpy(&threads_get, &get, sizeof get);
    __builtin_memcpy(&threads_set, &set, sizeof set);
}

/* Limits what the calling thread creates or runs to one thread, until single_end restores the previous number. */
static int single_begin(void) {
    if (threads_set == NULL) return 0;
    int before = threads_get();
    threads_set(1);
    return before;
}

static void single_end(int before) {
    if (threads_set != NULL) threads_set(before);
}

static Status fail_dnnl(dnnl_status_t code, const char *call) {
    if (code == dnnl_out_of_memory) return error_fail(STATUS_MEMORY, "oneDNN is out of memory in %s", call);
    return error_fail(STATUS_LIBRARY, "oneDNN: %s failed with status %d%s", call, (int)code,
                      code == dnnl_unimplemented ? " (not implemented for this shape or precision)" : "");
}

#define TRY_DNNL(call)                                                                                                 \
    do {                                                                                                               \
        dnnl_status_t dnnl_status_ = (call);                                                                           \
        if (dnnl_status_ != dnnl_success) return fail_dnnl(dnnl_status_, #call);                                       \
    } while (0)

#define TRY_DNNL_GOTO(call)                                                                                            \
    do {                                                                                                               \
        dnnl_status_t dnnl_status_ = (call);                                                                           \
        if (dnnl_status_ != dnnl_success) {                                                                            \
            status = fail_dnnl(dnnl_status_, #call);                                                                   \
            goto done;                                                                                                 \
        }                                                                                                              \
    } while (0)

static char dnnl_name_text[48];

static void format_name(void) {
    const dnnl_version_t *version = dnnl_version();
    snprintf(dnnl_name_text, sizeof dnnl_name_text, "oneDNN %d.%d.%d", version->major, version->minor, version->patch);
}

Status nn_cpu_dnnl_supported(Precision precision) {
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    bool narrow = (isa & dnnl_cpu_isa_avx512_core) == dnnl_cpu_isa_avx512_core;
    if (precision != PRECISION_BFLOAT16 || narrow) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "oneDNN has no bfloat16 convolutions for this processor, which lacks AVX-512: use precision "
                          "float32");
}

const char *nn_cpu_dnnl_name(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, format_name);
    return dnnl_name_text;
}

static dnnl_data_type_t storage_type(const DnnlConv *conv) {
    return conv->precision == PRECISION_BFLOAT16 ? dnnl_bf16 : dnnl_f32;
}

/* The three descriptors of a convolution of `images` images; the caller destroys those that are set. */
typedef struct ConvDescs {
    dnnl_memory_desc_t input, filters, output;
} ConvDescs;

static void descs_destroy(ConvDescs *descs) {
    if (descs->input != NULL) dnnl_memory_desc_destroy(descs->input);
    if (descs->filters != NULL) dnnl_memory_desc_destroy(descs->filters);
    if (descs->output != NULL) dnnl_memory_desc_destroy(descs->output);
}

static Status descs_create(const DnnlConv *conv, int images, dnnl_data_type_t filter_type, ConvDescs *descs) {
    const ConvShape *s = &conv->shape;
    dnnl_dims_t input = {images, s->in_channels, s->in_height, s->in_width};
    dnnl_dims_t output = {images, s->out_channels, s->out_height, s->out_width};
    dnnl_dims_t filters = {s->out_channels, s->in_channels, s->kernel, s->kernel};
    TRY_DNNL(dnnl_memory_desc_create_with_tag(&descs->input, 4, input, storage_type(conv), dnnl_nhwc));
    TRY_DNNL(dnnl_memory_desc_create_with_tag(&descs->output, 4, output, storage_type(conv), dnnl_nhwc));
    if (conv->filters != NULL && filter_type != dnnl_data_type_undef) {
        TRY_DNNL(dnnl_memory_desc_clone(&descs->filters, conv->filters));
        return STATUS_OK;
    }
    dnnl_data_type_t type = filter_type == dnnl_data_type_undef ? storage_type(conv) : filter_type;
    TRY_DNNL(dnnl_memory_desc_create_with_tag(&descs->filters, 4, filters, type, dnnl_format_tag_any));
    return STATUS_OK;
}

static Status describe_primitive(const DnnlConv *conv, int images, dnnl_primitive_attr_t attributes,
                                 dnnl_primitive_desc_t *out) {
    Status status = STATUS_OK;
    const ConvShape *s = &conv->shape;
    dnnl_dims_t strides = {s->stride, s->stride}, dilates = {0, 0}, before = {s->padding, s->padding}, after;
    ConvDescs descs = {0}, hint = {0};
    dnnl_primitive_desc_t forward = NULL;
    dnnl_data_type_t filter_type = conv->direction == CONV_FILTER ? dnnl_f32 : storage_type(conv);
    after[0] = (s->out_height - 1) * s->stride + s->kernel - s->in_height - s->padding;
    after[1] = (s->out_width - 1) * s->stride + s->kernel - s->in_width - s->padding;
    TRY_GOTO(descs_create(conv, images, filter_type, &descs));
    if (conv->direction == CONV_FORWARD) {
        TRY_DNNL_GOTO(dnnl_convolution_forward_primitive_desc_create(
            out, conv->engine, dnnl_forward_training, dnnl_convolution_direct, descs.input, descs.filters, NULL,
            descs.output, strides, dilates, before, after, attributes));
        goto done;
    }
    TRY_GOTO(descs_create(conv, images, dnnl_data_type_undef, &hint));
    TRY_DNNL_GOTO(dnnl_convolution_forward_primitive_desc_create(
        &forward, conv->engine, dnnl_forward_training, dnnl_convolution_direct, hint.input, hint.filters, NULL,
        hint.output, strides, dilates, before, after, NULL));
    if (conv->direction == CONV_DATA) {
        TRY_DNNL_GOTO(dnnl_convolution_backward_data_primitive_desc_create(
            out, conv->engine, dnnl_convolution_direct, descs.input, descs.filters, descs.output, strides, dilates,
            before, after, forward, attributes));
    } else {
        TRY_DNNL_GOTO(dnnl_convolution_backward_weights_primitive_desc_create(
            out, conv->engine, dnnl_convolution_direct, descs.input, descs.filters, NULL, descs.output, strides,
            dilates, before, after, forward, attributes));
    }
done:
    if (forward != NULL) dnnl_primitive_desc_destroy(forward);
    descs_destroy(&hint);
    descs_destroy(&descs);
    return status;
}

static void direction_arguments(ConvDirection direction, int arguments[CONV_MAX_ARGS]) {
    static const int all[3][CONV_MAX_ARGS] = {
        [CONV_FORWARD] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD},
        [CONV_DATA] = {DNNL_ARG_DIFF_DST, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_SRC, DNNL_ARG_SCRATCHPAD},
        [CONV_FILTER] = {DNNL_ARG_SRC, DNNL_ARG_DIFF_DST, DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_SCRATCHPAD},
    };
    for (int i = 0; i < CONV_MAX_ARGS; i++) arguments[i] = all[direction][i];
}

static Status make_arguments(DnnlConv *conv, ConvSize *size, const_dnnl_primitive_desc_t desc) {
    int names[CONV_MAX_ARGS];
    direction_arguments(conv->direction, names);
    TRY(memory_calloc((size_t)(conv->threads * CONV_MAX_ARGS), sizeof *size->arguments, &size->arguments));
    for (int i = 0; i < conv->threads * CONV_MAX_ARGS; i++) {
        int name = names[i % CONV_MAX_ARGS];
        const_dnnl_memory_desc_t memory = dnnl_primitive_desc_query_md(desc, dnnl_query_exec_arg_md, name);
        size->arguments[i].arg = name;
        TRY_DNNL(dnnl_memory_create(&size->arguments[i].memory, memory, conv->engine, DNNL_MEMORY_NONE));
    }
    return STATUS_OK;
}

static Status add_size(DnnlConv *conv, int images) {
    Status status = STATUS_OK;
    ConvSize *size = &conv->sizes[conv->size_count++];
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_primitive_desc_t desc = NULL;
    size->images = images;
    TRY_DNNL_GOTO(dnnl_primitive_attr_create(&attributes));
    TRY_DNNL_GOTO(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user));
    TRY_GOTO(describe_primitive(conv, images, attributes, &desc));
    TRY_DNNL_GOTO(dnnl_primitive_create(&size->primitive, desc));
    TRY_GOTO(make_arguments(conv, size, desc));
    size_t scratch = dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0));
    if (scratch > conv->base.scratch_bytes) conv->base.scratch_bytes = scratch;
    if (conv->filters == NULL) { /* the first size, a whole group of images, determines the layout */
        const char *implementation = "";
        TRY_DNNL_GOTO(dnnl_primitive_desc_query(desc, dnnl_query_impl_info_str, 0, &implementation));
        snprintf(conv->base.name, sizeof conv->base.name, "oneDNN %s", implementation);
        int name = conv->direction == CONV_FILTER ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS;
        TRY_DNNL_GOTO(
            dnnl_memory_desc_clone(&conv->filters, dnnl_primitive_desc_query_md(desc, dnnl_query_exec_arg_md, name)));
    }
done:
    if (desc != NULL) dnnl_primitive_desc_destroy(desc);
    if (attributes != NULL) dnnl_primitive_attr_destroy(attributes);
    return status;
}

/* Where a blocked layout stores its elements. */
typedef struct Blocking {
    const dnnl_dims_t *strides, *blocks, *indices;
    int count;
} Blocking;

static size_t blocked_offset(const Blocking *blocking, const int64_t logical[4]) {
    int64_t rest[4], offset = 0, inner = 1;
    for (int i = 0; i < 4; i++) rest[i] = logical[i];
    for (int i = blocking->count - 1; i >= 0; i--) {
        int64_t block = (*blocking->blocks)[i], dim = (*blocking->indices)[i];
        offset += rest[dim] % block * inner;
        rest[dim] /= block;
        inner *= block;
    }
    for (int i = 0; i < 4; i++) offset += rest[i] * (*blocking->strides)[i];
    return (size_t)offset;
}

static Status query_blocking(const DnnlConv *conv, Blocking *out) {
    dnnl_format_kind_t kind;
    int32_t count;
    TRY_DNNL(dnnl_memory_desc_query(conv->filters, dnnl_query_format_kind, &kind));
    if (kind != dnnl_blocked) FAIL(STATUS_LIBRARY, "oneDNN chose a layout of the filters that is not blocked");
    TRY_DNNL(dnnl_memory_desc_query(conv->filters, dnnl_query_strides, &out->strides));
    TRY_DNNL(dnnl_memory_desc_query(conv->filters, dnnl_query_inner_nblks_s32, &count));
    TRY_DNNL(dnnl_memory_desc_query(conv->filters, dnnl_query_inner_blks, &out->blocks));
    TRY_DNNL(dnnl_memory_desc_query(conv->filters, dnnl_query_inner_idxs, &out->indices));
    out->count = count;
    return STATUS_OK;
}

static Status make_map(DnnlConv *conv) {
    const ConvShape *s = &conv->shape;
    bool filter = conv->direction == CONV_FILTER;
    size_t item = conv->precision == PRECISION_BFLOAT16 && !filter ? 2 : 4;
    Blocking blocking;
    TRY(query_blocking(conv, &blocking));
    conv->packed_elems = dnnl_memory_desc_get_size(conv->filters) / item;
    conv->filter_elems = (size_t)s->out_channels * (size_t)(s->kernel * s->kernel) * (size_t)s->in_channels;
    if (conv->packed_elems > INT32_MAX) FAIL(STATUS_ARGUMENT, "a convolution has more than 2^31 filter elements");
    TRY(memory_alloc(filter ? conv->filter_elems : conv->packed_elems, sizeof *conv->map, &conv->map));
    for (size_t i = 0; !filter && i < conv->packed_elems; i++) conv->map[i] = -1;
    int32_t flat = 0;
    for (int64_t o = 0; o < s->out_channels; o++) {
        for (int64_t tap = 0; tap < s->kernel * s->kernel; tap++) {
            for (int64_t i = 0; i < s->in_channels; i++, flat++) {
                size_t at = blocked_offset(&blocking, (int64_t[]){o, i, tap / s->kernel, tap % s->kernel});
                if (filter) {
                    conv->map[flat] = (int32_t)at;
                } else {
                    conv->map[at] = flat;
                }
            }
        }
    }
    return filter ? STATUS_OK : memory_calloc(conv->packed_elems, item, &conv->packed);
}

static Status make_streams(DnnlConv *conv) {
    TRY(memory_calloc((size_t)conv->threads, sizeof *conv->streams, &conv->streams));
    for (int i = 0; i < conv->threads; i++) {
        TRY_DNNL(dnnl_stream_create(&conv->streams[i], conv->engine, dnnl_stream_default_flags));
    }
    return STATUS_OK;
}

static Status conv_build(DnnlConv *conv, const ConvNeed *need) {
    TRY_DNNL(dnnl_engine_create(&conv->engine, dnnl_cpu, 0));
    TRY(make_streams(conv));
    for (int i = 0; i < need->size_count && i < CONV_MAX_SIZES - 1; i++) {
        if (need->sizes[i] > 1) TRY(add_size(conv, need->sizes[i]));
    }
    TRY(add_size(conv, 1));
    TRY(make_map(conv));
    if (conv->direction == CONV_FILTER) conv->base.partial_elems = conv->base.sum_elems = conv->packed_elems;
    return STATUS_OK;
}

static void destroy_size(const DnnlConv *conv, ConvSize *size) {
    for (int i = 0; size->arguments != NULL && i < conv->threads * CONV_MAX_ARGS; i++) {
        if (size->arguments[i].memory != NULL) dnnl_memory_destroy(size->arguments[i].memory);
    }
    memory_free(size->arguments);
    if (size->primitive != NULL) dnnl_primitive_destroy(size->primitive);
}

static void dnnl_conv_destroy(Conv *base) {
    DnnlConv *conv = (DnnlConv *)base;
    for (int i = 0; i < conv->size_count; i++) destroy_size(conv, &conv->sizes[i]);
    for (int i = 0; conv->streams != NULL && i < conv->threads; i++) {
        if (conv->streams[i] != NULL) dnnl_stream_destroy(conv->streams[i]);
    }
    memory_free(conv->streams);
    if (conv->filters != NULL) dnnl_memory_desc_destroy(conv->filters);
    if (conv->engine != NULL) dnnl_engine_destroy(conv->engine);
    memory_free(conv->packed);
    memory_free(conv->map);
    memory_free(conv);
}

static void dnnl_conv_pack(Conv *base, const float *filters, int part, int parts) {
    DnnlConv *conv = (DnnlConv *)base;
    size_t begin, end, item = conv->precision == PRECISION_BFLOAT16 ? 2 : 4;
    conv_slice(conv->packed_elems, part, parts, &begin, &end);
    conv->kernels->gather(filters, conv->map + begin, end - begin, (char *)conv->packed + begin * item);
}

/* The largest primitive for at most `images`. */
static const ConvSize *size_for(const DnnlConv *conv, int images) {
    for (int i = 0; i < conv->size_count; i++) {
        if (conv->sizes[i].images <= images) return &conv->sizes[i];
    }
    return &conv->sizes[conv->size_count - 1];
}

static Status execute(const DnnlConv *conv, const ConvSize *size, int thread, void *const handles[CONV_MAX_ARGS]) {
    dnnl_exec_arg_t *arguments = size->arguments + thread * CONV_MAX_ARGS;
    for (int i = 0; i < CONV_MAX_ARGS; i++) {
        TRY_DNNL(dnnl_memory_set_data_handle(arguments[i].memory, handles[i]));
    }
    int before = single_begin();
    dnnl_status_t code = dnnl_primitive_execute(size->primitive, conv->streams[thread], CONV_MAX_ARGS, arguments);
    single_end(before);
    return code == dnnl_success ? STATUS_OK : fail_dnnl(code, "dnnl_primitive_execute");
}

static size_t conv_image_bytes(const DnnlConv *conv, bool output) {
    const ConvShape *s = &conv->shape;
    size_t item = conv->precision == PRECISION_BFLOAT16 ? 2 : 4;
    return output ? (size_t)(s->out_height * s->out_width) * (size_t)s->out_channels * item
                  : (size_t)(s->in_height * s->in_width) * (size_t)s->in_channels * item;
}

static Status dnnl_conv_run(Conv *base, const ConvCall *call, const void *from, void *to) {
    DnnlConv *conv = (DnnlConv *)base;
    bool forward = conv->direction == CONV_FORWARD;
    size_t from_bytes = conv_image_bytes(conv, !forward), to_bytes = conv_image_bytes(conv, forward);
    for (int images = call->images; images > 0;) {
        const ConvSize *size = size_for(conv, images);
        TRY(execute(conv, size, call->thread, (void *[]){(void *)(uintptr_t)from, conv->packed, to, call->scratch}));
        from = (const char *)from + (size_t)size->images * from_bytes;
        to = (char *)to + (size_t)size->images * to_bytes;
        images -= size->images;
    }
    return STATUS_OK;
}

/* The first primitive writes the partial sum, the others add to it. */
static Status dnnl_conv_run_filter(Conv *base, const ConvCall *call, const void *input, const void *output_gradient,
                                   float *partial) {
    DnnlConv *conv = (DnnlConv *)base;
    size_t input_bytes = conv_image_bytes(conv, false), gradient_bytes = conv_image_bytes(conv, true);
    bool add = !call->begins;
    for (int images = call->images; images > 0; add = true) {
        const ConvSize *size = size_for(conv, images);
        TRY(execute(conv, size, call->thread,
                    (void *[]){(void *)(uintptr_t)input, (void *)(uintptr_t)output_gradient, add ? call->sum : partial,
                               call->scratch}));
        if (add) conv->kernels->add(call->sum, conv->packed_elems, partial);
        input = (const char *)input + (size_t)size->images * input_bytes;
        output_gradient = (const char *)output_gradient + (size_t)size->images * gradient_bytes;
        images -= size->images;
    }
    return STATUS_OK;
}

static void dnnl_conv_unpack(const Conv *base, const float *partials, int count, float *gradient, int part, int parts) {
    const DnnlConv *conv = (const DnnlConv *)base;
    size_t begin, end;
    conv_slice(conv->filter_elems, part, parts, &begin, &end);
    conv->kernels->gather_sum(partials, (size_t)count, base->partial_elems, conv->map + begin, end - begin,
                              gradient + begin);
}

Status nn_cpu_dnnl_conv_create(const ConvNeed *need, Conv **out) {
    static const ConvTable table = {
        .destroy = dnnl_conv_destroy,
        .pack = dnnl_conv_pack,
        .run = dnnl_conv_run,
        .run_filter = dnnl_conv_run_filter,
        .unpack = dnnl_conv_unpack,
    };
    DnnlConv *conv = NULL;
    TRY(memory_calloc(1, sizeof *conv, &conv));
    pthread_once(&threads_once, find_threads);
    conv->base.table = &table;
    conv->shape = need->shape;
    conv->direction = need->direction;
    conv->precision = need->precision;
    conv->kernels = nn_cpu_kernels_for(need->precision);
    conv->threads = need->threads;
    int before = single_begin();
    Status status = conv_build(conv, need);
    single_end(before);
    if (status == STATUS_OK) {
        *out = &conv->base;
    } else {
        dnnl_conv_destroy(&conv->base);
    }
    return status;
}
