/* Outputs checked against the file and made ready: arrays, augmentations, shared decodes, resident pixels. */
#include "loader/plan.h"

#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/memory.h"

static const char *decoder_name(LoaderDecoder decoder) {
    static const char *const names[] = {
        [LOADER_INT] = "the decoder of Int",          [LOADER_FLOAT] = "the decoder of Float",
        [LOADER_ARRAY] = "the decoder of arrays",     [LOADER_BYTES] = "the decoder of Bytes and JSON",
        [LOADER_BYTE_SIZE] = "the length of a value", [LOADER_IMAGE] = "the image decoder",
    };
    return (unsigned)decoder < sizeof names / sizeof *names ? names[decoder] : "an unknown decoder";
}

static bool decodes(LoaderDecoder decoder, BetonKind kind) {
    switch (decoder) {
    case LOADER_INT:
        return kind == BETON_INT;
    case LOADER_FLOAT:
        return kind == BETON_FLOAT;
    case LOADER_ARRAY:
        return kind == BETON_ARRAY || kind == BETON_TENSOR;
    case LOADER_BYTES:
    case LOADER_BYTE_SIZE:
        return kind == BETON_BYTES || kind == BETON_JSON;
    case LOADER_IMAGE:
        return kind == BETON_IMAGE;
    }
    return false;
}

static Status find_field(const BetonReader *reader, const char *name, size_t *out) {
    char known[256] = "";
    int64_t found = beton_reader_find_field(reader, name);
    if (found >= 0) {
        *out = (size_t)found;
        return STATUS_OK;
    }
    for (size_t i = 0, used = 0; i < beton_reader_num_fields(reader) && used < sizeof known; i++) {
        used += (size_t)snprintf(known + used, sizeof known - used, "%s'%s'", i == 0 ? "" : ", ",
                                 beton_reader_field(reader, i)->name);
    }
    return error_at_path(error_fail(STATUS_ARGUMENT, "no field is named '%s'; the file has %s", name, known),
                         beton_reader_path(reader));
}

static void set_array(LoaderArray *array, BetonDtype dtype, int ndim, const uint64_t *shape) {
    *array = (LoaderArray){.dtype = dtype, .ndim = ndim, .sample_bytes = beton_dtype_bytes(dtype)};
    for (int i = 0; i < ndim; i++) {
        array->shape[i] = shape[i];
        array->sample_bytes *= (size_t)shape[i];
    }
}

/* ---- images ---- */

/* The one size of the images in use. */
static Status find_image_size(const BetonReader *reader, PlanOutput *output, const Traversal *order) {
    const BetonField *about = output->about;
    output->height = about->max_height;
    output->width = about->max_width;
    bool uniform = about->min_height == about->max_height && about->min_width == about->max_width;
    if (uniform || order->count == 0) return STATUS_OK;
    for (uint64_t i = 0; i < order->count; i++) {
        uint64_t sample = order->samples == NULL ? i : order->samples[i];
        BetonImage image;
        TRY(beton_reader_image(reader, output->field, sample, &image));
        if (i == 0) {
            output->height = image.height;
            output->width = image.width;
        }
        if (image.height == output->height && image.width == output->width) continue;
        Status status =
            error_fail(STATUS_ARGUMENT,
                       "the image is %ux%u (height x width), the first in use %ux%u: this decoder needs images of one "
                       "size; choose samples of one size with indices, or write the file with one size",
                       image.height, image.width, output->height, output->width);
        error_at_sample(status, (int64_t)sample);
        return error_at_path(error_at_field(status, about->name), beton_reader_path(reader));
    }
    return STATUS_OK;
}

/* What is decoded comes into memory of the size that the records say, which nothing else in the file bounds. */
static Status image_size(const BetonReader *reader, PlanOutput *output, const Traversal *order) {
    TRY(find_image_size(reader, output, order));
    if (output->about->num_jpeg == 0 || order->count == 0) return STATUS_OK;
    return error_at_path(jpeg_check_pixels(output->width, output->height), beton_reader_path(reader));
}

static BetonDtype image_dtype(ImageType type) {
    switch (type) {
    case IMAGE_F32:
        return BETON_F32;
    case IMAGE_F16:
        return BETON_F16;
    case IMAGE_BF16:
        return BETON_U16;
    default:
        return BETON_U8;
    }
}

static Status prepare_image(Plan *plan, PlanOutput *output, const LoaderOutput *wish, const Traversal *order) {
    static const AugmentSpec unchanged = {.type = IMAGE_U8, .layout = IMAGE_HWC};
    AugmentSpec spec = wish->image == NULL ? unchanged : *wish->image;
    int32_t height = 0, width = 0;
    output->fast_jpeg = wish->fast_jpeg;
    TRY(image_size(plan->reader, output, order));
    if (order->count > 0) {
        spec.height = (int32_t)output->height;
        spec.width = (int32_t)output->width;
        TRY(augment_create(&spec, &output->augment));
        augment_output_size(output->augment, &height, &width);
        output->scratch_at = plan->scratch_bytes;
        plan->scratch_bytes += (augment_scratch_bytes(output->augment) + 63) & ~(size_t)63;
    }
    uint64_t h = (uint64_t)height, w = (uint64_t)width;
    uint64_t hwc[] = {h, w, AUGMENT_CHANNELS}, chw[] = {AUGMENT_CHANNELS, h, w};
    set_array(&output->array, image_dtype(spec.type), 3, spec.layout == IMAGE_CHW ? chw : hwc);
    output->array.bfloat16 = spec.type == IMAGE_BF16;
    size_t pixels = (size_t)output->height * output->width * AUGMENT_CHANNELS;
    if (pixels > plan->pixels_bytes) plan->pixels_bytes = pixels;
    plan->any_jpeg = plan->any_jpeg || output->about->num_jpeg > 0;
    return STATUS_OK;
}

/* Links the output to an earlier one that decodes the same pixels. */
static void link_view(Plan *plan, size_t index) {
    for (size_t i = 0; i < index; i++) {
        PlanOutput *first = &plan->outputs[i], *own = &plan->outputs[index];
        if (first->decoder != LOADER_IMAGE || first->is_view) continue;
        if (first->field != own->field || first->fast_jpeg != own->fast_jpeg) continue;
        own->next_view = first->next_view;
        first->next_view = (int)index;
        own->is_view = true;
        return;
    }
}

/* ---- the plan ---- */

static Status prepare_output(Plan *plan, size_t index, const LoaderOutput *wish, const Traversal *order) {
    static const uint64_t one[] = {1};
    PlanOutput *output = &plan->outputs[index];
    TRY(find_field(plan->reader, wish->field, &output->field));
    output->about = beton_reader_field(plan->reader, output->field);
    output->decoder = wish->decoder;
    output->next_view = -1;
    const BetonField *about = output->about;
    if (!decodes(wish->decoder, about->kind)) {
        Status status = error_fail(STATUS_TYPE, "the field holds %s, which is not for %s", beton_kind_name(about->kind),
                                   decoder_name(wish->decoder));
        return error_at_path(error_at_field(status, about->name), beton_reader_path(plan->reader));
    }
    switch (wish->decoder) {
    case LOADER_FLOAT:
        set_array(&output->array, BETON_F64, 1, one);
        break;
    case LOADER_ARRAY:
        set_array(&output->array, about->dtype, about->ndim, about->shape);
        break;
    case LOADER_BYTES:
        set_array(&output->array, BETON_U8, 1, &about->max_bytes);
        break;
    case LOADER_IMAGE:
        TRY(error_at_field(prepare_image(plan, output, wish, order), about->name));
        link_view(plan, index);
        break;
    default:
        set_array(&output->array, BETON_I64, 1, one);
    }
    return STATUS_OK;
}

Status plan_init(Plan *plan, const BetonReader *reader, const LoaderConfig *config, const Traversal *order) {
    *plan = (Plan){.reader = reader, .seed = config->seed};
    TRY(memory_calloc(config->output_count, sizeof *plan->outputs, &plan->outputs));
    for (size_t i = 0; i < config->output_count; i++) {
        plan->count++;
        TRY(prepare_output(plan, i, &config->outputs[i], order));
    }
    return STATUS_OK;
}

void plan_fini(Plan *plan) {
    for (size_t i = 0; i < plan->count; i++) {
        augment_destroy(plan->outputs[i].augment);
        if (!plan->outputs[i].is_view) memory_free(plan->outputs[i].resident);
    }
    memory_free(plan->in_use);
    memory_free(plan->outputs);
    *plan = (Plan){0};
}

static Status mark_in_use(Plan *plan, const Traversal *order) {
    if (order->samples == NULL) return STATUS_OK;
    TRY(memory_calloc((size_t)beton_reader_num_samples(plan->reader), 1, &plan->in_use));
    for (uint64_t i = 0; i < order->count; i++) plan->in_use[order->samples[i]] = 1;
    return STATUS_OK;
}

Status plan_make_resident(Plan *plan, const Traversal *order) {
    TRY(mark_in_use(plan, order));
    for (size_t i = 0; i < plan->count; i++) {
        PlanOutput *output = &plan->outputs[i];
        if (output->decoder != LOADER_IMAGE || output->is_view || output->about->num_jpeg == 0) continue;
        uint64_t bytes, pixels = (uint64_t)output->height * output->width * AUGMENT_CHANNELS;
        if (!checked_mul(beton_reader_num_samples(plan->reader), pixels, &bytes) || bytes > memory_of_machine()) {
            FAIL(STATUS_MEMORY, "the images are too many to keep in this machine's memory of %llu bytes (resident)",
                 (unsigned long long)memory_of_machine());
        }
        TRY(memory_calloc((size_t)bytes, 1, &output->resident));
        plan->resident_bytes += (size_t)bytes;
        for (int view = output->next_view; view >= 0; view = plan->outputs[view].next_view) {
            plan->outputs[view].resident = output->resident;
        }
    }
    return STATUS_OK;
}

size_t plan_chunk(const Plan *plan, size_t batch_size, int workers) {
    size_t bytes = plan->any_jpeg ? 16 * plan->pixels_bytes : plan->pixels_bytes; /* decoding costs ten times a copy */
    for (size_t i = 0; i < plan->count; i++) bytes += plan->outputs[i].array.sample_bytes;
    size_t chunk = ((size_t)512 << 10) / (bytes + 64);
    size_t fair = batch_size / (2 * (size_t)workers);
    if (fair < 8) fair = 8;
    if (chunk > fair) chunk = fair;
    if (chunk > PLAN_MAX_CHUNK) chunk = PLAN_MAX_CHUNK;
    return chunk < 1 ? 1 : chunk;
}

void plan_read_ahead(const Plan *plan, const uint64_t *ids, size_t count) {
    BetonSpan run = {0, 0};
    Guard guard;
    beton_reader_enter(plan->reader, &guard);
    for (size_t i = 0; i < count; i++) {
        BetonSpan span;
        if (beton_reader_sample_span(plan->reader, ids[i], &span) != STATUS_OK || span.begin == span.end) continue;
        if (span.begin == run.end) {
            run.end = span.end;
            continue;
        }
        if (run.end > run.begin) beton_reader_advise(plan->reader, run, BETON_ADVICE_WILL_NEED);
        run = span;
    }
    if (run.end > run.begin) beton_reader_advise(plan->reader, run, BETON_ADVICE_WILL_NEED);
    (void)beton_reader_leave(plan->reader, &guard, STATUS_OK); /* only hints; the batch itself will fail */
}
