/* Orders of a file's samples as pure functions of (seed, epoch). Owns the list of samples; knows nothing of batches. */
#include "loader/traversal.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* ---- pages ---- */

typedef struct Placed {
    uint64_t page, position, sample;
} Placed;

static int compare_placed(const void *left, const void *right) {
    const Placed *a = left, *b = right;
    if (a->page != b->page) return a->page < b->page ? -1 : 1;
    return a->position < b->position ? -1 : a->position > b->position;
}

/* The page where a sample's data begins; all samples without data count as page 0. */
static Status page_of(const BetonReader *reader, uint64_t sample, uint64_t *page) {
    BetonSpan span;
    TRY(beton_reader_sample_span(reader, sample, &span));
    *page = span.begin == span.end ? 0 : span.begin / beton_reader_page_size(reader);
    return STATUS_OK;
}

static Status sort_by_page(Traversal *order, const BetonReader *reader) {
    Status status = STATUS_OK;
    Placed *placed = NULL;
    bool sorted = true;
    TRY_GOTO(memory_alloc(order->count, sizeof *placed, &placed));
    for (uint64_t i = 0; i < order->count; i++) {
        placed[i] = (Placed){.position = i, .sample = order->samples == NULL ? i : order->samples[i]};
        TRY_GOTO(page_of(reader, placed[i].sample, &placed[i].page));
        sorted = sorted && (i == 0 || placed[i - 1].page <= placed[i].page);
    }
    if (!sorted) qsort(placed, order->count, sizeof *placed, compare_placed);
    TRY_GOTO(memory_alloc(order->count, sizeof *order->by_page, &order->by_page));
    TRY_GOTO(memory_alloc(order->count, sizeof *order->page_ends, &order->page_ends));
    for (uint64_t i = 0; i < order->count; i++) {
        order->by_page[i] = placed[i].sample;
        if (i == 0 || placed[i].page != placed[i - 1].page) order->page_count++;
        order->page_ends[order->page_count - 1] = i + 1;
    }
done:
    memory_free(placed);
    return status;
}

/* Writes the samples page by page, the pages in random order, then shuffles within windows. */
static Status make_quasi_random(const Traversal *order, uint32_t epoch, uint64_t *out) {
    uint64_t *pages = NULL;
    TRY(memory_alloc(order->page_count, sizeof *pages, &pages));
    for (uint64_t i = 0; i < order->page_count; i++) pages[i] = i;
    loader_shuffle(pages, 0, order->page_count, order->seed, epoch, LOADER_SHUFFLE_PAGES);
    uint64_t written = 0, window = 0;
    for (uint64_t i = 0; i < order->page_count; i++) {
        uint64_t first = pages[i] == 0 ? 0 : order->page_ends[pages[i] - 1];
        uint64_t size = order->page_ends[pages[i]] - first;
        memcpy(out + written, order->by_page + first, size * sizeof *out);
        written += size;
        if ((i + 1) % order->window_pages != 0 && i + 1 != order->page_count) continue;
        loader_shuffle(out, window, written, order->seed, epoch, LOADER_SHUFFLE_WINDOWS);
        window = written;
    }
    memory_free(pages);
    return STATUS_OK;
}

/* ---- the order ---- */

/* Checks the copy, since other Python threads may write into the original. */
static Status copy_indices(Traversal *order, const LoaderConfig *config, uint64_t in_file) {
    TRY(memory_alloc(config->index_count, sizeof *order->samples, &order->samples));
    memcpy(order->samples, config->indices, config->index_count * sizeof *order->samples);
    for (uint64_t i = 0; i < config->index_count; i++) {
        if (order->samples[i] < in_file) continue;
        FAIL(STATUS_INDEX, "indices[%llu] is %llu, but the file has %llu samples", (unsigned long long)i,
             (unsigned long long)order->samples[i], (unsigned long long)in_file);
    }
    return STATUS_OK;
}

Status loader_traversal_init(Traversal *order, const BetonReader *reader, const LoaderConfig *config) {
    uint64_t in_file = beton_reader_num_samples(reader);
    *order = (Traversal){.kind = config->order, .seed = config->seed, .window_pages = config->window_pages};
    order->count = config->indices == NULL ? in_file : config->index_count;
    if (config->indices != NULL) TRY(copy_indices(order, config, in_file));
    return order->kind == LOADER_QUASI_RANDOM ? sort_by_page(order, reader) : STATUS_OK;
}

void loader_traversal_fini(Traversal *order) {
    memory_free(order->page_ends);
    memory_free(order->by_page);
    memory_free(order->samples);
    *order = (Traversal){0};
}

size_t loader_traversal_bytes(const Traversal *order) {
    int lists = (order->samples != NULL) + (order->by_page != NULL) + (order->page_ends != NULL);
    return (size_t)order->count * sizeof(uint64_t) * (size_t)lists;
}

Status loader_traversal_make(const Traversal *order, uint32_t epoch, bool sequential, uint64_t *out) {
    if (order->kind == LOADER_QUASI_RANDOM && !sequential) return make_quasi_random(order, epoch, out);
    for (uint64_t i = 0; i < order->count; i++) out[i] = order->samples == NULL ? i : order->samples[i];
    if (order->kind == LOADER_RANDOM && !sequential) {
        loader_shuffle(out, 0, order->count, order->seed, epoch, LOADER_SHUFFLE_SAMPLES);
    }
    return STATUS_OK;
}
