/* One slice: its segments to the wire and back, with the residual of error feedback. Quantised segments and those that
 * travel as they are differ only here. */
#include <string.h>

#include "allreduce/internal.h"
#include "base/bytes.h"

size_t plan_item_bytes(const AllreducePlan *plan) { return allreduce_type_bytes(plan->options.type); }

static bool is_float32_family(const AllreducePlan *plan) { return plan->wide_type == ALLREDUCE_F32; }

static bool is_sum(const AllreducePlan *plan) { return plan->options.op <= ALLREDUCE_AVERAGE; }

/* What a sum of scaled elements is divided by in the end. */
static double divisor_of(const AllreducePlan *plan) {
    return plan->options.op == ALLREDUCE_AVERAGE ? (double)comm_size(plan->comm) * plan->scale : 1.0;
}

bool slice_is_sum(const AllreducePlan *plan, AllreduceType type, bool fresh) {
    return type == plan->wide_type && (!fresh || plan->scale == 1.0);
}

/* By which fresh elements are divided, others not. */
static double fresh_divisor(const AllreducePlan *plan, bool fresh) { return fresh ? 1.0 / plan->scale : 1.0; }

/* A segment of a slice with what belongs to it at hand. */
typedef struct Part {
    const Segment *segment;
    const Layer *layer;
    int64_t at; /* of its first element in the slice */
} Part;

static Part part_of(const AllreducePlan *plan, const Slice *slice, int index) {
    const Segment *segment = &plan->partition.segment[slice->segment + index];
    return (Part){segment, &plan->layers[segment->layer], segment->first - slice->first};
}

static const void *offset_const(const void *base, int64_t elems, AllreduceType type) {
    return (const uint8_t *)base + elems * (int64_t)allreduce_type_bytes(type);
}

static void *offset(void *base, int64_t elems, AllreduceType type) {
    return (uint8_t *)base + elems * (int64_t)allreduce_type_bytes(type);
}

/* Elements of one type to another: equal, or both of the float32 family; divided on the way where `divisor` is not 1.
 */
static Status convert(const AllreducePlan *plan, AllreduceType from_type, const void *from, AllreduceType to_type,
                      void *to, int64_t elems, double divisor) {
    if (is_float32_family(plan) && (from_type != to_type || divisor != 1.0)) {
        QuantTarget target = {NULL, (float)divisor, (QuantType)to_type, to};
        return quantize_pass((QuantType)from_type, from, elems, &target, plan->pool);
    }
    memcpy(to, from, (size_t)elems * allreduce_type_bytes(to_type));
    if (divisor != 1.0) reduce_divide(to, elems, divisor);
    return STATUS_OK;
}

static void pad(const Segment *segment, uint64_t used, uint8_t *wire) {
    memset(wire + segment->offset + used, 0, segment->bytes - used);
}

static Status encode_raw(const AllreducePlan *plan, Part part, const void *x, AllreduceType type, double divisor,
                         uint8_t *wire) {
    int64_t elems = part.segment->elems;
    pad(part.segment, (uint64_t)elems * allreduce_type_bytes(plan->raw_type), wire);
    return convert(plan, type, offset_const(x, part.at, type), plan->raw_type, wire + part.segment->offset, elems,
                   divisor);
}

/* ---- error feedback ---- */

/* residual = (value - decoded) / scale, `residual` holding the decoded; zero where that is no number, so that one bad
 * step does not stay. */
static void keep_lost(const AllreducePlan *plan, float *residual, const float *value, int64_t elems) {
    float unscaled = (float)(1.0 / plan->scale);
    for (int64_t i = 0; i < elems; i++) {
        float lost = (value[i] - residual[i]) * unscaled;
        residual[i] = __builtin_isfinite(lost) ? lost : 0.0f;
    }
}

static Status quantise(AllreducePlan *plan, Part part, const void *x, AllreduceType type, uint8_t *to) {
    const Segment *segment = part.segment;
    QuantRandom random = {plan->options.seed, plan->call, (uint32_t)comm_rank(plan->comm), segment->quad};
    if (part.layer->spec.half_metadata && type == ALLREDUCE_F32) {
        QuantTarget target = {NULL, 1.0f, part.layer->spec.type, plan->half};
        TRY(quantize_pass(QUANT_F32, x, segment->elems, &target, plan->pool));
        x = plan->half;
        type = plan->options.type;
    }
    return quantize(&part.layer->spec, (QuantType)type, x, segment->elems, &random, plan->pool, to);
}

/* Quantises float32 values and keeps what is lost. */
static Status quantise_keeping(AllreducePlan *plan, Part part, const float *value, uint8_t *to) {
    float *residual = plan->residual + part.segment->first;
    TRY(quantise(plan, part, value, ALLREDUCE_F32, to));
    QuantTarget target = {NULL, 1.0f, QUANT_F32, residual};
    TRY(dequantize(&part.layer->spec, to, part.segment->elems, &target, plan->pool));
    keep_lost(plan, residual, value, part.segment->elems);
    return STATUS_OK;
}

/* (x + residual) * scale in plan->scaled, of elements; x + residual * scale of sums. */
static Status correct(AllreducePlan *plan, Part part, Summands from) {
    const float *residual = plan->residual + part.segment->first;
    QuantTarget target = {residual, (float)(1.0 / plan->scale), QUANT_F32, plan->scaled};
    if (from.fresh) return quantize_pass((QuantType)from.type, from.x, part.segment->elems, &target, plan->pool);
    target.accumulate = NULL;
    TRY(quantize_pass(QUANT_F32, residual, part.segment->elems, &target, plan->pool));
    target.accumulate = plan->scaled;
    target.divisor = 1.0f;
    return quantize_pass((QuantType)from.type, from.x, part.segment->elems, &target, plan->pool);
}

/* Turns fresh elements into scaled ones of the wide type, in plan->scaled. */
static Status scale(AllreducePlan *plan, Summands *from, int64_t elems) {
    if (!from->fresh || plan->scale == 1.0) return STATUS_OK;
    TRY(convert(plan, from->type, from->x, plan->wide_type, plan->scaled, elems, 1.0 / plan->scale));
    *from = (Summands){plan->scaled, plan->wide_type, false};
    return STATUS_OK;
}

/* ---- encoding ---- */

static Summands summands_of(Summands all, Part part) {
    all.x = offset_const(all.x, part.at, all.type);
    return all;
}

Status slice_encode_term(AllreducePlan *plan, const Slice *slice, Summands from, bool feedback, void *wire) {
    for (int i = 0; i < slice->segments; i++) {
        Part part = part_of(plan, slice, i);
        uint8_t *to = (uint8_t *)wire + part.segment->offset;
        Summands own = summands_of(from, part);
        if (part.layer->raw) {
            TRY(encode_raw(plan, part, from.x, from.type, fresh_divisor(plan, from.fresh), wire));
        } else if (feedback) {
            TRY(correct(plan, part, own));
            TRY(quantise_keeping(plan, part, plan->scaled, to));
        } else {
            TRY(scale(plan, &own, part.segment->elems));
            TRY(quantise(plan, part, own.x, own.type, to));
        }
    }
    return STATUS_OK;
}

Status slice_encode_result(AllreducePlan *plan, const Slice *slice, const void *sum, bool feedback, void *wire) {
    for (int i = 0; i < slice->segments; i++) {
        Part part = part_of(plan, slice, i);
        uint8_t *to = (uint8_t *)wire + part.segment->offset;
        const void *from = offset_const(sum, part.at, plan->wide_type);
        if (part.layer->raw) {
            TRY(encode_raw(plan, part, sum, plan->wide_type, divisor_of(plan), wire));
        } else if (feedback) {
            TRY(quantise_keeping(plan, part, from, to));
        } else {
            TRY(quantise(plan, part, from, ALLREDUCE_F32, to));
        }
    }
    return STATUS_OK;
}

/* ---- summation ---- */

/* to = accumulate (op) elements as they are, the result of the wide type. */
static Status combine(AllreducePlan *plan, Summands from, int64_t elems, const void *accumulate, void *to) {
    if (accumulate == NULL) {
        return convert(plan, from.type, from.x, plan->wide_type, to, elems, fresh_divisor(plan, from.fresh));
    }
    TRY(scale(plan, &from, elems));
    if (is_float32_family(plan) && is_sum(plan)) {
        QuantTarget target = {accumulate, 1.0f, QUANT_F32, to};
        return quantize_pass((QuantType)from.type, from.x, elems, &target, plan->pool);
    }
    if (from.type != plan->wide_type) {
        TRY(convert(plan, from.type, from.x, plan->wide_type, plan->other, elems, 1.0));
        from.x = plan->other;
    }
    reduce_combine(plan->wide_type, plan->options.op, accumulate, from.x, to, elems);
    return STATUS_OK;
}

static const void *accumulated(const AllreducePlan *plan, const void *accumulate, int64_t at) {
    return accumulate == NULL ? NULL : offset_const(accumulate, at, plan->wide_type);
}

static Status add_part(AllreducePlan *plan, Part part, const void *wire, const void *accumulate, void *sum) {
    const uint8_t *from = (const uint8_t *)wire + part.segment->offset;
    const void *before = accumulated(plan, accumulate, part.at);
    void *to = offset(sum, part.at, plan->wide_type);
    if (part.layer->raw) {
        return combine(plan, (Summands){from, plan->raw_type, false}, part.segment->elems, before, to);
    }
    QuantTarget target = {before, 1.0f, QUANT_F32, to};
    return dequantize(&part.layer->spec, from, part.segment->elems, &target, plan->pool);
}

Status slice_add_term(AllreducePlan *plan, const Slice *slice, const void *wire, const void *accumulate, void *sum) {
    for (int i = 0; i < slice->segments; i++) TRY(add_part(plan, part_of(plan, slice, i), wire, accumulate, sum));
    return STATUS_OK;
}

Status slice_add_last(AllreducePlan *plan, const Slice *slice, const void *wire, const void *accumulate, void *to) {
    for (int i = 0; i < slice->segments; i++) {
        Part part = part_of(plan, slice, i);
        void *end = offset(to, part.at, plan->options.type);
        if (!part.layer->raw) {
            const void *before = accumulated(plan, accumulate, part.at);
            QuantTarget target = {before, (float)divisor_of(plan), (QuantType)plan->options.type, end};
            TRY(dequantize(&part.layer->spec, (const uint8_t *)wire + part.segment->offset, part.segment->elems,
                           &target, plan->pool));
            continue;
        }
        TRY(add_part(plan, part, wire, accumulate, plan->sum));
        TRY(convert(plan, plan->wide_type, offset_const(plan->sum, part.at, plan->wide_type), plan->options.type, end,
                    part.segment->elems, divisor_of(plan)));
    }
    return STATUS_OK;
}

Status slice_add_own(AllreducePlan *plan, const Slice *slice, Summands own, bool feedback, const void *accumulate,
                     void *sum) {
    if (!feedback) return combine(plan, own, slice->elems, accumulate, sum);
    for (int i = 0; i < slice->segments; i++) {
        Part part = part_of(plan, slice, i);
        Summands from = summands_of(own, part);
        if (!part.layer->raw) {
            TRY(correct(plan, part, from));
            from = (Summands){plan->scaled, ALLREDUCE_F32, false};
        }
        TRY(combine(plan, from, part.segment->elems, accumulated(plan, accumulate, part.at),
                    offset(sum, part.at, plan->wide_type)));
    }
    return STATUS_OK;
}

Status slice_decode_result(AllreducePlan *plan, const Slice *slice, const void *wire, void *to) {
    for (int i = 0; i < slice->segments; i++) {
        Part part = part_of(plan, slice, i);
        const uint8_t *from = (const uint8_t *)wire + part.segment->offset;
        void *end = offset(to, part.at, plan->options.type);
        if (part.layer->raw) {
            TRY(convert(plan, plan->raw_type, from, plan->options.type, end, part.segment->elems, 1.0));
        } else {
            QuantTarget target = {NULL, (float)divisor_of(plan), (QuantType)plan->options.type, end};
            TRY(dequantize(&part.layer->spec, from, part.segment->elems, &target, plan->pool));
        }
    }
    return STATUS_OK;
}
