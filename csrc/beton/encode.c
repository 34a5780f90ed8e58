/* Turns values into chunks: samples are encoded in parallel, each into its own slot; those that cannot be encoded are
 * noted, and their slots closed up afterwards. Owns the threads' tools and the chunk. */
#include "beton/encode.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/pool.h"

struct BetonEncoder {
    const BetonSchema *schema; /* borrowed until beton_encoder_destroy */
    Pool *pool;                /* owned */
    EncodeJob *jobs;           /* owned, one per thread */
    int threads;
    bool skip_bad;
    BetonChunk chunk; /* its arrays are owned, for `capacity` samples */
    size_t capacity;
    unsigned char *bad; /* owned, capacity: whether a slot failed */
    size_t skip_capacity;
    pthread_mutex_t mutex; /* guards skips and first_failure */
    ErrorRecord first_failure;
    uint64_t first_failed; /* the lowest index that failed, or UINT64_MAX */
    /* the run */
    uint64_t first_index;
    const BetonValue *values; /* borrowed until the end of the run */
};

Status beton_encoder_create(const BetonSchema *schema, uint64_t seed, int threads, bool skip_bad, BetonEncoder **out) {
    Status status = STATUS_OK;
    BetonEncoder *encoder = NULL;
    TRY(memory_calloc(1, sizeof *encoder, &encoder));
    pthread_mutex_init(&encoder->mutex, NULL);
    encoder->schema = encoder->chunk.schema = schema;
    encoder->skip_bad = skip_bad;
    TRY_GOTO(pool_create(threads, &encoder->pool));
    TRY_GOTO(memory_calloc((size_t)threads, sizeof *encoder->jobs, &encoder->jobs));
    encoder->threads = threads;
    for (int i = 0; i < threads; i++) encoder->jobs[i].seed = seed;
    *out = encoder;
    encoder = NULL;
done:
    beton_encoder_destroy(encoder);
    return status;
}

static void job_fini(EncodeJob *job) {
    beton_arena_fini(&job->arena);
    beton_arena_fini(&job->scratch);
    jpeg_decoder_destroy(job->decoder);
    jpeg_encoder_destroy(job->encoder);
    resizer_destroy(job->resizer);
}

static void release_slots(BetonEncoder *encoder) {
    memory_free(encoder->chunk.records);
    memory_free(encoder->chunk.parts);
    memory_free(encoder->bad);
    encoder->chunk.records = encoder->bad = NULL;
    encoder->chunk.parts = NULL;
    encoder->capacity = 0;
}

void beton_encoder_destroy(BetonEncoder *encoder) {
    if (encoder == NULL) return;
    for (int i = 0; i < encoder->threads; i++) job_fini(&encoder->jobs[i]);
    memory_free(encoder->jobs);
    pool_destroy(encoder->pool);
    release_slots(encoder);
    memory_free(encoder->chunk.skips);
    pthread_mutex_destroy(&encoder->mutex);
    memory_free(encoder);
}

static Status encoder_reserve(BetonEncoder *encoder, size_t count) {
    const BetonSchema *schema = encoder->schema;
    if (count <= encoder->capacity) return STATUS_OK;
    release_slots(encoder);
    TRY(memory_alloc(count, (size_t)schema->record_bytes, &encoder->chunk.records));
    TRY(memory_alloc(count, sizeof(BetonChunkPart) * (schema->num_data_fields + 1), &encoder->chunk.parts));
    TRY(memory_alloc(count, 1, &encoder->bad));
    encoder->capacity = count;
    return STATUS_OK;
}

static Status encode_fields(BetonEncoder *encoder, EncodeJob *job, size_t slot, const char **field_name) {
    const BetonSchema *schema = encoder->schema;
    BetonChunk *chunk = &encoder->chunk;
    const BetonValue *row = encoder->values + slot * schema->num_fields;
    unsigned char *record = chunk->records + slot * schema->record_bytes;
    BetonChunkPart *parts = chunk->parts + slot * schema->num_data_fields;
    uint64_t total = 0;
    memset(record, 0, (size_t)schema->record_bytes);
    for (size_t i = 0; i < schema->num_fields; i++) {
        const BetonField *field = &schema->fields[i];
        BetonChunkPart unused, *part = field->has_data ? &parts[field->data_index] : &unused;
        *field_name = field->name;
        job->field = (uint32_t)i;
        if (row[i].source == BETON_SOURCE_BAD) {
            *field_name = row[i].integer < 0 ? "" : schema->fields[row[i].integer].name;
            FAIL(STATUS_FORMAT, "%s", (const char *)row[i].data);
        }
        TRY(beton_field_kind_of((unsigned)field->kind)
                ->encode(job, &schema->specs[i], &row[i], record + field->record_offset, part));
        if (field->has_data) total += part->size;
        if (total > BETON_MAX_PAGE_BYTES) FAIL(STATUS_FORMAT, "the sample's data is over the limit of 1 GiB");
    }
    return STATUS_OK;
}

/* Whether the sample is to blame, rather than the machine or the build. */
static bool is_bad_sample(Status status) {
    return status == STATUS_ARGUMENT || status == STATUS_TYPE || status == STATUS_FORMAT;
}

/* Called with the mutex held. */
static Status note_skip(BetonEncoder *encoder, uint64_t index) {
    BetonChunk *chunk = &encoder->chunk;
    if (chunk->num_skips == encoder->skip_capacity) {
        size_t grown = encoder->skip_capacity * 2 + 16;
        TRY(memory_resize(&chunk->skips, chunk->num_skips * sizeof *chunk->skips, grown * sizeof *chunk->skips));
        encoder->skip_capacity = grown;
    }
    BetonSkip *skip = &chunk->skips[chunk->num_skips++];
    *skip = (BetonSkip){.index = index};
    snprintf(skip->field, sizeof skip->field, "%.*s", (int)sizeof skip->field - 1, error_record()->field);
    snprintf(skip->reason, sizeof skip->reason, "%s", error_record()->message);
    return STATUS_OK;
}

static Status note_failure(BetonEncoder *encoder, size_t slot) {
    Status status = STATUS_OK;
    uint64_t index = encoder->first_index + slot;
    encoder->bad[slot] = 1;
    pthread_mutex_lock(&encoder->mutex);
    if (index < encoder->first_failed) {
        encoder->first_failed = index;
        encoder->first_failure = *error_record();
        encoder->first_failure.code = STATUS_FORMAT; /* whatever is wrong with a sample */
    }
    if (encoder->skip_bad) status = note_skip(encoder, index);
    pthread_mutex_unlock(&encoder->mutex);
    return status;
}

static Status encode_sample(void *context, size_t slot, int thread) {
    BetonEncoder *encoder = context;
    EncodeJob *job = &encoder->jobs[thread];
    const char *field = "";
    encoder->bad[slot] = 0;
    job->sample = encoder->first_index + slot;
    Status status = encode_fields(encoder, job, slot, &field);
    beton_arena_reset(&job->scratch);
    if (status == STATUS_OK) return STATUS_OK;
    error_at_field(status, field);
    error_at_sample(status, (int64_t)job->sample);
    return is_bad_sample(status) ? note_failure(encoder, slot) : status;
}

static void close_up(BetonEncoder *encoder, size_t count) {
    BetonChunk *chunk = &encoder->chunk;
    size_t record = (size_t)encoder->schema->record_bytes, parts = encoder->schema->num_data_fields, good = 0;
    for (size_t slot = 0; slot < count; slot++) {
        if (encoder->bad[slot]) continue;
        if (good != slot) {
            memcpy(chunk->records + good * record, chunk->records + slot * record, record);
            memcpy(chunk->parts + good * parts, chunk->parts + slot * parts, parts * sizeof *chunk->parts);
        }
        good++;
    }
    chunk->count = good;
}

static int compare_skips(const void *a, const void *b) {
    const BetonSkip *left = a, *right = b;
    return left->index < right->index ? -1 : left->index > right->index;
}

Status beton_encoder_run(BetonEncoder *encoder, uint64_t first_index, const BetonValue *values, size_t count,
                         const BetonChunk **out) {
    TRY(encoder_reserve(encoder, count));
    for (int i = 0; i < encoder->threads; i++) beton_arena_reset(&encoder->jobs[i].arena);
    encoder->chunk.num_skips = 0;
    encoder->first_failed = UINT64_MAX;
    encoder->first_index = first_index;
    encoder->values = values;
    TRY(pool_run(encoder->pool, count, encode_sample, encoder));
    if (encoder->first_failed != UINT64_MAX && !encoder->skip_bad) return error_adopt(&encoder->first_failure);
    close_up(encoder, count);
    if (encoder->chunk.num_skips > 1) {
        qsort(encoder->chunk.skips, encoder->chunk.num_skips, sizeof *encoder->chunk.skips, compare_skips);
    }
    *out = &encoder->chunk;
    return STATUS_OK;
}
