// rooms: base device image beton augment loader
/* The loader from C, as the trainer drives it: orders, batches, stopping, kept batches, failures. Runs under ASan, and
 * under TSan. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "augment/augment.h"
#include "base/bytes.h"
#include "base/memory.h"
#include "check.h"
#include "loader/loader.h"

enum { SAMPLES = 300, SIDE = 8, PIXELS = SIDE * SIDE * 3, RECORD = 24, PAGE = 1 << 16 };

static char path[] = "/tmp/cgxffcv-loader-XXXXXX";

/* A file of raw images, whose pixels all hold sample % 251, and their numbers. */
static void write_file(void) {
    const size_t metadata = 24 + 2 * 1041, data = PAGE, table = data + PAGE * 1, total = table + SAMPLES * 24;
    unsigned char *file = NULL;
    CHECK_OK(memory_calloc(total, 1, &file));
    store_u16(file, 2);
    store_u16(file + 2, 2);
    store_u32(file + 4, PAGE);
    store_u64(file + 8, SAMPLES);
    store_u64(file + 16, table);
    file[24] = 2;
    memcpy(file + 25, "image", 5);
    file[24 + 1041] = 1;
    memcpy(file + 25 + 1041, "label", 5);
    for (size_t i = 0; i < SAMPLES; i++) {
        unsigned char *record = file + metadata + i * RECORD;
        uint64_t pointer = data + i * PIXELS;
        record[0] = 1;
        store_u16(record + 1, SIDE);
        store_u16(record + 3, SIDE);
        store_u64(record + 5, pointer);
        store_i64(record + 16, (int64_t)i * 3);
        memset(file + pointer, (int)(i % 251), PIXELS);
        store_u64(file + table + i * 24, i);
        store_u64(file + table + i * 24 + 8, pointer);
        store_u64(file + table + i * 24 + 16, PIXELS);
    }
    int descriptor = mkstemp(path);
    CHECK(descriptor >= 0 && write(descriptor, file, total) == (ssize_t)total);
    close(descriptor);
    memory_free(file);
}

static const AugmentSpec spec = {
    .op_count = 2,
    .ops = {{.kind = AUGMENT_flip, .draw = 1, .as.flip = {0.5}},
            {.kind = AUGMENT_translate, .draw = 3, .as.translate = {1, {.colour = {255, 255, 255}}}}},
    .type = IMAGE_F32,
    .layout = IMAGE_CHW};
static const LoaderOutput outputs[] = {{.field = "image", .decoder = LOADER_IMAGE, .image = &spec},
                                       {.field = "label", .decoder = LOADER_INT}};

static LoaderConfig config_of(int workers) {
    LoaderConfig config = loader_config_default();
    config.path = path;
    config.outputs = outputs;
    config.output_count = 2;
    config.batch_size = 32;
    config.workers = workers;
    config.order = LOADER_RANDOM;
    config.seed = 99;
    return config;
}

/* Whether a batch holds what its ids say. */
static bool is_right(const LoaderBatch *batch) {
    const float *pixels = batch->arrays[0];
    const int64_t *labels = batch->arrays[1];
    for (size_t i = 0; i < batch->count; i++) {
        float middle = pixels[i * PIXELS + SIDE * (SIDE / 2) + SIDE / 2];
        if (labels[i] != (int64_t)batch->ids[i] * 3 || middle != (float)(batch->ids[i] % 251)) return false;
    }
    return true;
}

static void test_passes(int workers) {
    Loader *loader = NULL;
    LoaderConfig config = config_of(workers);
    uint64_t order[SAMPLES];
    CHECK_OK(loader_create(&config, &loader));
    CHECK(loader_samples(loader) == SAMPLES && loader_batches_of(loader, SAMPLES) == 9);
    CHECK(loader_position(loader).batch == LOADER_NO_BATCH);
    LoaderBatch *none = (LoaderBatch *)loader;
    CHECK_OK(loader_next(loader, NULL, NULL, &none));
    CHECK(none == NULL);
    for (uint32_t epoch = 0; epoch < 20; epoch++) {
        CHECK_OK(loader_order(loader, epoch, order));
        CHECK_OK(loader_begin(loader, &(LoaderPass){.epoch = epoch, .first_batch = epoch % 5}));
        uint64_t index = epoch % 5;
        for (;; index++) {
            LoaderBatch *batch;
            CHECK_OK(loader_next(loader, NULL, NULL, &batch));
            if (batch == NULL) break;
            CHECK(batch->index == index && batch->epoch == epoch && batch->count == 32 && batch->array_count == 2);
            CHECK(memcmp(batch->ids, order + index * 32, 32 * sizeof *order) == 0);
            CHECK(is_right(batch));
            loader_batch_release(batch);
        }
        CHECK(index == 9);
        CHECK(loader_position(loader).epoch == epoch + 1 && loader_position(loader).batch == 0);
    }
    LoaderBatch *first;
    CHECK_OK(loader_begin(loader, &(LoaderPass){.epoch = 1, .sequential = true}));
    CHECK_OK(loader_next(loader, NULL, NULL, &first));
    for (uint64_t i = 0; i < 32; i++) CHECK(first->ids[i] == i);
    loader_batch_release(first);
    CHECK(loader_begin(loader, &(LoaderPass){.first_batch = 10}) == STATUS_ARGUMENT);
    loader_destroy(loader);
}

/* Passes left at every point, and a new one begun at once. */
static void test_early_ends(void) {
    Loader *loader = NULL;
    LoaderConfig config = config_of(3);
    LoaderStats stats;
    CHECK_OK(loader_create(&config, &loader));
    for (int round = 0; round < 300; round++) {
        CHECK_OK(loader_begin(loader, &(LoaderPass){.epoch = (uint32_t)round}));
        for (int i = 0; i < round % 10; i++) {
            LoaderBatch *batch;
            CHECK_OK(loader_next(loader, NULL, NULL, &batch));
            CHECK(batch == NULL ? i == 9 : is_right(batch));
            loader_batch_release(batch);
        }
        if (round % 3 == 0) loader_stop(loader);
        if (round % 3 == 0 && round % 10 != 9) CHECK(loader_position(loader).batch == (uint64_t)(round % 10));
    }
    loader_stats(loader, &stats);
    CHECK(stats.slots <= 5 && stats.slots_held == 0 && stats.workers == 3);
    loader_destroy(loader);
}

typedef struct Hoard {
    LoaderBatch *batches[9];
} Hoard;

static void *release_all(void *argument) {
    Hoard *hoard = argument;
    for (int i = 0; i < 9; i++) {
        if (!is_right(hoard->batches[i])) return hoard;
        loader_batch_release(hoard->batches[i]);
    }
    return NULL;
}

/* Batches of several passes released by other threads, some after the loader is gone. */
static void test_kept_batches(void) {
    Loader *loader = NULL;
    LoaderConfig config = config_of(2);
    Hoard hoards[6];
    pthread_t threads[6];
    void *bad;
    CHECK_OK(loader_create(&config, &loader));
    for (int h = 0; h < 6; h++) {
        CHECK_OK(loader_begin(loader, &(LoaderPass){.epoch = (uint32_t)h}));
        for (int i = 0; i < 9; i++) CHECK_OK(loader_next(loader, NULL, NULL, &hoards[h].batches[i]));
        CHECK(pthread_create(&threads[h], NULL, release_all, &hoards[h]) == 0);
    }
    loader_destroy(loader);
    for (int h = 0; h < 6; h++) {
        CHECK(pthread_join(threads[h], &bad) == 0 && bad == NULL);
    }
}

static void test_gather_and_resident(void) {
    static const uint64_t wanted[] = {7, 299, 7, 0};
    Loader *loader = NULL, *resident = NULL;
    LoaderConfig config = config_of(2);
    LoaderBatch *first, *second;
    CHECK_OK(loader_create(&config, &loader));
    config.resident = true;
    CHECK_OK(loader_create(&config, &resident));
    CHECK_OK(loader_gather(loader, wanted, 4, 3, false, &first));
    CHECK_OK(loader_gather(resident, wanted, 4, 3, false, &second));
    CHECK(is_right(first) && memcmp(first->arrays[0], second->arrays[0], 4 * PIXELS * sizeof(float)) == 0);
    CHECK(memcmp(first->ids, wanted, sizeof wanted) == 0);
    loader_batch_release(first);
    CHECK(loader_gather(loader, (uint64_t[]){300}, 1, 0, false, &first) == STATUS_INDEX);
    loader_destroy(loader);
    loader_destroy(resident);
    loader_batch_release(second);
}

/* Chains that go through scratch images, the largest of which is in the middle. */
static void test_crops_larger_than_the_image(void) {
    static const AugmentSpec chain = {
        .op_count = 3,
        .ops = {{.kind = AUGMENT_cutout, .draw = 4, .as.cutout.crop_size = {1, 1}},
                {.kind = AUGMENT_crop, .draw = 5, .as.crop = {.padding = 9, .size = {26, 26}}},
                {.kind = AUGMENT_crop, .draw = 6, .as.crop.size = {4, 4}}},
        .type = IMAGE_U8};
    static const LoaderOutput output = {.field = "image", .decoder = LOADER_IMAGE, .image = &chain};
    Loader *loader = NULL;
    LoaderConfig config = config_of(2);
    LoaderBatch *batch = NULL;
    config.outputs = &output;
    config.output_count = 1;
    CHECK_OK(loader_create(&config, &loader));
    CHECK_OK(loader_gather(loader, (uint64_t[]){9, 250}, 2, 0, true, &batch));
    const uint8_t *pixels = batch->arrays[0];
    for (int i = 0; i < 4 * 4 * 3; i++) CHECK(pixels[i] == 9 && pixels[4 * 4 * 3 + i] == 250);
    loader_batch_release(batch);
    CHECK_OK(loader_gather(loader, (uint64_t[]){9, 250}, 2, 0, false, &batch)); /* with the hole, by AddressSanitizer */
    loader_batch_release(batch);
    loader_destroy(loader);
}

/* After normalisation there are holes only, and nothing that is not normalised. */
static void test_chains_that_are_refused(void) {
    Augment *augment = NULL;
    AugmentSpec chain = {.height = 8,
                         .width = 8,
                         .op_count = 2,
                         .ops = {{.kind = AUGMENT_cutout, .draw = 4, .normalized = true, .as.cutout.crop_size = {1, 1}},
                                 {.kind = AUGMENT_cutout, .draw = 5, .as.cutout.crop_size = {1, 1}}},
                         .normalize = true,
                         .std = {.value = {1, 1, 1}},
                         .normalized_type = IMAGE_F32,
                         .type = IMAGE_F32};
    CHECK(augment_create(&chain, &augment) == STATUS_ARGUMENT && augment == NULL);
    chain.ops[1].normalized = true;
    CHECK_OK(augment_create(&chain, &augment));
    augment_destroy(augment);
    chain.ops[1] = (AugmentOp){.kind = AUGMENT_flip, .normalized = true};
    CHECK(augment_create(&chain, &augment) == STATUS_ARGUMENT);
}

static int32_t sum_of_channel(void *to, const void *from, uint64_t sample) {
    const float *pixels = from;
    double sum = (double)sample;
    for (int i = 0; i < SIDE * SIDE; i++) sum += (double)pixels[i];
    memcpy(to, &sum, sizeof sum);
    return 0;
}

static int32_t twice(void *to, const void *from, uint64_t sample) {
    double value;
    (void)sample;
    memcpy(&value, from, sizeof value);
    value *= 2;
    memcpy(to, &value, sizeof value);
    return 0;
}

static int32_t refuse_seven(void *to, const void *from, uint64_t sample) {
    memcpy(to, from, sizeof(int64_t));
    return sample == 7 ? -2 : 0;
}

/* Functions behind the decoder, of rows as they come from it, in any number of threads. */
static void test_functions(int workers) {
    const LoaderStep steps[] = {
        {.call = sum_of_channel, .dtype = BETON_F64}, {.call = twice, .same = true}, {.call = twice, .same = true}};
    LoaderOutput wanted[] = {
        outputs[0], outputs[1], {.field = "image", .decoder = LOADER_IMAGE, .steps = steps, .step_count = 3}};
    const AugmentSpec plain = {.type = IMAGE_F32, .layout = IMAGE_CHW};
    LoaderConfig config = config_of(workers);
    Loader *loader = NULL;
    wanted[2].image = &plain;
    config.outputs = wanted;
    config.output_count = 3;
    CHECK_OK(loader_create(&config, &loader));
    CHECK(loader_array(loader, 2)->ndim == 0 && loader_array(loader, 2)->sample_bytes == sizeof(double));
    for (uint32_t epoch = 0; epoch < 5; epoch++) {
        CHECK_OK(loader_begin(loader, &(LoaderPass){.epoch = epoch}));
        for (;;) {
            LoaderBatch *batch;
            CHECK_OK(loader_next(loader, NULL, NULL, &batch));
            if (batch == NULL) break;
            const double *sums = batch->arrays[2];
            CHECK(is_right(batch));
            for (size_t i = 0; i < batch->count; i++) {
                const uint64_t id = batch->ids[i];
                CHECK(sums[i] == 4 * ((double)(SIDE * SIDE * (id % 251)) + (double)id));
            }
            loader_batch_release(batch);
        }
    }
    loader_destroy(loader);
    const LoaderStep bad = {.call = refuse_seven, .same = true};
    wanted[1] = (LoaderOutput){.field = "label", .decoder = LOADER_INT, .steps = &bad, .step_count = 1};
    CHECK_OK(loader_create(&config, &loader));
    LoaderBatch *batch = NULL;
    CHECK(loader_gather(loader, (const uint64_t[]){3, 7, 9}, 3, 0, false, &batch) == STATUS_FORMAT);
    CHECK(error_record()->sample == 7 && strstr(error_record()->message, "function 1 returned -2") != NULL);
    loader_destroy(loader);
    wanted[1].step_count = LOADER_MAX_STEPS + 1;
    CHECK(loader_create(&config, &loader) == STATUS_ARGUMENT);
}

/* Rectangles of images of other formats, in memory that ends with them: what lies around is neither read nor written.
 */
static void test_resampling_keeps_within(void) {
    const size_t bytes_of[] = {[RESIZE_U8] = 1, [RESIZE_U16] = 2, [RESIZE_F32] = 4};
    for (uint32_t side = 1; side <= 9; side += 4) {
        for (uint32_t to = 1; to <= 13; to += 3) {
            for (int type = RESIZE_U8; type <= RESIZE_F32; type++) {
                const uint32_t channels = 1 + side % 4, width = side + 2;
                const size_t pixel = channels * bytes_of[type], size = (size_t)side * width * pixel;
                unsigned char *in = NULL, *out = NULL;
                CHECK_OK(memory_calloc(size, 1, &in));
                CHECK_OK(memory_alloc((size_t)to * (to + 1) * pixel, 1, &out));
                const ResizeImage image = {(ResizeValue)type, channels, {width, side}, in, width * pixel};
                for (int filter = RESIZE_AREA; filter <= RESIZE_NEAREST; filter++) {
                    memset(out, 1, (size_t)to * (to + 1) * pixel);
                    CHECK_OK(resize_general(&image, (ResizeFilter)filter, (ImageSize){to + 1, to}, out));
                    for (size_t i = 0; i < (size_t)to * (to + 1) * pixel; i++) CHECK(out[i] == 0);
                }
                memory_free(in);
                memory_free(out);
            }
        }
    }
}

/* A batch much larger than the data takes no more memory than the data. */
static void test_large_batch(void) {
    Loader *loader = NULL;
    LoaderConfig config = config_of(2);
    LoaderBatch *batch = NULL;
    LoaderStats stats;
    config.batch_size = (size_t)1 << 40;
    config.drop_last = false;
    CHECK_OK(loader_create(&config, &loader));
    CHECK_OK(loader_begin(loader, &(LoaderPass){.epoch = 1}));
    CHECK_OK(loader_next(loader, NULL, NULL, &batch));
    CHECK(batch->count == SAMPLES && is_right(batch));
    loader_stats(loader, &stats);
    CHECK(stats.slot_bytes < SAMPLES * (PIXELS * 4 + 16) + 256);
    loader_batch_release(batch);
    loader_destroy(loader);
}

static Status refuse(void *context) {
    ++*(int *)context;
    return STATUS_INTERRUPTED;
}

static void test_refusals(void) {
    Loader *loader = NULL;
    LoaderConfig config = config_of(1);
    config.batch_size = 0;
    CHECK(loader_create(&config, &loader) == STATUS_ARGUMENT && loader == NULL);
    config = config_of(1);
    config.rank = 1;
    CHECK(loader_create(&config, &loader) == STATUS_ARGUMENT);
    config = config_of(1);
    config.path = "/proc/nonexistent";
    CHECK(loader_create(&config, &loader) == STATUS_IO);
    config = config_of(1);
    LoaderOutput wrong = {.field = "label", .decoder = LOADER_IMAGE};
    config.outputs = &wrong;
    config.output_count = 1;
    CHECK(loader_create(&config, &loader) == STATUS_TYPE);
    wrong.field = "labels";
    CHECK(loader_create(&config, &loader) == STATUS_ARGUMENT);
    config = config_of(1);
    config.batch_size = SIZE_MAX / 4096;
    config.world_size = 4096;
    CHECK(loader_create(&config, &loader) == STATUS_ARGUMENT && loader == NULL);
    int polls = 0;
    config = config_of(1);
    CHECK_OK(loader_create(&config, &loader));
    CHECK_OK(loader_begin(loader, &(LoaderPass){.epoch = 0}));
    LoaderBatch *batch = NULL;
    Status status = loader_next(loader, refuse, &polls, &batch);
    CHECK(polls == 0 ? status == STATUS_OK : status == STATUS_INTERRUPTED);
    loader_batch_release(batch);
    loader_destroy(loader);
}

int main(void) {
    write_file();
    for (int workers = 1; workers <= 4; workers++) test_passes(workers);
    test_early_ends();
    test_kept_batches();
    test_gather_and_resident();
    test_crops_larger_than_the_image();
    test_chains_that_are_refused();
    for (int workers = 1; workers <= 4; workers += 3) test_functions(workers);
    test_resampling_keeps_within();
    test_large_batch();
    test_refusals();
    unlink(path);
    return check_result();
}
