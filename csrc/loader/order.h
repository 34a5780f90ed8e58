/* Private to loader/: traversal orders, and which part of an order a rank's batch is. */
#ifndef CGXFFCV_LOADER_ORDER_H
#define CGXFFCV_LOADER_ORDER_H

#include "loader/loader.h"

typedef struct Order {
    LoaderOrder kind;
    uint64_t seed;
    uint64_t window_pages;
    uint64_t count;      /* samples in use */
    uint64_t *samples;   /* owned; as given; NULL: 0..count-1 */
    uint64_t *by_page;   /* owned: the samples sorted by page (QUASI_RANDOM) */
    uint64_t *page_ends; /* owned, page_count: where each page's samples end in `by_page` */
    uint64_t page_count;
} Order;

/* `indices` (borrowed during the call) may be NULL: all samples. They are checked against the reader. */
Status order_init(Order *order, const BetonReader *reader, const LoaderConfig *config);
void order_fini(Order *order);

/* Bytes that an order holds. */
size_t order_bytes(const Order *order);

/* Writes `count` sample numbers. Needs no lock: an Order never changes. */
Status order_make(const Order *order, uint32_t epoch, bool sequential, uint64_t *out);

/* The batches of a pass over `samples` samples, and the part of batch `index` that this rank gets. */
typedef struct OrderSplit {
    uint64_t batch_size, world_size, rank;
    bool drop_last;
} OrderSplit;

typedef struct OrderPart {
    uint64_t first;
    size_t count;
} OrderPart;

uint64_t order_batches(const OrderSplit *split, uint64_t samples);
OrderPart order_part(const OrderSplit *split, uint64_t samples, uint64_t index);

#endif
