/* Elementwise reductions of what travels unquantised. Integers wrap; NaN propagates in MIN and MAX; every NaN result is
 * the canonical one, so that the replicas do not depend on the processor. */
#include <string.h>

#include "allreduce/host/host.h"
#include "base/bytes.h"
#include "base/float_mode.h"

/* One loop over elements of any alignment; `expression` computes r from a and b. */
#define LOOP(type, expression)                                                                                         \
    for (int64_t i = 0; i < elems; i++) {                                                                              \
        type a, b, r;                                                                                                  \
        memcpy(&a, (const uint8_t *)left + i * (int64_t)sizeof a, sizeof a);                                           \
        memcpy(&b, (const uint8_t *)right + i * (int64_t)sizeof b, sizeof b);                                          \
        r = (type)(expression);                                                                                        \
        memcpy((uint8_t *)to + i * (int64_t)sizeof r, &r, sizeof r);                                                   \
    }

/* Sums and products of integers in uint64_t wrap as the type does. */
#define DEFINE_INTEGER(name, type)                                                                                     \
    static void name(AllreduceOp op, const void *left, const void *right, void *to, int64_t elems) {                   \
        switch (op) {                                                                                                  \
        case ALLREDUCE_MIN:                                                                                            \
            LOOP(type, a < b ? a : b)                                                                                  \
            break;                                                                                                     \
        case ALLREDUCE_MAX:                                                                                            \
            LOOP(type, a > b ? a : b)                                                                                  \
            break;                                                                                                     \
        case ALLREDUCE_PROD:                                                                                           \
            LOOP(type, (uint64_t)a *(uint64_t)b)                                                                       \
            break;                                                                                                     \
        default:                                                                                                       \
            LOOP(type, (uint64_t)a + (uint64_t)b)                                                                      \
            break;                                                                                                     \
        }                                                                                                              \
    }

#define DEFINE_FLOAT(name, type, nan)                                                                                  \
    static type name##_canonical(type x) { return x == x ? x : (type)nan; }                                            \
    static void name(AllreduceOp op, const void *left, const void *right, void *to, int64_t elems) {                   \
        switch (op) {                                                                                                  \
        case ALLREDUCE_MIN:                                                                                            \
            LOOP(type, name##_canonical(a == a && !(b >= a) ? b : a))                                                  \
            break;                                                                                                     \
        case ALLREDUCE_MAX:                                                                                            \
            LOOP(type, name##_canonical(a == a && !(b <= a) ? b : a))                                                  \
            break;                                                                                                     \
        case ALLREDUCE_PROD:                                                                                           \
            LOOP(type, name##_canonical(a *b))                                                                         \
            break;                                                                                                     \
        default:                                                                                                       \
            LOOP(type, name##_canonical(a + b))                                                                        \
            break;                                                                                                     \
        }                                                                                                              \
    }

DEFINE_FLOAT(combine_f32, float, __builtin_nanf(""))
DEFINE_FLOAT(combine_f64, double, __builtin_nan(""))
DEFINE_INTEGER(combine_i8, int8_t)
DEFINE_INTEGER(combine_u8, uint8_t)
DEFINE_INTEGER(combine_i16, int16_t)
DEFINE_INTEGER(combine_u16, uint16_t)
DEFINE_INTEGER(combine_i32, int32_t)
DEFINE_INTEGER(combine_u32, uint32_t)
DEFINE_INTEGER(combine_i64, int64_t)
DEFINE_INTEGER(combine_u64, uint64_t)

typedef void (*Combine)(AllreduceOp op, const void *left, const void *right, void *to, int64_t elems);

static const Combine combines[ALLREDUCE_TYPES] = {
    [ALLREDUCE_F32] = combine_f32, [ALLREDUCE_F64] = combine_f64, [ALLREDUCE_I8] = combine_i8,
    [ALLREDUCE_U8] = combine_u8,   [ALLREDUCE_I16] = combine_i16, [ALLREDUCE_U16] = combine_u16,
    [ALLREDUCE_I32] = combine_i32, [ALLREDUCE_U32] = combine_u32, [ALLREDUCE_I64] = combine_i64,
    [ALLREDUCE_U64] = combine_u64,
};

void allreduce_combine(AllreduceType type, AllreduceOp op, const void *a, const void *b, void *to, int64_t elems) {
    FloatMode mode = float_mode_begin();
    combines[type](op, a, b, to, elems);
    float_mode_end(mode);
}

void allreduce_divide(void *x, int64_t elems, double divisor) {
    FloatMode mode = float_mode_begin();
    for (int64_t i = 0; i < elems; i++) {
        uint8_t *at = (uint8_t *)x + i * (int64_t)sizeof(double);
        store_f64(at, load_f64(at) / divisor);
    }
    float_mode_end(mode);
}
