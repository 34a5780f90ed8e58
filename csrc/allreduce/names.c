/* Types, operations and algorithms as users spell them. */
#include "base/names.h"
#include "allreduce/allreduce.h"

NAMES_DEFINE(allreduce_type_name, "float32", "float16", "bfloat16", "float64", "int8", "uint8", "int16", "uint16",
             "int32", "uint32", "int64", "uint64")
NAMES_DEFINE(allreduce_op_name, "sum", "average", "min", "max", "prod")
NAMES_DEFINE(allreduce_algorithm_name, "auto", "one_shot", "sra", "ring", "two_level", "exact")
NAMES_DEFINE(allreduce_feedback_name, "none", "float32", "int8")

size_t allreduce_type_bytes(AllreduceType type) {
    static const size_t bytes[ALLREDUCE_TYPES] = {4, 2, 2, 8, 1, 1, 2, 2, 4, 4, 8, 8};
    return bytes[type];
}
