/* The source of a mapped file. */
#include "loader/source.h"

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

Status loader_source_region(const LoaderSource *source, size_t field, uint64_t sample, BetonRegion *out) {
    return beton_reader_region(source->reader, field, sample, out);
}

Status loader_source_image(const LoaderSource *source, size_t field, uint64_t sample, BetonImage *out) {
    return beton_reader_image(source->reader, field, sample, out);
}

Status loader_source_check(const LoaderSource *source) { return beton_reader_check_length(source->reader); }

/* Neighbours in the file become one piece of advice. */
void loader_source_read_ahead(const LoaderSource *source, const uint64_t *ids, size_t count) {
    const BetonReader *reader = source->reader;
    BetonSpan run = {0, 0};
    Guard guard;
    loader_source_enter(source, &guard);
    for (size_t i = 0; i < count; i++) {
        BetonSpan span;
        if (beton_reader_sample_span(reader, ids[i], &span) != STATUS_OK || span.begin == span.end) continue;
        if (span.begin == run.end) {
            run.end = span.end;
            continue;
        }
        if (run.end > run.begin) beton_reader_advise(reader, run, BETON_ADVICE_WILL_NEED);
        run = span;
    }
    if (run.end > run.begin) beton_reader_advise(reader, run, BETON_ADVICE_WILL_NEED);
    (void)loader_source_leave(source, &guard, STATUS_OK); /* only hints; the batch itself will fail */
}
