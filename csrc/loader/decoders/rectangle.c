#include "loader/decoders/rectangle.h"

#include <math.h>

#include "augment/augment.h"

#define TRIES 10 /* as torchvision */
/* Numbers these draws among those of the image operations: part of what a seed means, so it must never change. */
#define NUMBER 63

Status loader_rectangle_check(const LoaderCrop *crop) {
    if (crop == NULL) FAIL(STATUS_ARGUMENT, "a cropping decoder needs to know what to crop");
    if (crop->height < 1 || crop->width < 1 || crop->height > RESIZE_MAX_SIDE || crop->width > RESIZE_MAX_SIDE) {
        FAIL(STATUS_ARGUMENT, "images cannot be resampled to %ux%u; sides are 1 to %d", crop->height, crop->width,
             RESIZE_MAX_SIDE);
    }
    bool fits = crop->scale[0] >= 0 && crop->scale[0] <= crop->scale[1] && crop->scale[1] <= 1 && crop->ratio[0] > 0 &&
                crop->ratio[0] <= crop->ratio[1] && isfinite(crop->ratio[1]);
    if (fits) return STATUS_OK;
    FAIL(STATUS_ARGUMENT, "a crop's scale must be within 0..1 and its ratios above 0, the lower limit first");
}

static JpegRegion central(uint32_t height, uint32_t width, uint32_t h, uint32_t w) {
    h = h < 1 ? 1 : h > height ? height : h;
    w = w < 1 ? 1 : w > width ? width : w;
    return (JpegRegion){(height - h) / 2, (width - w) / 2, h, w};
}

JpegRegion loader_rectangle_central(const LoaderCrop *crop, ImageSize image) {
    double shorter = image.height < image.width ? image.height : image.width;
    uint32_t side = (uint32_t)fmin(crop->ratio[0] * shorter, shorter);
    return central(image.height, image.width, side, side);
}

/* The largest central rectangle whose ratio is within the limits. */
static JpegRegion central_clamped(const LoaderCrop *crop, uint32_t height, uint32_t width) {
    double ratio = (double)width / height;
    if (ratio < crop->ratio[0]) return central(height, width, (uint32_t)nearbyint(width / crop->ratio[0]), width);
    if (ratio > crop->ratio[1]) return central(height, width, height, (uint32_t)nearbyint(height * crop->ratio[1]));
    return central(height, width, height, width);
}

static double uniform(uint32_t word, double low, double high) { return low + (high - low) * (word * 0x1p-32); }

/* As torchvision's RandomResizedCrop: draws a share of the area and the logarithm of a ratio, uniform, until they
 * fit. */
static JpegRegion random_rectangle(const LoaderCrop *crop, const AugmentKey *key, uint32_t height, uint32_t width) {
    const double low = log(crop->ratio[0]), high = log(crop->ratio[1]), area = (double)height * width;
    for (uint32_t try = 0; try < TRIES; try++) {
        const AugmentRandom random = {key, augment_draw_index(NUMBER, try, crop->list)};
        const Philox4 words = augment_words(&random);
        double target = area * uniform(words.word[0], crop->scale[0], crop->scale[1]);
        double ratio = exp(uniform(words.word[1], low, high));
        double w = nearbyint(sqrt(target * ratio)), h = nearbyint(sqrt(target / ratio));
        if (w < 1 || w > width || h < 1 || h > height) continue;
        JpegRegion found = {0, 0, (uint32_t)h, (uint32_t)w};
        found.y = philox_below(words.word[2], height - found.height + 1);
        found.x = philox_below(words.word[3], width - found.width + 1);
        return found;
    }
    return central_clamped(crop, height, width);
}

JpegRegion loader_rectangle_random(const DecoderChunk *chunk, const LoaderCrop *crop, size_t i, ImageSize image) {
    const AugmentKey key = {chunk->seed, chunk->ids[i], chunk->batch, chunk->epoch};
    if (chunk->evaluate) return central_clamped(crop, image.height, image.width);
    return random_rectangle(crop, &key, image.height, image.width);
}
