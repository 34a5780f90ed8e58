/* Runs of buckets: the layout of a piece on the wire, the choice of kernels, the distribution over threads. Owns
 * nothing; knows nothing of ranks. */
#include "quant/quantize.h"
#include "base/checked.h"

#include <string.h>

#include "base/cpu.h"
#include "base/float_mode.h"
#include "quant/codec.h"

#define TASK_ELEMS 65536 /* what one thread takes at a time: 256 KiB of float32 */

static const QuantKernels *selected; /* NULL until a test or benchmark chooses */

static const QuantKernels *kernels_best(void) {
#if defined(__x86_64__)
    if (cpu_features()->avx512) return &quant_kernels_avx512;
    if (cpu_features()->avx2) return &quant_kernels_avx2;
#endif
    return &quant_kernels_scalar;
}

static const QuantKernels *kernels_current(void) { return selected != NULL ? selected : kernels_best(); }

const char *quantize_kernels_name(void) { return kernels_current()->name; }

bool quantize_select_kernels(const char *name) {
    const QuantKernels *found = NULL;
    if (name != NULL && strcmp(name, "scalar") == 0) found = &quant_kernels_scalar;
#if defined(__x86_64__)
    if (name != NULL && cpu_features()->avx2 && strcmp(name, "avx2") == 0) found = &quant_kernels_avx2;
    if (name != NULL && cpu_features()->avx512 && strcmp(name, "avx512") == 0) found = &quant_kernels_avx512;
#endif
    if (name != NULL && found == NULL) return false;
    selected = found;
    return true;
}

size_t quantize_item_bytes(QuantType type) { return type == QUANT_F32 ? 4 : 2; }

int quantize_default_spikes(int64_t bucket_size) {
    int64_t spikes = (bucket_size + 127) / 128;
    return spikes > QUANTIZE_MAX_SPIKES ? QUANTIZE_MAX_SPIKES : (int)spikes;
}

static Status check_bits(const QuantSpec *spec, const QuantCodecEntry *codec) {
    const int most = codec->most_bits;
    if (spec->bits >= 1 && spec->bits <= most) return STATUS_OK;
    if (most == 1) FAIL(STATUS_ARGUMENT, "bits must be 1 with the codec %s, not %d", codec->name, spec->bits);
    if (most == QUANTIZE_MAX_BITS) FAIL(STATUS_ARGUMENT, "bits must be between 1 and %d, not %d", most, spec->bits);
    FAIL(STATUS_ARGUMENT, "bits must be between 1 and %d with the codec %s, not %d", most, codec->name, spec->bits);
}

Status quantize_check(const QuantSpec *spec) {
    const QuantCodecEntry *codec = quant_codec(spec->codec);
    if (codec == NULL) FAIL(STATUS_ARGUMENT, "no codec has the number %d", (int)spec->codec);
    TRY(check_bits(spec, codec));
    if (spec->bucket_size < 1 || spec->bucket_size > (INT64_C(1) << 48)) {
        FAIL(STATUS_ARGUMENT, "bucket_size must be between 1 and 2^48, not %lld", (long long)spec->bucket_size);
    }
    if ((unsigned)spec->type > QUANT_BF16) FAIL(STATUS_ARGUMENT, "no element type has the number %d", (int)spec->type);
    if ((unsigned)spec->rounding > QUANT_STOCHASTIC) {
        FAIL(STATUS_ARGUMENT, "no rounding has the number %d", (int)spec->rounding);
    }
    if ((unsigned)spec->scale > QUANT_SCALE_UNBIASED) {
        FAIL(STATUS_ARGUMENT, "no scale has the number %d", (int)spec->scale);
    }
    if (spec->half_metadata && spec->type == QUANT_F32) {
        FAIL(STATUS_ARGUMENT, "16-bit metadata needs a float16 or bfloat16 tensor");
    }
    return codec->check(spec);
}

int64_t quantize_buckets(const QuantSpec *spec, int64_t elems) {
    return elems / spec->bucket_size + (elems % spec->bucket_size != 0);
}

int64_t quantize_values(const QuantSpec *spec, int64_t elems) {
    const QuantDomain *domain = quant_codec(spec->codec)->domain;
    int64_t rest = elems % spec->bucket_size;
    return domain == NULL || rest == 0 ? elems : elems - rest + domain->values(rest);
}

bool quantize_has_domain(const QuantSpec *spec) { return quant_codec(spec->codec)->domain != NULL; }

QuantLayout quantize_layout(const QuantSpec *spec, int64_t elems) {
    QuantLayout layout = {.buckets = quantize_buckets(spec, elems),
                          .metadata = quant_metadata_bytes(spec),
                          .spikes = (uint64_t)spec->spikes * QUANT_SPIKE_BYTES,
                          .codes = quant_codes_bytes(spec, spec->bucket_size)};
    layout.spikes_at = (uint64_t)layout.buckets * layout.metadata;
    layout.spikes_end = layout.spikes_at + (uint64_t)layout.buckets * layout.spikes;
    layout.codes_at = round_up(layout.spikes_end, QUANTIZE_PIECE_ALIGNMENT);
    layout.codes_end = layout.codes_at + (uint64_t)(elems / spec->bucket_size) * layout.codes +
                       quant_codes_bytes(spec, quantize_values(spec, elems % spec->bucket_size));
    return layout;
}

int quantize_quick_shift(const QuantSpec *spec) {
    bool codes = spec->bits == 2 || spec->bits == 4 || spec->bits == 8;
    bool plain = spec->codec == QUANT_MAXMIN && spec->rounding == QUANT_NEAREST && !spec->half_metadata;
    for (int shift = 7; plain && codes && 1 << shift <= QUANT_PIECE; shift++) {
        if (spec->bucket_size == 1 << shift) return shift;
    }
    return 0;
}

uint64_t quantize_wire_bytes(const QuantSpec *spec, int64_t elems) {
    return round_up(quantize_layout(spec, elems).codes_end, QUANTIZE_PIECE_ALIGNMENT);
}

/* A call, divided into items of `stride` buckets for the threads. */
typedef struct Run {
    const QuantKernels *kernels;
    const QuantCodecEntry *codec;
    const QuantSpec *spec;
    QuantLayout layout;
    int64_t elems, stride;
    int64_t last, last_values;  /* elements and values of the last bucket */
    uint64_t quads;             /* of random words for a whole bucket */
    const QuantDomain *crosses; /* the domain that elements enter or leave on the way; NULL: none */
    uint8_t *wire;              /* borrowed; a reader does not write through it */
    QuantRandom random;         /* with the run's own quad */
    QuantInput input;
    QuantTarget target;
} Run;

static Run run_of(const QuantSpec *spec, int64_t elems, const QuantRandom *random, bool crosses) {
    Run run = {kernels_current(), quant_codec(spec->codec), spec, quantize_layout(spec, elems), elems, .stride = 1};
    if (crosses) run.crosses = run.codec->domain;
    if (random != NULL) run.random = *random;
    run.stride = TASK_ELEMS / spec->bucket_size;
    if (run.stride < 1) run.stride = 1;
    run.last = elems - (run.layout.buckets - 1) * spec->bucket_size;
    run.last_values = quantize_values(spec, run.last);
    run.quads = ((uint64_t)spec->bucket_size + 3) / 4;
    return run;
}

/* A run whose piece is at `wire`. */
static Run run_on(const QuantSpec *spec, int64_t elems, const QuantRandom *random, bool crosses, const void *wire) {
    Run run = run_of(spec, elems, random, crosses);
    memcpy(&run.wire, &wire, sizeof wire);
    return run;
}

static QuantWire bucket_wire(const Run *run, int64_t bucket) {
    uint64_t k = (uint64_t)bucket;
    const QuantLayout *layout = &run->layout;
    return (QuantWire){
        run->wire + k * layout->metadata,
        run->wire + layout->spikes_at + k * layout->spikes,
        run->wire + layout->codes_at + k * layout->codes,
    };
}

static int64_t bucket_elems(const Run *run, int64_t bucket) {
    return bucket + 1 < run->layout.buckets ? run->spec->bucket_size : run->last;
}

static int64_t bucket_values(const Run *run, int64_t bucket) {
    return bucket + 1 < run->layout.buckets ? run->spec->bucket_size : run->last_values;
}

static QuantRandom bucket_random(const Run *run, int64_t bucket) {
    QuantRandom random = run->random;
    random.quad += (uint64_t)bucket * run->quads;
    return random;
}

/* `count` elements or values of the run's input, from a bucket's first on. */
static QuantInput bucket_input(const Run *run, int64_t bucket, int64_t count) {
    QuantInput input = run->input;
    input.x = (const uint8_t *)input.x + bucket * run->spec->bucket_size * (int64_t)quantize_item_bytes(input.type);
    input.elems = count;
    return input;
}

/* The target of the elements from `first` on. */
static QuantTarget target_from(const QuantTarget *target, int64_t first) {
    QuantTarget moved = *target;
    if (moved.accumulate != NULL) moved.accumulate = (const uint8_t *)moved.accumulate + first * 4;
    moved.to = (uint8_t *)moved.to + first * (int64_t)quantize_item_bytes(moved.type);
    return moved;
}

static QuantTarget bucket_target(const Run *run, int64_t bucket) {
    return target_from(&run->target, bucket * run->spec->bucket_size);
}

/* ---- one bucket ---- */

static void encode_bucket(const Run *run, int64_t bucket, QuantInput input, const QuantRandom *random) {
    if (run->spec->rounding != QUANT_STOCHASTIC) random = NULL;
    run->codec->encode(run->kernels, run->spec, input, random, bucket_wire(run, bucket));
}

/* Elements to codes, through their domain's values. */
static void cross_and_encode_bucket(const Run *run, int64_t bucket, const QuantRandom *random) {
    float values[QUANT_DOMAIN_MAX_VALUES];
    run->crosses->enter(run->kernels, bucket_input(run, bucket, bucket_elems(run, bucket)), random, values);
    encode_bucket(run, bucket, (QuantInput){values, QUANT_F32, bucket_values(run, bucket), 1.0f}, random);
}

static Status quantize_bucket(const Run *run, int64_t bucket) {
    QuantRandom random = bucket_random(run, bucket);
    if (run->crosses != NULL) {
        cross_and_encode_bucket(run, bucket, &random);
    } else {
        encode_bucket(run, bucket, bucket_input(run, bucket, bucket_values(run, bucket)), &random);
    }
    return STATUS_OK;
}

static Status decode_bucket(const Run *run, int64_t bucket, const QuantTarget *target) {
    return run->codec->decode(run->kernels, run->spec, bucket_wire(run, bucket), bucket_values(run, bucket), target);
}

/* Codes to elements, through their domain's values; terms are added in the domain. */
static Status decode_and_cross_bucket(const Run *run, int64_t bucket, QuantTarget end) {
    float values[QUANT_DOMAIN_MAX_VALUES];
    QuantTarget inner = {end.accumulate, end.scale, 1.0f, QUANT_F32, values};
    QuantRandom random = bucket_random(run, bucket);
    TRY(decode_bucket(run, bucket, &inner));
    run->crosses->leave(run->kernels, values, bucket_values(run, bucket), &random);
    end.accumulate = NULL;
    run->kernels->pass((QuantInput){values, QUANT_F32, bucket_elems(run, bucket), 1.0f}, &end);
    return STATUS_OK;
}

static Status dequantize_bucket(const Run *run, int64_t bucket) {
    QuantTarget target = bucket_target(run, bucket);
    return run->crosses == NULL ? decode_bucket(run, bucket, &target) : decode_and_cross_bucket(run, bucket, target);
}

static Status enter_bucket(const Run *run, int64_t bucket) {
    float values[QUANT_DOMAIN_MAX_VALUES];
    QuantRandom random = bucket_random(run, bucket);
    QuantTarget target = bucket_target(run, bucket);
    run->crosses->enter(run->kernels, bucket_input(run, bucket, bucket_elems(run, bucket)), &random, values);
    run->kernels->pass((QuantInput){values, QUANT_F32, bucket_values(run, bucket), 1.0f}, &target);
    return STATUS_OK;
}

static Status leave_bucket(const Run *run, int64_t bucket) {
    float values[QUANT_DOMAIN_MAX_VALUES];
    QuantRandom random = bucket_random(run, bucket);
    QuantTarget inner = {NULL, 1.0f, 1.0f, QUANT_F32, values}, target = bucket_target(run, bucket);
    int64_t count = bucket_values(run, bucket);
    run->kernels->pass(bucket_input(run, bucket, count), &inner);
    run->crosses->leave(run->kernels, values, count, &random);
    run->kernels->pass((QuantInput){values, QUANT_F32, bucket_elems(run, bucket), 1.0f}, &target);
    return STATUS_OK;
}

/* ---- all of them, on the threads ---- */

static Status over_buckets(const Run *run, size_t item, Status (*each)(const Run *run, int64_t bucket)) {
    Status status = STATUS_OK;
    int64_t first = (int64_t)item * run->stride, end = first + run->stride;
    FloatMode mode = float_mode_begin();
    if (end > run->layout.buckets) end = run->layout.buckets;
    for (int64_t b = first; b < end && status == STATUS_OK; b++) status = each(run, b);
    float_mode_end(mode);
    return status;
}

#define DEFINE_ITEM(verb)                                                                                              \
    static Status verb##_item(void *context, size_t item, int thread) {                                                \
        (void)thread;                                                                                                  \
        return over_buckets(context, item, verb##_bucket);                                                             \
    }
DEFINE_ITEM(quantize)
DEFINE_ITEM(dequantize)
DEFINE_ITEM(enter)
DEFINE_ITEM(leave)

static Status pass_item(void *context, size_t item, int thread) {
    (void)thread;
    const Run *run = context;
    int64_t first = (int64_t)item * TASK_ELEMS, left = run->elems - first;
    QuantTarget target = target_from(&run->target, first);
    QuantInput input = run->input;
    input.x = (const uint8_t *)input.x + first * (int64_t)quantize_item_bytes(input.type);
    input.elems = left < TASK_ELEMS ? left : TASK_ELEMS;
    FloatMode mode = float_mode_begin();
    run->kernels->pass(input, &target);
    float_mode_end(mode);
    return STATUS_OK;
}

static Status run_items(Pool *pool, int64_t items, PoolTask task, Run *run) {
    if (pool != NULL && items > 1) return pool_run(pool, (size_t)items, task, run);
    for (int64_t i = 0; i < items; i++) TRY(task(run, (size_t)i, 0));
    return STATUS_OK;
}

static int64_t items_of(const Run *run) { return (run->layout.buckets + run->stride - 1) / run->stride; }

static Status encode_run(const QuantSpec *spec, QuantInput from, const QuantRandom *random, bool crosses, Pool *pool,
                         void *wire) {
    if (from.elems == 0) return STATUS_OK;
    Run run = run_on(spec, from.elems, random, crosses, wire);
    run.input = from;
    const QuantLayout *layout = &run.layout;
    memset(run.wire + layout->spikes_end, 0, layout->codes_at - layout->spikes_end);
    memset(run.wire + layout->codes_end, 0, round_up(layout->codes_end, QUANTIZE_PIECE_ALIGNMENT) - layout->codes_end);
    return run_items(pool, items_of(&run), quantize_item, &run);
}

Status quantize(const QuantSpec *spec, QuantInput from, const QuantRandom *random, Pool *pool, void *wire) {
    return encode_run(spec, from, random, true, pool, wire);
}

Status quantize_sum(const QuantSpec *spec, QuantInput sum, const QuantRandom *random, Pool *pool, void *wire) {
    return encode_run(spec, sum, random, false, pool, wire);
}

Status dequantize(const QuantSpec *spec, const void *wire, int64_t elems, const QuantTarget *target,
                  const QuantRandom *random, Pool *pool) {
    Run run = run_on(spec, elems, random, true, wire);
    run.target = *target;
    return run_items(pool, items_of(&run), dequantize_item, &run);
}

Status dequantize_sum(const QuantSpec *spec, const void *wire, int64_t elems, const QuantTarget *target, Pool *pool) {
    Run run = run_on(spec, elems, NULL, false, wire);
    run.target = *target;
    return run_items(pool, items_of(&run), dequantize_item, &run);
}

/* Enters or leaves a domain; without one, elements are passed on. */
static Status cross(const QuantSpec *spec, QuantInput from, const QuantRandom *random, const QuantTarget *target,
                    PoolTask task, Pool *pool) {
    Run run = run_of(spec, from.elems, random, true);
    if (run.crosses == NULL) return quantize_pass(from, target, pool);
    run.input = from;
    run.target = *target;
    return run_items(pool, items_of(&run), task, &run);
}

Status quantize_enter(const QuantSpec *spec, QuantInput from, const QuantRandom *random, const QuantTarget *target,
                      Pool *pool) {
    return cross(spec, from, random, target, enter_item, pool);
}

Status quantize_leave(const QuantSpec *spec, QuantInput sum, const QuantRandom *random, const QuantTarget *target,
                      Pool *pool) {
    return cross(spec, sum, random, target, leave_item, pool);
}

Status quantize_pass(QuantInput from, const QuantTarget *target, Pool *pool) {
    Run run = {.kernels = kernels_current(), .elems = from.elems, .input = from, .target = *target};
    return run_items(pool, (from.elems + TASK_ELEMS - 1) / TASK_ELEMS, pass_item, &run);
}
