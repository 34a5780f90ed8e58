/* The image operations: a new one needs only its file and a line here. A file defines the operation's parameters and
 * formulas, and ends in the macro of its phase (operation.h). Before including this table, define the macros of the
 * phases of interest, and AUGMENT_OPERATION for all others; without it, the others are left out. */
#ifndef AUGMENT_OPERATION
#define AUGMENT_OPERATION(name, Type, phase, ...)
#endif
#ifndef AUGMENT_OP_MOVE
#define AUGMENT_OP_MOVE(name, Type, ...) AUGMENT_OPERATION(name, Type, MOVE, __VA_ARGS__)
#endif
#ifndef AUGMENT_OP_FILL
#define AUGMENT_OP_FILL(name, Type, ...) AUGMENT_OPERATION(name, Type, FILL, __VA_ARGS__)
#endif
#ifndef AUGMENT_OP_COLOUR
#define AUGMENT_OP_COLOUR(name, Type, ...) AUGMENT_OPERATION(name, Type, COLOUR, __VA_ARGS__)
#endif
#ifndef AUGMENT_OP_POSITIONAL
#define AUGMENT_OP_POSITIONAL(name, Type, ...) AUGMENT_OPERATION(name, Type, POSITIONAL, __VA_ARGS__)
#endif
#ifndef AUGMENT_OP_LOCAL
#define AUGMENT_OP_LOCAL(name, Type, ...) AUGMENT_OPERATION(name, Type, LOCAL, __VA_ARGS__)
#endif
#ifndef AUGMENT_OP_WARP
#define AUGMENT_OP_WARP(name, Type, ...) AUGMENT_OPERATION(name, Type, WARP, __VA_ARGS__)
#endif
#ifndef AUGMENT_OP_BOX
#define AUGMENT_OP_BOX(name, Type, ...) AUGMENT_OPERATION(name, Type, BOX, __VA_ARGS__)
#endif
#ifndef AUGMENT_OP_HISTOGRAM
#define AUGMENT_OP_HISTOGRAM(name, Type, ...) AUGMENT_OPERATION(name, Type, HISTOGRAM, __VA_ARGS__)
#endif
#ifndef AUGMENT_OP_MIX
#define AUGMENT_OP_MIX(name, Type, ...) AUGMENT_OPERATION(name, Type, MIX, __VA_ARGS__)
#endif
#ifndef AUGMENT_OP_VALUE
#define AUGMENT_OP_VALUE(name, Type, ...) AUGMENT_OPERATION(name, Type, VALUE, __VA_ARGS__)
#endif
#ifndef AUGMENT_OP_LABEL
#define AUGMENT_OP_LABEL(name, Type, ...) AUGMENT_OPERATION(name, Type, LABEL, __VA_ARGS__)
#endif

#include "augment/ops/alternate.h"
#include "augment/ops/blur.h"
#include "augment/ops/brightness.h"
#include "augment/ops/contrast.h"
#include "augment/ops/crop.h"
#include "augment/ops/cutmix.h"
#include "augment/ops/cutout.h"
#include "augment/ops/erasing.h"
#include "augment/ops/flip.h"
#include "augment/ops/grayscale.h"
#include "augment/ops/hue.h"
#include "augment/ops/mixup.h"
#include "augment/ops/poison.h"
#include "augment/ops/randaugment.h"
#include "augment/ops/replace.h"
#include "augment/ops/saturation.h"
#include "augment/ops/solarization.h"
#include "augment/ops/translate.h"
#include "augment/ops/vertical.h"

#undef AUGMENT_OPERATION
#undef AUGMENT_OP_MOVE
#undef AUGMENT_OP_FILL
#undef AUGMENT_OP_COLOUR
#undef AUGMENT_OP_POSITIONAL
#undef AUGMENT_OP_LOCAL
#undef AUGMENT_OP_WARP
#undef AUGMENT_OP_BOX
#undef AUGMENT_OP_HISTOGRAM
#undef AUGMENT_OP_MIX
#undef AUGMENT_OP_VALUE
#undef AUGMENT_OP_LABEL
