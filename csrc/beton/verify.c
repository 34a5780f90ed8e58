/* The thorough check of the data, sample by sample in parallel. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/pool.h"
#include "beton/reader_private.h"
#include "image/jpeg.h"

/* One thread's tools and counts. */
typedef struct Verifier {
    JpegDecoder *decoder; /* owned, made at first use */
    uint8_t *pixels;      /* owned */
    size_t capacity;
    uint64_t num_regions, num_bytes, num_jpeg;
} Verifier;

typedef struct VerifyLoop {
    const BetonReader *reader; /* borrowed */
    const BetonVerifyOptions *options;
    uint64_t first;
    Verifier *verifiers; /* owned */
    pthread_mutex_t mutex;
    BetonVerifyReport report;
    size_t capacity; /* of report.problems */
} VerifyLoop;

static Status check_checksum(const BetonReader *reader, const BetonField *field, uint64_t sample,
                             const BetonRegion *region) {
    if (reader->checksums == NULL) return STATUS_OK;
    uint64_t index = sample * reader->num_data_fields + field->data_index;
    uint64_t wanted = load_u64(reader->checksums + 8 * index);
    uint64_t found = hash_bytes(region->data, (size_t)region->size, 0);
    if (found == wanted) return STATUS_OK;
    FAIL(STATUS_FORMAT, "the data is damaged: its checksum is %016llx, not %016llx; write it again",
         (unsigned long long)found, (unsigned long long)wanted);
}

static Status check_jpeg(Verifier *verifier, const BetonImage *image, bool decode) {
    JpegInfo info;
    size_t stride = (size_t)image->width * 3, size = stride * image->height;
    TRY(jpeg_check_pixels(image->width, image->height));
    TRY(beton_damaged_image(jpeg_parse_header(image->region.data, (size_t)image->region.size, &info)));
    if (info.width != image->width || info.height != image->height) {
        return beton_damaged_image(error_fail(STATUS_FORMAT, "JPEG of %u x %u pixels where the record has %u x %u",
                                              info.width, info.height, image->width, image->height));
    }
    if (!decode) return STATUS_OK;
    TRY(memory_reserve(&verifier->pixels, &verifier->capacity, size, 1));
    if (verifier->decoder == NULL) TRY(jpeg_decoder_create(&verifier->decoder));
    verifier->num_jpeg++;
    return beton_damaged_image(jpeg_decode(verifier->decoder, image->region.data, (size_t)image->region.size,
                                           JPEG_IDCT_ACCURATE, image->width, image->height, verifier->pixels, stride));
}

static Status check_value(const VerifyLoop *loop, Verifier *verifier, size_t index, uint64_t sample, uint64_t *offset) {
    const BetonField *field = &loop->reader->fields[index];
    BetonImage image = {0};
    if (field->kind == BETON_IMAGE)
        TRY(beton_reader_image(loop->reader, index, sample, &image));
    else
        TRY(beton_reader_region(loop->reader, index, sample, &image.region));
    BetonRegion *region = &image.region;
    *offset = region->offset;
    if (field->kind == BETON_JSON) region->size++; /* the NUL counts */
    verifier->num_regions++;
    verifier->num_bytes += region->size;
    TRY(check_checksum(loop->reader, field, sample, region));
    if (field->kind != BETON_IMAGE || image.mode != BETON_IMAGE_JPEG) return STATUS_OK;
    return check_jpeg(verifier, &image, loop->options->decode_jpeg);
}

static int compare_problems(const void *a, const void *b) {
    const BetonProblem *left = a, *right = b;
    if (left->sample != right->sample) return left->sample < right->sample ? -1 : 1;
    return strcmp(left->field, right->field);
}

/* Keeps the first problems of the file, in whatever order the threads find them. */
static void keep_first(BetonVerifyReport *report, size_t max_problems) {
    if (report->kept > 1) qsort(report->problems, report->kept, sizeof *report->problems, compare_problems);
    if (report->kept > max_problems) report->kept = max_problems;
}

/* Called with the mutex held. Up to twice as many as wanted are kept meanwhile, so that they are rarely sorted. */
static Status note(VerifyLoop *loop, const BetonField *field, uint64_t sample, uint64_t offset) {
    BetonVerifyReport *report = &loop->report;
    size_t wanted = loop->options->max_problems;
    report->num_problems++;
    if (wanted == 0) return STATUS_OK;
    if (report->kept >= wanted && report->kept - wanted == wanted) keep_first(report, wanted);
    if (report->kept == loop->capacity) {
        size_t grown = loop->capacity * 2 + 16;
        TRY(memory_resize(&report->problems, report->kept * sizeof *report->problems,
                          grown * sizeof *report->problems));
        loop->capacity = grown;
    }
    BetonProblem *problem = &report->problems[report->kept++];
    const ErrorRecord *record = error_record();
    *problem = (BetonProblem){.sample = sample, .offset = record->offset};
    if (problem->offset < 0 && offset != 0) problem->offset = (int64_t)offset;
    memcpy(problem->field, field->name, sizeof problem->field);
    snprintf(problem->reason, sizeof problem->reason, "%s", record->message);
    return STATUS_OK;
}

static Status verify_fields(VerifyLoop *loop, uint64_t sample, int thread) {
    for (size_t i = 0; i < loop->reader->num_fields; i++) {
        const BetonField *field = &loop->reader->fields[i];
        uint64_t offset = 0;
        if (!field->has_data) continue;
        Status status = check_value(loop, &loop->verifiers[thread], i, sample, &offset);
        if (status == STATUS_OK) continue;
        if (status != STATUS_FORMAT) return status;
        pthread_mutex_lock(&loop->mutex);
        status = note(loop, field, sample, offset);
        pthread_mutex_unlock(&loop->mutex);
        TRY(status);
    }
    return STATUS_OK;
}

static Status verify_sample(void *context, size_t item, int thread) {
    VerifyLoop *loop = context;
    Guard guard;
    beton_reader_enter(loop->reader, &guard);
    return beton_reader_leave(loop->reader, &guard, verify_fields(loop, loop->first + item, thread));
}

static void loop_fini(VerifyLoop *loop, int threads) {
    for (int i = 0; loop->verifiers != NULL && i < threads; i++) {
        jpeg_decoder_destroy(loop->verifiers[i].decoder);
        memory_free(loop->verifiers[i].pixels);
        loop->report.num_regions += loop->verifiers[i].num_regions;
        loop->report.num_bytes += loop->verifiers[i].num_bytes;
        loop->report.num_jpeg += loop->verifiers[i].num_jpeg;
    }
    memory_free(loop->verifiers);
    pthread_mutex_destroy(&loop->mutex);
}

Status beton_reader_verify(const BetonReader *reader, uint64_t first, uint64_t last, const BetonVerifyOptions *options,
                           BetonVerifyReport *out) {
    Status status = STATUS_OK;
    Pool *pool = NULL;
    VerifyLoop loop = {.reader = reader, .options = options, .first = first};
    if (first > last || last > reader->num_samples) {
        FAIL(STATUS_INDEX, "there are no samples %llu to %llu: the file has %llu", (unsigned long long)first,
             (unsigned long long)last, (unsigned long long)reader->num_samples);
    }
    TRY(beton_reader_check_length(reader));
    pthread_mutex_init(&loop.mutex, NULL);
    TRY_GOTO(pool_create(options->threads, &pool));
    TRY_GOTO(memory_calloc((size_t)options->threads, sizeof *loop.verifiers, &loop.verifiers));
    TRY_GOTO(pool_run(pool, (size_t)(last - first), verify_sample, &loop));
    TRY_GOTO(beton_reader_check_length(reader));
done:
    pool_destroy(pool);
    loop_fini(&loop, options->threads);
    if (status != STATUS_OK) {
        beton_verify_report_fini(&loop.report);
        return error_at_path(status, reader->path);
    }
    keep_first(&loop.report, options->max_problems);
    *out = loop.report;
    return STATUS_OK;
}

void beton_verify_report_fini(BetonVerifyReport *report) {
    memory_free(report->problems);
    *report = (BetonVerifyReport){0};
}

bool beton_reader_has_checksums(const BetonReader *reader) { return reader->extension != NULL; }
