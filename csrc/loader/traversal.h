/* Private to loader/: the order in which an epoch visits the samples of a file. */
#ifndef CGXFFCV_LOADER_TRAVERSAL_H
#define CGXFFCV_LOADER_TRAVERSAL_H

#include "loader/loader.h"
#include "loader/order.h"

typedef struct Traversal {
    LoaderOrder kind;
    uint64_t seed;
    uint64_t window_pages;
    uint64_t count;      /* samples in use */
    uint64_t *samples;   /* owned; as given; NULL: 0..count-1 */
    uint64_t *by_page;   /* owned: the samples sorted by page (QUASI_RANDOM) */
    uint64_t *page_ends; /* owned, page_count: where each page's samples end in `by_page` */
    uint64_t page_count;
} Traversal;

/* `indices` (borrowed during the call) may be NULL: all samples. They are checked against the reader. */
Status loader_traversal_init(Traversal *order, const BetonReader *reader, const LoaderConfig *config);
void loader_traversal_fini(Traversal *order);

/* Bytes that an order holds. */
size_t loader_traversal_bytes(const Traversal *order);

/* Writes `count` sample numbers. Needs no lock: a Traversal never changes. */
Status loader_traversal_make(const Traversal *order, uint32_t epoch, bool sequential, uint64_t *out);

#endif
