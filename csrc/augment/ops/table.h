/* The image operations: a line here and its file are all that one takes. A file defines the operation's parameters and
 * formulas, and ends in AUGMENT_OPERATION, which whoever includes this table has defined (operation.h). */
#include "augment/ops/alternate.h"
#include "augment/ops/brightness.h"
#include "augment/ops/crop.h"
#include "augment/ops/cutout.h"
#include "augment/ops/flip.h"
#include "augment/ops/mixup.h"
#include "augment/ops/translate.h"
