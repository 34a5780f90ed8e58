/* One slice: encoding and decoding its spans, with the residual of error feedback. Only here are quantised and
 * unquantised spans treated differently. */
#include <string.h>

#include "allreduce/host/host.h"
#include "base/bytes.h"
#include "base/float_mode.h"
#include "quant/residual.h"

static bool is_float32_family(const HostEngine *host) { return host->map->wide_type == ALLREDUCE_F32; }

static bool is_sum(const HostEngine *host) { return host->setup->options.op <= ALLREDUCE_AVERAGE; }

/* What a sum of scaled elements is finally divided by. */
static double divisor_of(const HostEngine *host) {
    return host->setup->options.op == ALLREDUCE_AVERAGE ? (double)comm_size(host->setup->comm) * host->map->scale : 1.0;
}

/* What summands are multiplied by. */
static double scale_of(const HostEngine *host, Summands from) { return from.fresh ? host->map->scale : 1.0; }

bool allreduce_is_sum(const HostEngine *host, Summands from) {
    if (!from.fresh) return from.type == host->map->wide_type;
    return wire_sums_in_place(host->map) && (is_float32_family(host) || scale_of(host, from) == 1.0);
}

static Summands sum_of(const HostEngine *host, const void *x) { return (Summands){x, host->map->wide_type, false}; }

static QuantRandom random_of(const HostEngine *host, const WireSpan *span) {
    const AllreduceSetup *setup = host->setup;
    return (QuantRandom){setup->options.seed, setup->run->call, (uint32_t)comm_rank(setup->comm), span->quad};
}

static QuantInput input_of(const HostEngine *host, Summands from, int64_t elems) {
    return (QuantInput){from.x, (QuantType)from.type, elems, (float)scale_of(host, from)};
}

/* A span of a slice, with its layer. */
typedef struct Part {
    const WireSpan *span;
    const WireLayer *layer;
    int64_t at, value_at; /* of its first element and value in the slice */
} Part;

static Part part_of(const HostEngine *host, const WireSlice *slice, int index) {
    const WireSpan *span = wire_span(host->map, slice->span + index);
    return (Part){span, wire_layer(host->map, span->layer), span->first - slice->first,
                  span->first_value - slice->first_value};
}

static const void *offset_const(const void *base, int64_t elems, AllreduceType type) {
    return (const uint8_t *)base + elems * (int64_t)allreduce_type_bytes(type);
}

static void *offset(void *base, int64_t elems, AllreduceType type) {
    return (uint8_t *)base + elems * (int64_t)allreduce_type_bytes(type);
}

/* Converts summands to another type: the same one, or both of the float32 family; scales, then divides. */
static Status convert(const HostEngine *host, Summands from, AllreduceType to_type, void *to, int64_t elems,
                      double divisor) {
    double scale = scale_of(host, from);
    bool same = from.type == to_type && scale == 1.0 && divisor == 1.0;
    if (is_float32_family(host) && !same) {
        QuantTarget target = {NULL, 1.0f, (float)divisor, (QuantType)to_type, to};
        return quantize_pass(input_of(host, from, elems), &target, host->pool);
    }
    memcpy(to, from.x, (size_t)elems * allreduce_type_bytes(to_type));
    if (!same) allreduce_divide(to, elems, divisor / scale);
    return STATUS_OK;
}

static Status encode_raw(const HostEngine *host, Part part, Summands from, double divisor, uint8_t *to) {
    int64_t elems = part.span->elems;
    uint64_t used = (uint64_t)elems * allreduce_type_bytes(host->map->raw_type);
    memset(to + used, 0, part.span->bytes - used);
    return convert(host, from, host->map->raw_type, to, elems, divisor);
}

/* ---- error feedback ---- */

/* A part's exponents, if the residual is kept in 8 bits. */
static uint8_t *exponents_of(const HostEngine *host, Part part) {
    int64_t bucket = (part.span->first - part.layer->first) / part.layer->spec.bucket_size;
    return host->codes.exponents + part.layer->first_bucket + bucket;
}

/* A part's residual as float32; after writing to it, call keep_residual. */
static float *residual_of(const HostEngine *host, Part part) {
    return host->residual == NULL ? host->fed : host->residual + part.span->first;
}

static const float *load_residual(const HostEngine *host, Part part) {
    if (host->residual == NULL) {
        quant_residual_unpack(host->codes.codes + part.span->first, exponents_of(host, part), part.span->elems,
                              part.layer->spec.bucket_size, host->fed);
    }
    return residual_of(host, part);
}

static void keep_residual(const HostEngine *host, Part part) {
    if (host->residual != NULL) return;
    quant_residual_pack(host->fed, part.span->elems, part.layer->spec.bucket_size, host->codes.codes + part.span->first,
                        exponents_of(host, part));
}

/* residual = (value - decoded) / scale, as elements again; zero where that is not finite, so that one bad step does not
 * persist. */
static Status keep_lost(HostEngine *host, Part part, const float *value, const uint8_t *wire) {
    const QuantSpec *spec = &part.layer->spec;
    int64_t elems = part.span->elems;
    float *residual = residual_of(host, part);
    QuantRandom random = random_of(host, part.span);
    QuantTarget decoded = {NULL, 1.0f, 1.0f, QUANT_F32, host->lost};
    QuantTarget kept = {NULL, 1.0f, (float)host->map->scale, QUANT_F32, residual};
    TRY(dequantize_sum(spec, wire, elems, &decoded, host->pool));
    FloatMode mode = float_mode_begin();
    for (int64_t i = 0; i < part.span->values; i++) host->lost[i] = value[i] - host->lost[i];
    float_mode_end(mode);
    TRY(quantize_leave(spec, (QuantInput){host->lost, QUANT_F32, elems, 1.0f}, &random, &kept, host->pool));
    for (int64_t i = 0; i < elems; i++) residual[i] = quant_residual_kept(residual[i]);
    keep_residual(host, part);
    return STATUS_OK;
}

static Status slice_quantize(HostEngine *host, Part part, Summands from, uint8_t *to) {
    QuantRandom random = random_of(host, part.span);
    QuantInput input = input_of(host, from, part.span->elems);
    if (part.layer->spec.half_metadata && (from.type == ALLREDUCE_F32 || input.scale != 1.0f)) {
        QuantTarget target = {NULL, 1.0f, 1.0f, part.layer->spec.type, host->half};
        TRY(quantize_pass(input, &target, host->pool));
        input = (QuantInput){host->half, part.layer->spec.type, input.elems, 1.0f};
    }
    return (from.fresh ? quantize : quantize_sum)(&part.layer->spec, input, &random, host->pool, to);
}

/* Quantises values and keeps what is lost. */
static Status quantize_keeping(HostEngine *host, Part part, const float *value, uint8_t *to) {
    TRY(slice_quantize(host, part, sum_of(host, value), to));
    return keep_lost(host, part, value, to);
}

/* Computes into host->scaled, as values: (x + residual) * scale for elements; x + residual * scale for sums. */
static Status correct(HostEngine *host, Part part, Summands from) {
    const QuantSpec *spec = &part.layer->spec;
    const float *residual = load_residual(host, part);
    int64_t elems = part.span->elems;
    QuantRandom random = random_of(host, part.span);
    if (!from.fresh) {
        QuantTarget target = {from.x, 1.0f, 1.0f, QUANT_F32, host->scaled};
        QuantInput input = {residual, QUANT_F32, elems, (float)host->map->scale};
        return quantize_enter(spec, input, &random, &target, host->pool);
    }
    QuantTarget sum = {residual, 1.0f, (float)(1.0 / host->map->scale), QUANT_F32, host->scaled};
    TRY(quantize_pass((QuantInput){from.x, (QuantType)from.type, elems, 1.0f}, &sum, host->pool));
    if (!quantize_has_domain(spec)) return STATUS_OK;
    QuantTarget in_place = {NULL, 1.0f, 1.0f, QUANT_F32, host->scaled};
    return quantize_enter(spec, (QuantInput){host->scaled, QUANT_F32, elems, 1.0f}, &random, &in_place, host->pool);
}

/* ---- encoding ---- */

/* A part's summands out of a slice's; none if there are none. */
static Summands summands_of(Summands all, Part part) {
    if (all.x != NULL) all.x = offset_const(all.x, all.fresh ? part.at : part.value_at, all.type);
    return all;
}

Status allreduce_encode_term(HostEngine *host, const WireSlice *slice, Summands from, bool feedback, void *wire) {
    for (int i = 0; i < slice->spans; i++) {
        Part part = part_of(host, slice, i);
        uint8_t *to = (uint8_t *)wire + part.span->offset;
        Summands own = summands_of(from, part);
        if (part.layer->raw) {
            TRY(encode_raw(host, part, own, 1.0, to));
        } else if (feedback) {
            TRY(correct(host, part, own));
            TRY(quantize_keeping(host, part, host->scaled, to));
        } else {
            TRY(slice_quantize(host, part, own, to));
        }
    }
    return STATUS_OK;
}

Status allreduce_encode_result(HostEngine *host, const WireSlice *slice, const void *sum, bool feedback, void *wire) {
    for (int i = 0; i < slice->spans; i++) {
        Part part = part_of(host, slice, i);
        uint8_t *to = (uint8_t *)wire + part.span->offset;
        Summands from = summands_of(sum_of(host, sum), part);
        if (part.layer->raw) {
            TRY(encode_raw(host, part, from, divisor_of(host), to));
        } else if (feedback) {
            TRY(quantize_keeping(host, part, from.x, to));
        } else {
            TRY(slice_quantize(host, part, from, to));
        }
    }
    return STATUS_OK;
}

/* ---- summation ---- */

/* to = before (op) summands, in the wide type. */
static Status combine(HostEngine *host, Summands from, int64_t elems, Summands before, void *to) {
    const WireMap *map = host->map;
    if (before.x == NULL) return convert(host, from, map->wide_type, to, elems, 1.0);
    if (is_float32_family(host) && is_sum(host)) {
        QuantTarget target = {before.x, (float)scale_of(host, before), 1.0f, QUANT_F32, to};
        return quantize_pass(input_of(host, from, elems), &target, host->pool);
    }
    if (!allreduce_is_sum(host, from)) {
        TRY(convert(host, from, map->wide_type, host->scaled, elems, 1.0));
        from.x = host->scaled;
    }
    allreduce_combine(map->wide_type, host->setup->options.op, before.x, from.x, to, elems);
    return STATUS_OK;
}

/* Adds a part to its sums; quantised ones are added as values. */
static Status add_part(HostEngine *host, Part part, const void *wire, Summands before, void *sum) {
    const WireMap *map = host->map;
    const uint8_t *from = (const uint8_t *)wire + part.span->offset;
    before = summands_of(before, part);
    void *to = offset(sum, part.value_at, map->wide_type);
    if (part.layer->raw) return combine(host, (Summands){from, map->raw_type, false}, part.span->elems, before, to);
    QuantTarget target = {before.x, (float)scale_of(host, before), 1.0f, QUANT_F32, to};
    return dequantize_sum(&part.layer->spec, from, part.span->elems, &target, host->pool);
}

Status allreduce_add_term(HostEngine *host, const WireSlice *slice, const void *wire, Summands before, void *sum) {
    for (int i = 0; i < slice->spans; i++) TRY(add_part(host, part_of(host, slice, i), wire, before, sum));
    return STATUS_OK;
}

/* to = (before + the decoded values) / divisor, elements of the buffer's type; `before` are values, or none. */
static Status decode_last(const HostEngine *host, Part part, const uint8_t *wire, Summands before, void *to) {
    QuantRandom random = random_of(host, part.span);
    QuantTarget target = {before.x, 1.0f, (float)divisor_of(host), (QuantType)host->map->type, to};
    return dequantize(&part.layer->spec, wire, part.span->elems, &target, &random, host->pool);
}

Status allreduce_add_last(HostEngine *host, const WireSlice *slice, const void *wire, const void *accumulate,
                          void *to) {
    const Summands before = sum_of(host, accumulate);
    const WireMap *map = host->map;
    for (int i = 0; i < slice->spans; i++) {
        Part part = part_of(host, slice, i);
        const uint8_t *from = (const uint8_t *)wire + part.span->offset;
        void *end = offset(to, part.at, map->type);
        if (!part.layer->raw) {
            TRY(decode_last(host, part, from, summands_of(before, part), end));
            continue;
        }
        TRY(add_part(host, part, wire, before, host->sum));
        TRY(convert(host, summands_of(sum_of(host, host->sum), part), map->type, end, part.span->elems,
                    divisor_of(host)));
    }
    return STATUS_OK;
}

/* sum = before (op) elements or values of a part, with the residual. */
static Status add_own_part(HostEngine *host, Part part, Summands own, bool feedback, Summands before, void *to) {
    if (part.layer->raw || (!own.fresh && !feedback)) return combine(host, own, part.span->values, before, to);
    if (feedback) {
        TRY(correct(host, part, own));
        return combine(host, sum_of(host, host->scaled), part.span->values, before, to);
    }
    QuantRandom random = random_of(host, part.span);
    QuantTarget target = {before.x, (float)scale_of(host, before), 1.0f, QUANT_F32, to};
    QuantInput input = input_of(host, own, part.span->elems);
    return quantize_enter(&part.layer->spec, input, &random, &target, host->pool);
}

Status allreduce_add_own(HostEngine *host, const WireSlice *slice, Summands own, bool feedback, const void *accumulate,
                         void *sum) {
    const Summands before = sum_of(host, accumulate);
    bool enters = own.fresh && host->map->any_domain;
    if (!feedback && !enters) return combine(host, own, slice->values, before, sum);
    for (int i = 0; i < slice->spans; i++) {
        Part part = part_of(host, slice, i);
        void *to = offset(sum, part.value_at, host->map->wide_type);
        TRY(add_own_part(host, part, summands_of(own, part), feedback, summands_of(before, part), to));
    }
    return STATUS_OK;
}

Status allreduce_inspect_padding(const uint8_t *bytes, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        if (bytes[i] != 0) FAIL(STATUS_TRANSPORT, "its padding is not zero");
    }
    return STATUS_OK;
}

Status allreduce_inspect(const HostEngine *host, const WireSlice *slice, const void *wire) {
    for (int i = 0; i < slice->spans; i++) {
        Part part = part_of(host, slice, i);
        const uint8_t *from = (const uint8_t *)wire + part.span->offset;
        if (!part.layer->raw) {
            TRY(quantize_inspect(&part.layer->spec, from, part.span->elems));
            continue;
        }
        uint64_t used = (uint64_t)part.span->elems * allreduce_type_bytes(host->map->raw_type);
        TRY(allreduce_inspect_padding(from + used, part.span->bytes - used));
    }
    return STATUS_OK;
}

Status allreduce_decode_result(HostEngine *host, const WireSlice *slice, const void *wire, void *to) {
    const WireMap *map = host->map;
    for (int i = 0; i < slice->spans; i++) {
        Part part = part_of(host, slice, i);
        const uint8_t *from = (const uint8_t *)wire + part.span->offset;
        void *end = offset(to, part.at, map->type);
        if (part.layer->raw) {
            TRY(convert(host, (Summands){from, map->raw_type, false}, map->type, end, part.span->elems, 1.0));
        } else {
            TRY(decode_last(host, part, from, sum_of(host, NULL), end));
        }
    }
    return STATUS_OK;
}
