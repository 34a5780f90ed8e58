/* The names of enum values, for descriptions and messages. */
#include "base/names.h"
#include "nn/model.h"

NAMES_DEFINE(nn_node_kind_name, "conv", "norm", "head")
NAMES_DEFINE(nn_activation_name, "none", "relu", "gelu", "silu")
NAMES_DEFINE(nn_initialisation_name, "uniform", "identity", "unit", "zero")
NAMES_DEFINE(nn_pool_place_name, "none", "before", "after")
NAMES_DEFINE(nn_head_pool_name, "max", "average")
NAMES_DEFINE(nn_residual_place_name, "none", "before", "after")
NAMES_DEFINE(nn_backend_name, "cpu", "cuda")
NAMES_DEFINE(nn_precision_name, "auto", "float32", "bfloat16", "float16")
NAMES_DEFINE(nn_convolution_name, "auto", "direct", "winograd2", "winograd4")
NAMES_DEFINE(nn_layer_kind_name, "filters", "bias", "norm_scale", "norm_bias", "linear")
NAMES_DEFINE(nn_reduction_name, "mean", "sum")
