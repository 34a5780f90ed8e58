/* The source of a mapped file, or of one that is read. */
#include "loader/source.h"

#define PAGES_KNOWN 16 /* that have just been advised: a window of QUASI_RANDOM has 8 */

Status loader_source_open(LoaderSource *source, const char *path, const BetonReader *open) {
    *source = (LoaderSource){.reader = open};
    if (open != NULL) return STATUS_OK;
    TRY(beton_reader_open(path, NULL, 0, &source->own));
    source->reader = source->own;
    return STATUS_OK;
}

void loader_source_close(LoaderSource *source) {
    beton_reader_close(source->own);
    *source = (LoaderSource){0};
}

void loader_source_enter(const LoaderSource *source, Guard *guard) { beton_reader_enter(source->reader, guard); }

Status loader_source_leave(const LoaderSource *source, const Guard *guard, Status status) {
    return beton_reader_leave(source->reader, guard, status);
}

static void take_from_read_buffer(const LoaderSource *source, BetonRegion *region) {
    if (source->read_buffer == NULL || region->size == 0) return;
    const unsigned char *bytes = loader_read_buffer_find(source->read_buffer, region);
    if (bytes != NULL) region->data = bytes;
}

Status loader_source_region(const LoaderSource *source, size_t field, uint64_t sample, BetonRegion *out) {
    TRY(beton_reader_region(source->reader, field, sample, out));
    take_from_read_buffer(source, out);
    return STATUS_OK;
}

Status loader_source_image(const LoaderSource *source, size_t field, uint64_t sample, BetonImage *out) {
    TRY(beton_reader_image(source->reader, field, sample, out));
    take_from_read_buffer(source, &out->region);
    return STATUS_OK;
}

Status loader_source_check(const LoaderSource *source) { return beton_reader_check_length(source->reader); }

/* Neighbours in the file are merged into one hint. */
static void advise_samples(const BetonReader *reader, const uint64_t *ids, size_t count) {
    BetonSpan run = {0, 0};
    for (size_t i = 0; i < count; i++) {
        BetonSpan span;
        if (beton_reader_sample_span(reader, ids[i], &span) != STATUS_OK || span.begin == span.end) continue;
        if (span.begin == run.end) {
            run.end = span.end;
            continue;
        }
        if (run.end > run.begin) beton_reader_read_ahead(reader, run);
        run = span;
    }
    if (run.end > run.begin) beton_reader_read_ahead(reader, run);
}

static void advise_pages(const BetonReader *reader, const uint64_t *ids, size_t count) {
    const uint64_t bytes = beton_reader_page_size(reader);
    uint64_t known[PAGES_KNOWN];
    size_t advised = 0;
    for (size_t i = 0; i < count; i++) {
        BetonSpan span;
        bool found = false;
        if (beton_reader_sample_span(reader, ids[i], &span) != STATUS_OK || span.begin == span.end) continue;
        const uint64_t page = span.begin / bytes;
        for (size_t k = 0; k < advised && k < PAGES_KNOWN; k++) found = found || known[k] == page;
        if (found) continue;
        beton_reader_read_ahead(reader, (BetonSpan){page * bytes, (page + 1) * bytes});
        known[advised++ % PAGES_KNOWN] = page;
    }
}

void loader_source_read_ahead(const LoaderSource *source, const uint64_t *ids, size_t count) {
    Guard guard;
    loader_source_enter(source, &guard);
    (source->whole_pages ? advise_pages : advise_samples)(source->reader, ids, count);
    (void)loader_source_leave(source, &guard, STATUS_OK); /* only hints; the batch itself will fail */
}
