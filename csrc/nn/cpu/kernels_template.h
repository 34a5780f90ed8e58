/* Included once by each kernels_<instruction set>.c, after it has defined KERNELS_TABLE: instantiates all kernels for
 * both storage types and defines the function that returns the tables. */
#include <pthread.h>

#include "nn/cpu/activations.h"
#include "nn/cpu/kernels.h"

#define STORAGE float
#define LOAD f32_load_some
#define STORE f32_store_some
#define NAME(name) name##_f32
#include "nn/cpu/kernels_misc.h"
#include "nn/cpu/kernels_norm.h"
#include "nn/cpu/kernels_pool.h"
#include "nn/cpu/kernels_stem.h"
#undef STORAGE
#undef LOAD
#undef STORE
#undef NAME

#define STORAGE uint16_t
#define LOAD bf16_load_some
#define STORE bf16_store_some
#define NAME(name) name##_bf16
#include "nn/cpu/kernels_misc.h"
#include "nn/cpu/kernels_norm.h"
#include "nn/cpu/kernels_pool.h"
#include "nn/cpu/kernels_stem.h"
#undef STORAGE
#undef LOAD
#undef STORE
#undef NAME

#include "nn/cpu/kernels_float.h"

#define TABLE(type)                                                                                                    \
    {                                                                                                                  \
        .pool = pool_##type, .unpool = unpool_##type, .moments = moments_##type, .normalise = normalise_##type,        \
        .reduce = reduce_##type, .norm_backward = norm_backward_##type, .stem_forward = stem_forward_##type,           \
        .stem_backward = stem_backward_##type, .global_pool = global_pool_##type, .add_maps = add_maps_##type,         \
        .global_unpool = global_unpool_##type, .global_average = global_average_##type,                                \
        .global_spread = global_spread_##type, .linear = linear, .linear_backward = linear_backward,                   \
        .to_float = to_float_##type, .from_float = from_float_##type, .gather = gather_##type,                         \
        .gather_sum = gather_sum, .sum = sum_floats, .add = add_floats                                                 \
    }

const Kernels *KERNELS_TABLE(Precision precision) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static const Kernels float32 = TABLE(f32), bfloat16 = TABLE(bf16);
    pthread_once(&once, activations_init);
    return precision == PRECISION_BFLOAT16 ? &bfloat16 : &float32;
}
