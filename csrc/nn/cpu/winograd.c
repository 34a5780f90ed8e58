/* Convolutions by minimal filtering: blocks of tiles are transformed, multiplied matrix by matrix and transformed back,
 * block after block, so that a block's data stays in the L2 cache. */
#include <stdio.h>

#include "nn/cpu/winograd.h"

#include "base/cpu.h"
#include "base/memory.h"
#include "nn/cpu/conv.h"

#define BLOCK_BYTES (1024 * 1024)
#define FILTER_BLOCK_BYTES (1536 * 1024)
#define MOST_TILES 192
#define PLANE_GAP 32 /* uint16 elements between the planes: their distance must not be a multiple of 4096 bytes */

typedef struct WinogradConv {
    Conv base;
    const Kernels *floats; /* static */
    ConvDirection direction;
    int tile, matrices;   /* m, (m + 2)^2 */
    int in, out;          /* channels of the filters */
    WinogradMap from, to; /* the map that is read, and the one that is written or (filter) the output gradient's */
    int depth, columns;   /* of the product: channels read; channels written, rounded up */
    int block;            /* tiles at a time */
    size_t value_plane;   /* elements from matrix to matrix: transformed inputs, */
    size_t product_plane; /* products or (filter) transformed gradients, */
    size_t filter_plane;  /* transformed filters or (filter) sums */
    uint16_t *filters;    /* owned; NULL for the filter gradient */
} WinogradConv;

static bool available(void) {
    const CpuFeatures *cpu = cpu_features();
    return cpu->avx512 && cpu->avx512_bf16;
}

static int tiles_along(int pixels, int tile) { return (pixels + tile - 1) / tile; }

static int multiplications(const ConvShape *shape, ConvDirection direction, int tile) {
    int height = direction == CONV_DATA ? shape->in_height : shape->out_height;
    int width = direction == CONV_DATA ? shape->in_width : shape->out_width;
    return tiles_along(height, tile) * tiles_along(width, tile) * (tile + 2) * (tile + 2);
}

int nn_cpu_winograd_tile(const ConvNeed *need) {
    const ConvShape *s = &need->shape;
    if (need->method == CONVOLUTION_DIRECT || need->precision != PRECISION_BFLOAT16) return 0;
    if (!available() || s->kernel != 3 || s->stride != 1) return 0;
    if (s->in_channels % 8 != 0 || s->out_channels % 8 != 0) return 0;
    if (s->in_channels > WINOGRAD_MOST_CHANNELS || s->out_channels > WINOGRAD_MOST_CHANNELS) return 0;
    if (need->method == CONVOLUTION_WINOGRAD2) return 2;
    return multiplications(s, need->direction, 4) < multiplications(s, need->direction, 2) ? 4 : 2;
}

static WinogradMap map_of(int tile, int height, int width, int channels, int padding) {
    return (WinogradMap){.tile = tile, .height = height, .width = width, .channels = channels, .padding = padding};
}

static void set_grid(WinogradMap *map, const WinogradMap *written) {
    map->rows = tiles_along(written->height, map->tile);
    map->columns = tiles_along(written->width, map->tile);
}

/* The largest number of tiles, a multiple of `step`, whose planes take at most `bytes`. */
static int block_of(size_t bytes, size_t tile_bytes, int step, int most) {
    size_t tiles = bytes / tile_bytes / (size_t)step * (size_t)step;
    if (tiles > (size_t)MOST_TILES) tiles = MOST_TILES;
    int enough = (most + step - 1) / step * step;
    return tiles < (size_t)step ? step : (int)tiles < enough ? (int)tiles : enough;
}

static void plan_product(WinogradConv *conv, int images) {
    size_t matrices = (size_t)conv->matrices, depth = (size_t)conv->depth, columns = (size_t)conv->columns;
    conv->block = block_of(BLOCK_BYTES, matrices * (depth * 2 + columns * 4), WINOGRAD_ROWS,
                           images * conv->from.rows * conv->from.columns);
    conv->value_plane = (size_t)conv->block * depth + PLANE_GAP;
    conv->product_plane = (size_t)conv->block * columns + PLANE_GAP / 2;
    conv->filter_plane = depth * columns;
    conv->base.scratch_bytes = matrices * (conv->value_plane * 2 + conv->product_plane * 4);
}

static void plan_filter(WinogradConv *conv, int images) {
    size_t matrices = (size_t)conv->matrices, in = (size_t)conv->in, out = (size_t)conv->out;
    conv->block =
        block_of(FILTER_BLOCK_BYTES, matrices * (in + out) * 2, 2, images * conv->from.rows * conv->from.columns);
    conv->value_plane = (size_t)conv->block * in + PLANE_GAP;
    conv->product_plane = (size_t)conv->block * out + PLANE_GAP;
    conv->filter_plane = in * out;
    conv->base.scratch_bytes = matrices * (conv->value_plane + conv->product_plane) * 2;
    conv->base.sum_elems = matrices * conv->filter_plane;
    conv->base.partial_elems = 9 * conv->filter_plane;
}

static void winograd_destroy(Conv *base) {
    WinogradConv *conv = (WinogradConv *)base;
    memory_free(conv->filters);
    memory_free(conv);
}

static void winograd_pack(Conv *base, const float *filters, int part, int parts) {
    WinogradConv *conv = (WinogradConv *)base;
    size_t begin, end;
    conv_slice((size_t)conv->out / 2, part, parts, &begin, &end);
    if (conv->direction == CONV_FORWARD) {
        nn_cpu_winograd_filters(conv->tile, filters, conv->in, conv->out, 2 * (int)begin, 2 * (int)end, conv->filters,
                                conv->filter_plane);
    } else {
        nn_cpu_winograd_rotated_filters(conv->tile, filters, conv->in, conv->out, 2 * (int)begin, 2 * (int)end,
                                        conv->filters, conv->filter_plane);
    }
}

#define CACHE_LINE 64

/* Prefetches the memory that is needed next, a share with each product. */
typedef struct Fetch {
    const ConvAhead *ahead;
    int index;    /* of the current piece */
    size_t done;  /* bytes of it that have been prefetched */
    size_t lines; /* cache lines per product */
} Fetch;

static Fetch fetch_begin(const WinogradConv *conv, const ConvCall *call) {
    int tiles = call->images * conv->from.rows * conv->from.columns;
    size_t bytes = 0, products = (size_t)conv->matrices * (size_t)((tiles + conv->block - 1) / conv->block);
    for (int i = 0; i < call->ahead.count; i++) bytes += call->ahead.bytes[i];
    return (Fetch){.ahead = &call->ahead, .lines = (bytes / CACHE_LINE + products - 1) / products};
}

static void fetch_share(Fetch *fetch) {
    for (size_t i = 0; i < fetch->lines && fetch->index < fetch->ahead->count; i++) {
        __builtin_prefetch(fetch->ahead->from[fetch->index] + fetch->done, 0, 2);
        fetch->done += CACHE_LINE;
        if (fetch->done < fetch->ahead->bytes[fetch->index]) continue;
        fetch->index++;
        fetch->done = 0;
    }
}

static Status winograd_run(Conv *base, const ConvCall *call, const void *from, void *to) {
    const WinogradConv *conv = (const WinogradConv *)base;
    uint16_t *values = call->scratch;
    float *products = (float *)(void *)(values + (size_t)conv->matrices * conv->value_plane);
    int tiles = call->images * conv->from.rows * conv->from.columns;
    Fetch fetch = fetch_begin(conv, call);
    for (int first = 0; first < tiles; first += conv->block) {
        int count = tiles - first < conv->block ? tiles - first : conv->block;
        int rows = (count + WINOGRAD_ROWS - 1) / WINOGRAD_ROWS * WINOGRAD_ROWS;
        nn_cpu_winograd_input(&conv->from, from, first, count, values, conv->value_plane);
        for (int e = 0; e < conv->matrices; e++) {
            fetch_share(&fetch);
            nn_cpu_winograd_multiply(values + (size_t)e * conv->value_plane,
                                     conv->filters + (size_t)e * conv->filter_plane, rows, conv->depth, conv->columns,
                                     products + (size_t)e * conv->product_plane, conv->columns);
        }
        nn_cpu_winograd_output(&conv->to, products, conv->product_plane, conv->columns, first, count, to);
    }
    return STATUS_OK;
}

static Status winograd_run_filter(Conv *base, const ConvCall *call, const void *input, const void *output_gradient,
                                  float *partial) {
    const WinogradConv *conv = (const WinogradConv *)base;
    uint16_t *values = call->scratch, *gradients = values + (size_t)conv->matrices * conv->value_plane;
    int tiles = call->images * conv->from.rows * conv->from.columns;
    Fetch fetch = fetch_begin(conv, call);
    for (int first = 0; first < tiles; first += conv->block) {
        int count = tiles - first < conv->block ? tiles - first : conv->block;
        nn_cpu_winograd_input_pairs(&conv->from, input, first, count, values, conv->value_plane);
        nn_cpu_winograd_gradient_pairs(&conv->to, output_gradient, first, count, gradients, conv->product_plane);
        for (int e = 0; e < conv->matrices; e++) {
            fetch_share(&fetch);
            nn_cpu_winograd_accumulate(
                values + (size_t)e * conv->value_plane, gradients + (size_t)e * conv->product_plane, (count + 1) / 2,
                conv->in, conv->out, call->sum + (size_t)e * conv->filter_plane, call->begins && first == 0);
        }
    }
    if (call->ends) {
        nn_cpu_winograd_filter_gradient(conv->tile, call->sum, conv->filter_plane, conv->in, conv->out, partial);
    }
    return STATUS_OK;
}

static void winograd_unpack(const Conv *base, const float *partials, int count, float *gradient, int part, int parts) {
    const WinogradConv *conv = (const WinogradConv *)base;
    size_t begin, end;
    conv_slice(base->partial_elems, part, parts, &begin, &end);
    conv->floats->sum(partials + begin, (size_t)count, base->partial_elems, end - begin, gradient + begin);
}

Status nn_cpu_winograd_conv_create(const ConvNeed *need, int tile, Conv **out) {
    static const ConvTable table = {
        .destroy = winograd_destroy,
        .pack = winograd_pack,
        .run = winograd_run,
        .run_filter = winograd_run_filter,
        .unpack = winograd_unpack,
    };
    const ConvShape *s = &need->shape;
    WinogradConv *conv = NULL;
    TRY(memory_calloc(1, sizeof *conv, &conv));
    conv->base.table = &table;
    conv->floats = nn_cpu_kernels_for(need->precision);
    conv->direction = need->direction;
    conv->tile = tile;
    snprintf(conv->base.name, sizeof conv->base.name, "minimal filtering, %d x %d outputs at once", tile, tile);
    conv->matrices = (tile + 2) * (tile + 2);
    conv->in = s->in_channels;
    conv->out = s->out_channels;
    WinogradMap input = map_of(tile, s->in_height, s->in_width, s->in_channels, 0);
    WinogradMap output = map_of(tile, s->out_height, s->out_width, s->out_channels, 0);
    bool data = need->direction == CONV_DATA;
    conv->from = data ? output : input;
    conv->from.padding = data ? 2 - s->padding : s->padding;
    conv->to = data ? input : output;
    set_grid(&conv->from, &conv->to);
    set_grid(&conv->to, &conv->to);
    conv->depth = conv->from.channels;
    conv->columns = (conv->to.channels + KERNELS_ROUND - 1) / KERNELS_ROUND * KERNELS_ROUND;
    int images = need->size_count > 0 ? need->sizes[0] : 1;
    Status status = STATUS_OK;
    if (need->direction == CONV_FILTER) {
        plan_filter(conv, images);
    } else {
        plan_product(conv, images);
        status = memory_calloc((size_t)conv->matrices * conv->filter_plane, sizeof *conv->filters, &conv->filters);
    }
    if (status == STATUS_OK) {
        *out = &conv->base;
    } else {
        winograd_destroy(&conv->base);
    }
    return status;
}
