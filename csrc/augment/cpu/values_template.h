/* Included once for each value type, with
 *   VALUE, SUM   the type, and that of sums and products
 *   MOST         its largest value; not defined for floats
 *   OF(name)     the name for that type
 * all of which it undefines. */

#ifdef MOST

static SUM OF(part)(SUM sum, SUM by) { return sum / by; }
static SUM OF(rest)(SUM sum, SUM by) { return sum % by; }
static SUM OF(nearest)(SUM sum, SUM by) { return (sum + by / 2) / by; }
static VALUE OF(cut)(SUM sum) { return (VALUE)(sum < 0 ? 0 : sum > MOST ? MOST : sum); }
static SUM OF(average)(SUM sum, SUM count) { return sum / count * AUGMENT_ONE + sum % count * AUGMENT_ONE / count; }

/* Round weighted sums along a row, and along a column; the weights add up to AUGMENT_ONE. */
static SUM OF(row)(SUM sum) { return (sum + 128) >> 8; }
static VALUE OF(column)(SUM sum) { return (VALUE)((sum + (1 << 23)) >> 24); }

/* factor x value + (1 - factor) x other; factor and other in units of 1 / AUGMENT_ONE. */
static VALUE OF(blend)(SUM factor, SUM value, SUM other) {
    const SUM sum = factor * value * AUGMENT_ONE + (AUGMENT_ONE - factor) * other;
    return OF(cut)(sum < 0 ? 0 : sum >> 32);
}

#else

static SUM OF(part)(SUM sum, SUM by) { return sum / by; }
static SUM OF(rest)(SUM sum, SUM by) { return fmod(sum, by); }
static SUM OF(nearest)(SUM sum, SUM by) { return sum / by; }
static VALUE OF(cut)(SUM sum) { return (VALUE)sum; }
static SUM OF(average)(SUM sum, SUM count) { return sum / count * AUGMENT_ONE; }
static SUM OF(row)(SUM sum) { return sum / AUGMENT_ONE; }
static VALUE OF(column)(SUM sum) { return (VALUE)(sum / AUGMENT_ONE); }

static VALUE OF(blend)(SUM factor, SUM value, SUM other) {
    return (VALUE)((factor * value * AUGMENT_ONE + (AUGMENT_ONE - factor) * other) / AUGMENT_ONE / AUGMENT_ONE);
}

#endif

static SUM OF(grey)(const VALUE *pixel, int32_t channels) {
    if (channels == 1) return (SUM)pixel[0];
    return OF(part)(2989 * (SUM)pixel[0] + 5870 * (SUM)pixel[1] + 1140 * (SUM)pixel[2], 10000);
}

/* In units of 1 / AUGMENT_ONE. */
static SUM OF(mean)(const AugmentValues *image) {
    const VALUE *pixel = image->data;
    SUM sum = 0;
    for (size_t i = 0; i < image->pixels; i++, pixel += image->channels) sum += OF(grey)(pixel, image->channels);
    return OF(average)(sum, (SUM)image->pixels);
}

/* In sixths of a turn from red, in units of 1 / AUGMENT_ONE; `range` is the largest value minus the smallest. */
static SUM OF(hue)(const VALUE *pixel, SUM largest, SUM range) {
    const SUM r = (SUM)pixel[0], g = (SUM)pixel[1], b = (SUM)pixel[2];
    if (r == largest) return OF(rest)(OF(part)((6 * range + g - b) * AUGMENT_ONE, range), 6 * AUGMENT_ONE);
    if (g == largest) return OF(part)((2 * range + b - r) * AUGMENT_ONE, range);
    return OF(part)((4 * range + r - g) * AUGMENT_ONE, range);
}

/* The same as in ops/hue.h. */
static void OF(rotate_hue)(uint32_t amount, VALUE *pixel) {
    VALUE largest = pixel[0], smallest = pixel[0];
    for (int c = 1; c < AUGMENT_CHANNELS; c++) {
        if (pixel[c] > largest) largest = pixel[c];
        if (pixel[c] < smallest) smallest = pixel[c];
    }
    const SUM range = (SUM)largest - (SUM)smallest;
    if (!(range > 0)) return;
    const SUM hue = OF(rest)(OF(hue)(pixel, (SUM)largest, range) + 6 * (SUM)amount, 6 * AUGMENT_ONE);
    if (!(hue >= 0)) return; /* NaN */
    const uint32_t sixth = (uint32_t)(hue / AUGMENT_ONE);
    const SUM part = OF(nearest)(range * (hue - (SUM)sixth * AUGMENT_ONE), AUGMENT_ONE);
    const VALUE third = (VALUE)(sixth % 2 == 0 ? (SUM)smallest + part : (SUM)largest - part);
    const uint32_t at_largest = (sixth + 1) / 2 % 3, at_smallest = (sixth / 2 + 2) % 3;
    for (uint32_t c = 0; c < AUGMENT_CHANNELS; c++) {
        pixel[c] = c == at_largest ? largest : c == at_smallest ? smallest : third;
    }
}

static void OF(colour)(AugmentOther other, uint32_t amount, const AugmentValues *image) {
    const int32_t channels = image->channels;
    VALUE *pixel = image->data;
    SUM with = other == AUGMENT_MEAN ? OF(mean)(image) : 0;
    for (size_t i = 0; i < image->pixels; i++, pixel += channels) {
        if (other == AUGMENT_ROTATE_HUE) {
            OF(rotate_hue)(amount, pixel);
            continue;
        }
        if (other == AUGMENT_GREY) with = OF(grey)(pixel, channels) * AUGMENT_ONE;
        for (int32_t c = 0; c < channels; c++) pixel[c] = OF(blend)((SUM)amount, (SUM)pixel[c], with);
    }
}

static void OF(mix)(uint32_t amount, const void *own, const void *previous, size_t count, void *to) {
    const VALUE *one = own, *other = previous;
    VALUE *out = to;
    const SUM factor = (SUM)amount, rest = AUGMENT_ONE - factor;
    for (size_t i = 0; i < count; i++) {
        out[i] = OF(cut)(OF(part)((SUM)one[i] * factor + (SUM)other[i] * rest, AUGMENT_ONE));
    }
}

static void OF(sum_row)(const AugmentValues *image, AugmentSize size, int32_t y, const uint32_t *weights,
                        int32_t radius, SUM *to) {
    const int32_t channels = image->channels;
    const VALUE *row = (const VALUE *)image->data + (size_t)y * (size_t)size.width * (size_t)channels;
    for (int32_t x = 0; x < size.width; x++) {
        for (int32_t c = 0; c < channels; c++) {
            SUM sum = (SUM)weights[0] * (SUM)row[x * channels + c];
            for (int32_t i = 1; i <= radius; i++) {
                const int32_t left = augment_reflect(x - i, size.width), right = augment_reflect(x + i, size.width);
                sum += (SUM)weights[i] * ((SUM)row[left * channels + c] + (SUM)row[right * channels + c]);
            }
            *to++ = OF(row)(sum);
        }
    }
}

/* Each row is summed horizontally once and kept in a circular buffer until the vertical sums have used it. */
static void OF(blur)(const AugmentValues *image, AugmentSize size, const uint32_t *weights, int32_t radius,
                     void *scratch) {
    const size_t values = (size_t)size.width * (size_t)image->channels;
    SUM *rows = scratch;
    for (int32_t y = 0, summed = 0; y < size.height; y++) {
        const int32_t last = y + radius < size.height ? y + radius : size.height - 1;
        VALUE *to = (VALUE *)image->data + (size_t)y * values;
        for (; summed <= last; summed++) {
            OF(sum_row)(image, size, summed, weights, radius, rows + (size_t)(summed % SUMMED_ROWS) * values);
        }
        for (size_t k = 0; k < values; k++) {
            SUM sum = (SUM)weights[0] * rows[(size_t)(y % SUMMED_ROWS) * values + k];
            for (int32_t i = 1; i <= radius; i++) {
                const size_t above = (size_t)(augment_reflect(y - i, size.height) % SUMMED_ROWS);
                const size_t below = (size_t)(augment_reflect(y + i, size.height) % SUMMED_ROWS);
                sum += (SUM)weights[i] * (rows[above * values + k] + rows[below * values + k]);
            }
            to[k] = OF(column)(sum);
        }
    }
}

static double OF(load)(const void *value) {
    VALUE own;
    memcpy(&own, value, sizeof own);
    return (double)own;
}

static const AugmentValueKernels OF(kernels) = {OF(colour), OF(mix), OF(blur), OF(load)};

#undef VALUE
#undef SUM
#undef MOST
#undef OF
