/* The names of image types and layouts. */
#include "base/names.h"
#include "augment/augment.h"

NAMES_DEFINE(augment_type_name, "uint8", "float32", "float16", "bfloat16", "uint16")
NAMES_DEFINE(augment_layout_name, "hwc", "chw")
