/* One slice: its segments to the wire and back, with the residual of error feedback. Quantised segments and those that
 * travel as they are differ only here. */
#include <string.h>

#include "allreduce/host/host.h"
#include "base/bytes.h"

static bool is_float32_family(const HostEngine *host) { return host->map->wide_type == ALLREDUCE_F32; }

static bool is_sum(const HostEngine *host) { return host->setup->options.op <= ALLREDUCE_AVERAGE; }

/* What a sum of scaled elements is divided by in the end. */
static double divisor_of(const HostEngine *host) {
    return host->setup->options.op == ALLREDUCE_AVERAGE ? (double)comm_size(host->setup->comm) * host->map->scale : 1.0;
}

bool allreduce_is_sum(const HostEngine *host, AllreduceType type, bool fresh) {
    return type == host->map->wide_type && (!fresh || host->map->scale == 1.0);
}

/* By which fresh elements are divided, others not. */
static double fresh_divisor(const HostEngine *host, bool fresh) { return fresh ? 1.0 / host->map->scale : 1.0; }

/* A segment of a slice with what belongs to it at hand. */
typedef struct Part {
    const WireSegment *segment;
    const WireLayer *layer;
    int64_t at; /* of its first element in the slice */
} Part;

static Part part_of(const HostEngine *host, const WireSlice *slice, int index) {
    const WireSegment *segment = wire_segment(host->map, slice->segment + index);
    return (Part){segment, wire_layer(host->map, segment->layer), segment->first - slice->first};
}

static const void *offset_const(const void *base, int64_t elems, AllreduceType type) {
    return (const uint8_t *)base + elems * (int64_t)allreduce_type_bytes(type);
}

static void *offset(void *base, int64_t elems, AllreduceType type) {
    return (uint8_t *)base + elems * (int64_t)allreduce_type_bytes(type);
}

/* Elements of one type to another: equal, or both of the float32 family; divided on the way where `divisor` is not 1.
 */
static Status convert(const HostEngine *host, AllreduceType from_type, const void *from, AllreduceType to_type,
                      void *to, int64_t elems, double divisor) {
    if (is_float32_family(host) && (from_type != to_type || divisor != 1.0)) {
        QuantTarget target = {NULL, (float)divisor, (QuantType)to_type, to};
        return quantize_pass((QuantType)from_type, from, elems, &target, host->pool);
    }
    memcpy(to, from, (size_t)elems * allreduce_type_bytes(to_type));
    if (divisor != 1.0) allreduce_divide(to, elems, divisor);
    return STATUS_OK;
}

static void pad(const WireSegment *segment, uint64_t used, uint8_t *wire) {
    memset(wire + segment->offset + used, 0, segment->bytes - used);
}

static Status encode_raw(const HostEngine *host, Part part, const void *x, AllreduceType type, double divisor,
                         uint8_t *wire) {
    int64_t elems = part.segment->elems;
    pad(part.segment, (uint64_t)elems * allreduce_type_bytes(host->map->raw_type), wire);
    return convert(host, type, offset_const(x, part.at, type), host->map->raw_type, wire + part.segment->offset, elems,
                   divisor);
}

/* ---- error feedback ---- */

/* residual = (value - decoded) / scale, `residual` holding the decoded; zero where that is no number, so that one bad
 * step does not stay. */
static void keep_lost(const HostEngine *host, float *residual, const float *value, int64_t elems) {
    float unscaled = (float)(1.0 / host->map->scale);
    for (int64_t i = 0; i < elems; i++) {
        float lost = (value[i] - residual[i]) * unscaled;
        residual[i] = __builtin_isfinite(lost) ? lost : 0.0f;
    }
}

static Status quantise(HostEngine *host, Part part, const void *x, AllreduceType type, uint8_t *to) {
    const WireSegment *segment = part.segment;
    QuantRandom random = {host->setup->options.seed, host->setup->run->call, (uint32_t)comm_rank(host->setup->comm),
                          segment->quad};
    if (part.layer->spec.half_metadata && type == ALLREDUCE_F32) {
        QuantTarget target = {NULL, 1.0f, part.layer->spec.type, host->half};
        TRY(quantize_pass(QUANT_F32, x, segment->elems, &target, host->pool));
        x = host->half;
        type = host->map->type;
    }
    return quantize(&part.layer->spec, (QuantType)type, x, segment->elems, &random, host->pool, to);
}

/* Quantises float32 values and keeps what is lost. */
static Status quantise_keeping(HostEngine *host, Part part, const float *value, uint8_t *to) {
    float *residual = host->residual + part.segment->first;
    TRY(quantise(host, part, value, ALLREDUCE_F32, to));
    QuantTarget target = {NULL, 1.0f, QUANT_F32, residual};
    TRY(dequantize(&part.layer->spec, to, part.segment->elems, &target, host->pool));
    keep_lost(host, residual, value, part.segment->elems);
    return STATUS_OK;
}

/* (x + residual) * scale in host->scaled, of elements; x + residual * scale of sums. */
static Status correct(HostEngine *host, Part part, Summands from) {
    const float *residual = host->residual + part.segment->first;
    QuantTarget target = {residual, (float)(1.0 / host->map->scale), QUANT_F32, host->scaled};
    if (from.fresh) return quantize_pass((QuantType)from.type, from.x, part.segment->elems, &target, host->pool);
    target.accumulate = NULL;
    TRY(quantize_pass(QUANT_F32, residual, part.segment->elems, &target, host->pool));
    target.accumulate = host->scaled;
    target.divisor = 1.0f;
    return quantize_pass((QuantType)from.type, from.x, part.segment->elems, &target, host->pool);
}

/* Turns fresh elements into scaled ones of the wide type, in host->scaled. */
static Status scale(HostEngine *host, Summands *from, int64_t elems) {
    if (!from->fresh || host->map->scale == 1.0) return STATUS_OK;
    TRY(convert(host, from->type, from->x, host->map->wide_type, host->scaled, elems, 1.0 / host->map->scale));
    *from = (Summands){host->scaled, host->map->wide_type, false};
    return STATUS_OK;
}

/* ---- encoding ---- */

static Summands summands_of(Summands all, Part part) {
    all.x = offset_const(all.x, part.at, all.type);
    return all;
}

Status allreduce_encode_term(HostEngine *host, const WireSlice *slice, Summands from, bool feedback, void *wire) {
    for (int i = 0; i < slice->segments; i++) {
        Part part = part_of(host, slice, i);
        uint8_t *to = (uint8_t *)wire + part.segment->offset;
        Summands own = summands_of(from, part);
        if (part.layer->raw) {
            TRY(encode_raw(host, part, from.x, from.type, fresh_divisor(host, from.fresh), wire));
        } else if (feedback) {
            TRY(correct(host, part, own));
            TRY(quantise_keeping(host, part, host->scaled, to));
        } else {
            TRY(scale(host, &own, part.segment->elems));
            TRY(quantise(host, part, own.x, own.type, to));
        }
    }
    return STATUS_OK;
}

Status allreduce_encode_result(HostEngine *host, const WireSlice *slice, const void *sum, bool feedback, void *wire) {
    for (int i = 0; i < slice->segments; i++) {
        Part part = part_of(host, slice, i);
        uint8_t *to = (uint8_t *)wire + part.segment->offset;
        const void *from = offset_const(sum, part.at, host->map->wide_type);
        if (part.layer->raw) {
            TRY(encode_raw(host, part, sum, host->map->wide_type, divisor_of(host), wire));
        } else if (feedback) {
            TRY(quantise_keeping(host, part, from, to));
        } else {
            TRY(quantise(host, part, from, ALLREDUCE_F32, to));
        }
    }
    return STATUS_OK;
}

/* ---- summation ---- */

/* to = accumulate (op) elements as they are, the result of the wide type. */
static Status combine(HostEngine *host, Summands from, int64_t elems, const void *accumulate, void *to) {
    if (accumulate == NULL) {
        return convert(host, from.type, from.x, host->map->wide_type, to, elems, fresh_divisor(host, from.fresh));
    }
    TRY(scale(host, &from, elems));
    if (is_float32_family(host) && is_sum(host)) {
        QuantTarget target = {accumulate, 1.0f, QUANT_F32, to};
        return quantize_pass((QuantType)from.type, from.x, elems, &target, host->pool);
    }
    if (from.type != host->map->wide_type) {
        TRY(convert(host, from.type, from.x, host->map->wide_type, host->other, elems, 1.0));
        from.x = host->other;
    }
    allreduce_combine(host->map->wide_type, host->setup->options.op, accumulate, from.x, to, elems);
    return STATUS_OK;
}

static const void *accumulated(const HostEngine *host, const void *accumulate, int64_t at) {
    return accumulate == NULL ? NULL : offset_const(accumulate, at, host->map->wide_type);
}

static Status add_part(HostEngine *host, Part part, const void *wire, const void *accumulate, void *sum) {
    const uint8_t *from = (const uint8_t *)wire + part.segment->offset;
    const void *before = accumulated(host, accumulate, part.at);
    void *to = offset(sum, part.at, host->map->wide_type);
    if (part.layer->raw) {
        return combine(host, (Summands){from, host->map->raw_type, false}, part.segment->elems, before, to);
    }
    QuantTarget target = {before, 1.0f, QUANT_F32, to};
    return dequantize(&part.layer->spec, from, part.segment->elems, &target, host->pool);
}

Status allreduce_add_term(HostEngine *host, const WireSlice *slice, const void *wire, const void *accumulate,
                          void *sum) {
    for (int i = 0; i < slice->segments; i++) TRY(add_part(host, part_of(host, slice, i), wire, accumulate, sum));
    return STATUS_OK;
}

Status allreduce_add_last(HostEngine *host, const WireSlice *slice, const void *wire, const void *accumulate,
                          void *to) {
    for (int i = 0; i < slice->segments; i++) {
        Part part = part_of(host, slice, i);
        void *end = offset(to, part.at, host->map->type);
        if (!part.layer->raw) {
            const void *before = accumulated(host, accumulate, part.at);
            QuantTarget target = {before, (float)divisor_of(host), (QuantType)host->map->type, end};
            TRY(dequantize(&part.layer->spec, (const uint8_t *)wire + part.segment->offset, part.segment->elems,
                           &target, host->pool));
            continue;
        }
        TRY(add_part(host, part, wire, accumulate, host->sum));
        TRY(convert(host, host->map->wide_type, offset_const(host->sum, part.at, host->map->wide_type), host->map->type,
                    end, part.segment->elems, divisor_of(host)));
    }
    return STATUS_OK;
}

Status allreduce_add_own(HostEngine *host, const WireSlice *slice, Summands own, bool feedback, const void *accumulate,
                         void *sum) {
    if (!feedback) return combine(host, own, slice->elems, accumulate, sum);
    for (int i = 0; i < slice->segments; i++) {
        Part part = part_of(host, slice, i);
        Summands from = summands_of(own, part);
        if (!part.layer->raw) {
            TRY(correct(host, part, from));
            from = (Summands){host->scaled, ALLREDUCE_F32, false};
        }
        TRY(combine(host, from, part.segment->elems, accumulated(host, accumulate, part.at),
                    offset(sum, part.at, host->map->wide_type)));
    }
    return STATUS_OK;
}

Status allreduce_decode_result(HostEngine *host, const WireSlice *slice, const void *wire, void *to) {
    for (int i = 0; i < slice->segments; i++) {
        Part part = part_of(host, slice, i);
        const uint8_t *from = (const uint8_t *)wire + part.segment->offset;
        void *end = offset(to, part.at, host->map->type);
        if (part.layer->raw) {
            TRY(convert(host, host->map->raw_type, from, host->map->type, end, part.segment->elems, 1.0));
        } else {
            QuantTarget target = {NULL, (float)divisor_of(host), (QuantType)host->map->type, end};
            TRY(dequantize(&part.layer->spec, from, part.segment->elems, &target, host->pool));
        }
    }
    return STATUS_OK;
}
