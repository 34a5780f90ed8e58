/* JPEG through libjpeg-turbo's libjpeg, except for the entropy decoding of sequential streams, which takes most of the
 * time: that is done here, and left to the library if the stream has a fault. Errors and warnings leave the library
 * by longjmp, so functions between setjmp and a library call own nothing. Each handle owns one instance of the library
 * and its buffers. */
#include "image/jpeg.h"

#include <limits.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
/* needs stdio.h first */
#include <jpeglib.h>

#include "base/memory.h"
#include "image/jpeg_huffman.h"

#define CHANNELS 3
#define MAX_SCANS 500     /* a small image of thousands of scans would take minutes */
#define STRIP_ROWS 16     /* rows passed on at a time: those of one row of blocks */
#define MARGIN 4          /* columns next to a region that its edge pixels depend on: the widest chroma sample */
#define EDGE 64           /* pixels: more than the largest MCU */
#define HEADER_BYTES 2048 /* more than an encoder's markers */
#define NUM_STANDARD 2    /* standard Huffman tables of each kind in T.81, annex K.3: luminance, chrominance */

typedef struct Failure {
    struct jpeg_error_mgr manager; /* first: the library passes its address */
    jmp_buf back;
    char message[JMSG_LENGTH_MAX];
} Failure;

/* The beginning of the library's own declaration, which is the same in all of its versions. */
struct jpeg_entropy_decoder {
    void (*start_pass)(j_decompress_ptr library);
    boolean (*decode_mcu)(j_decompress_ptr library, JBLOCKROW *blocks);
};

/* Decodes the only scan of a sequential stream in place of the library's decoder. */
typedef struct Entropy {
    JpegHuffmanTable dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
    JpegHuffmanReader reader;
    const uint8_t *marker, *end; /* borrowed: what ends the interval, and the end of the data that there is room for */
    int32_t predictions[MAX_COMPS_IN_SCAN];
    uint64_t left;       /* MCUs until the scan's end ... */
    uint32_t to_restart; /* ... and until the next restart marker, which is number `restart` */
    unsigned restart;
} Entropy;

struct JpegDecoder {
    struct jpeg_decompress_struct library; /* owned */
    struct jpeg_progress_mgr progress;
    Failure failure;
    Entropy entropy;
    JHUFF_TBL standard[2][NUM_STANDARD]; /* of DC, of AC */
    bool by_library;                     /* the library does the entropy decoding */
    uint8_t *interval;                   /* owned: data between two markers, for `entropy` */
    uint8_t *strip;                      /* owned: decoded rows to pass on */
    size_t interval_bytes, strip_bytes;
    uint32_t given; /* rows of the region that have been passed on */
};

struct JpegEncoder {
    struct jpeg_compress_struct library; /* owned */
    struct jpeg_destination_mgr target;
    Failure failure;
    uint8_t *buffer; /* owned */
    size_t capacity;
};

/* ---- failures ---- */

static void on_error(j_common_ptr library) {
    Failure *failure = (Failure *)library->err;
    library->err->format_message(library, failure->message);
    longjmp(failure->back, 1);
}

/* Levels below 0 are warnings: the data is corrupt. */
static void on_message(j_common_ptr library, int level) {
    if (level < 0) on_error(library);
}

static void discard_message(j_common_ptr library) { (void)library; }

static struct jpeg_error_mgr *failure_init(Failure *failure) {
    struct jpeg_error_mgr *manager = jpeg_std_error(&failure->manager);
    manager->error_exit = on_error;
    manager->emit_message = on_message;
    manager->output_message = discard_message;
    return manager;
}

static void fail_with(Failure *failure, const char *message) {
    snprintf(failure->message, sizeof failure->message, "%s", message);
    longjmp(failure->back, 1);
}

/* ---- entropy decoding ---- */

static void begin_interval(JpegDecoder *decoder, const uint8_t *at) {
    Entropy *entropy = &decoder->entropy;
    entropy->marker = jpeg_huffman_begin(&entropy->reader, at, entropy->end, decoder->interval);
    entropy->to_restart = decoder->library.restart_interval;
    memset(entropy->predictions, 0, sizeof entropy->predictions);
}

/* Expects a restart marker, and begins the interval after it. */
static void go_past_restart(JpegDecoder *decoder) {
    Entropy *entropy = &decoder->entropy;
    const uint8_t *marker = entropy->marker;
    if (!jpeg_huffman_ends(&entropy->reader) || entropy->end - marker < 2 ||
        marker[1] != JPEG_RST0 + entropy->restart) {
        fail_with(&decoder->failure, "a restart marker is misplaced");
    }
    entropy->restart = (entropy->restart + 1) % 8;
    begin_interval(decoder, marker + 2);
}

/* Lets the library continue after the scan. */
static void hand_back(JpegDecoder *decoder) {
    const Entropy *entropy = &decoder->entropy;
    if (!jpeg_huffman_ends(&entropy->reader)) fail_with(&decoder->failure, "more data than the scan needs");
    struct jpeg_source_mgr *source = decoder->library.src;
    source->bytes_in_buffer -= (size_t)(entropy->marker - source->next_input_byte);
    source->next_input_byte = entropy->marker;
}

/* In place of the library's function: decodes an MCU, or skips it if `blocks` is NULL. */
static boolean decode_group(j_decompress_ptr library, JBLOCKROW *blocks) {
    JpegDecoder *decoder = library->client_data;
    Entropy *entropy = &decoder->entropy;
    if (library->restart_interval != 0 && entropy->to_restart-- == 0) {
        go_past_restart(decoder);
        entropy->to_restart--;
    }
    for (int i = 0; i < library->blocks_in_MCU; i++) {
        const int which = library->MCU_membership[i];
        const jpeg_component_info *component = library->cur_comp_info[which];
        if (!jpeg_huffman_block(&entropy->reader, &entropy->dc[component->dc_tbl_no],
                                &entropy->ac[component->ac_tbl_no], &entropy->predictions[which],
                                blocks == NULL ? NULL : *blocks[i])) {
            fail_with(&decoder->failure, "bad Huffman code");
        }
    }
    if (--entropy->left == 0) hand_back(decoder);
    return TRUE;
}

/* Called after jpeg_start_decompress, which has checked the tables. */
static void take_over_entropy(JpegDecoder *decoder) {
    j_decompress_ptr library = &decoder->library;
    Entropy *entropy = &decoder->entropy;
    if (decoder->by_library || library->arith_code || jpeg_has_multiple_scans(library)) return;
    for (int i = 0; i < library->comps_in_scan; i++) {
        const int dc = library->cur_comp_info[i]->dc_tbl_no, ac = library->cur_comp_info[i]->ac_tbl_no;
        const JHUFF_TBL *dc_codes = library->dc_huff_tbl_ptrs[dc], *ac_codes = library->ac_huff_tbl_ptrs[ac];
        jpeg_huffman_make(&entropy->dc[dc], dc_codes->bits, dc_codes->huffval);
        jpeg_huffman_make(&entropy->ac[ac], ac_codes->bits, ac_codes->huffval);
    }
    entropy->left = (uint64_t)library->MCUs_per_row * library->MCU_rows_in_scan;
    entropy->restart = 0;
    const size_t room = decoder->interval_bytes - JPEG_HUFFMAN_BEYOND, bytes = library->src->bytes_in_buffer;
    entropy->end = library->src->next_input_byte + (bytes < room ? bytes : room);
    begin_interval(decoder, library->src->next_input_byte);
    library->client_data = decoder;
    library->entropy->decode_mcu = decode_group;
}

/* ---- tables ---- */

static bool fill_standard_tables(JpegDecoder *decoder, struct jpeg_compress_struct *encoder) {
    if (setjmp(decoder->failure.back) != 0) return false;
    jpeg_create_compress(encoder);
    encoder->input_components = CHANNELS;
    encoder->in_color_space = JCS_RGB;
    jpeg_set_defaults(encoder);
    for (int i = 0; i < NUM_STANDARD; i++) {
        decoder->standard[0][i] = *encoder->dc_huff_tbl_ptrs[i];
        decoder->standard[1][i] = *encoder->ac_huff_tbl_ptrs[i];
    }
    return true;
}

/* Takes the standard tables from an encoder, which creates them. */
static bool take_standard_tables(JpegDecoder *decoder) {
    struct jpeg_compress_struct encoder = {.err = failure_init(&decoder->failure)};
    const bool filled = fill_standard_tables(decoder, &encoder);
    jpeg_destroy_compress(&encoder);
    return filled;
}

/* The library keeps tables from stream to stream, so that a stream without its own would be decoded with those of the
 * previous one. Here every stream begins with the standard Huffman tables, which frames of Motion JPEG rely on, no
 * others, and quantization tables of zeros, which mean that there are none. */
static void renew_tables(JpegDecoder *decoder) {
    j_decompress_ptr library = &decoder->library;
    for (int i = 0; i < NUM_QUANT_TBLS; i++) {
        JQUANT_TBL *table = library->quant_tbl_ptrs[i];
        if (table != NULL) memset(table->quantval, 0, sizeof table->quantval);
    }
    for (int i = 0; i < NUM_HUFF_TBLS; i++) {
        JHUFF_TBL **tables[] = {&library->dc_huff_tbl_ptrs[i], &library->ac_huff_tbl_ptrs[i]};
        for (int kind = 0; kind < 2; kind++) {
            JHUFF_TBL **table = tables[kind];
            if (i < NUM_STANDARD && *table == NULL) *table = jpeg_alloc_huff_table((j_common_ptr)library);
            if (i < NUM_STANDARD)
                **table = decoder->standard[kind][i];
            else if (*table != NULL)
                memset((*table)->bits, 0, sizeof(*table)->bits);
        }
    }
}

/* Called after jpeg_start_decompress, when all components with data have their tables. */
static void check_quantization(JpegDecoder *decoder) {
    static const JQUANT_TBL none;
    j_decompress_ptr library = &decoder->library;
    for (int i = 0; i < library->num_components; i++) {
        const JQUANT_TBL *table = library->comp_info[i].quant_table;
        if (table != NULL && memcmp(table->quantval, none.quantval, sizeof none.quantval) == 0) {
            fail_with(&decoder->failure, "a quantization table is missing");
        }
    }
}

/* ---- decoding ---- */

static void count_scans(j_common_ptr library) {
    if (((j_decompress_ptr)library)->input_scan_number > MAX_SCANS) {
        fail_with((Failure *)library->err, "more than 500 scans");
    }
}

static bool decoder_starts(JpegDecoder *decoder) {
    decoder->library.err = failure_init(&decoder->failure);
    if (setjmp(decoder->failure.back) != 0) return false;
    jpeg_create_decompress(&decoder->library);
    decoder->progress.progress_monitor = count_scans;
    decoder->library.progress = &decoder->progress;
    return true;
}

Status jpeg_decoder_create(JpegDecoder **out) {
    JpegDecoder *decoder = NULL;
    TRY(memory_calloc(1, sizeof *decoder, &decoder));
    if (take_standard_tables(decoder) && decoder_starts(decoder)) {
        *out = decoder;
        return STATUS_OK;
    }
    Status status = error_fail(STATUS_LIBRARY, "libjpeg-turbo cannot start: %s", decoder->failure.message);
    jpeg_decoder_destroy(decoder);
    return status;
}

void jpeg_decoder_destroy(JpegDecoder *decoder) {
    if (decoder == NULL) return;
    jpeg_destroy_decompress(&decoder->library);
    memory_free(decoder->interval);
    memory_free(decoder->strip);
    memory_free(decoder);
}

size_t jpeg_decoder_bytes(const JpegDecoder *decoder) {
    return sizeof *decoder + decoder->interval_bytes + decoder->strip_bytes;
}

void jpeg_decoder_leave_to_library(JpegDecoder *decoder) { decoder->by_library = true; }

/* What to decode: the whole image into `rgb`, or a region passed to `take`. */
typedef struct Job {
    const void *data;
    size_t size;
    const JpegRequest *request;
    uint8_t *rgb;
    size_t stride;
    JpegTake take;
    void *context;
} Job;

static void decoder_start(JpegDecoder *decoder, const Job *job) {
    struct jpeg_decompress_struct *library = &decoder->library;
    const JpegRequest *request = job->request;
    jpeg_mem_src(library, job->data, (unsigned long)job->size);
    renew_tables(decoder);
    jpeg_read_header(library, TRUE);
    library->out_color_space = JCS_RGB;
    library->dct_method = request->idct == JPEG_IDCT_FAST ? JDCT_IFAST : JDCT_ISLOW;
    library->scale_num = 1;
    library->scale_denom = request->shrink;
    jpeg_start_decompress(library);
    if (library->output_width != jpeg_shrunk(request->width, request->shrink) ||
        library->output_height != jpeg_shrunk(request->height, request->shrink)) {
        fail_with(&decoder->failure, "its header changed while it was being read");
    }
    check_quantization(decoder);
    take_over_entropy(decoder);
}

static void read_rows(struct jpeg_decompress_struct *library, uint8_t *rgb, size_t stride, uint32_t count) {
    JSAMPROW rows[STRIP_ROWS];
    while (count > 0) {
        const uint32_t some = count < STRIP_ROWS ? count : STRIP_ROWS;
        for (uint32_t i = 0; i < some; i++) rows[i] = rgb + i * stride;
        const uint32_t read = jpeg_read_scanlines(library, rows, some);
        rgb += read * stride;
        count -= read;
    }
}

/* Has the library produce only the region's columns, with a margin; returns the first column that it produces. For
 * images in several scans it produces all, since its block smoothing depends on pixels farther away. */
static uint32_t crop_columns(struct jpeg_decompress_struct *library, const JpegRegion *region) {
    const uint32_t end = region->x + region->width, width = library->output_width;
    JDIMENSION first = region->x > MARGIN ? region->x - MARGIN : 0;
    JDIMENSION count = (width - end > MARGIN ? end + MARGIN : width) - first;
    if (jpeg_has_multiple_scans(library)) return 0;
    jpeg_crop_scanline(library, &first, &count);
    return first;
}

static void read_region(JpegDecoder *decoder, const Job *job) {
    struct jpeg_decompress_struct *library = &decoder->library;
    const JpegRegion *region = &job->request->region;
    const uint32_t first = crop_columns(library, region);
    const size_t stride = (size_t)library->output_width * CHANNELS;
    if (region->y > 0) jpeg_skip_scanlines(library, region->y);
    for (uint32_t y = 0, count; y < region->height; y += count) {
        count = region->height - y < STRIP_ROWS ? region->height - y : STRIP_ROWS;
        read_rows(library, decoder->strip, stride, count);
        if (y < decoder->given) continue;
        job->take(job->context, decoder->strip + (size_t)(region->x - first) * CHANNELS, stride, count);
        decoder->given += count;
    }
}

static bool decodes(JpegDecoder *decoder, const Job *job) {
    struct jpeg_decompress_struct *library = &decoder->library;
    if (setjmp(decoder->failure.back) != 0) {
        jpeg_abort_decompress(library);
        return false;
    }
    decoder_start(decoder, job);
    if (job->rgb != NULL)
        read_rows(library, job->rgb, job->stride, library->output_height);
    else
        read_region(decoder, job);
    if (library->output_scanline == library->output_height)
        jpeg_finish_decompress(library); /* also checks for the end marker */
    else
        jpeg_abort_decompress(library);
    return true;
}

/* The most bytes that a scan can need: less than 4 for each coefficient, including blocks that overlap the edges. */
static size_t most_bytes(const Job *job) {
    const uint64_t pixels = ((uint64_t)job->request->width + EDGE) * ((uint64_t)job->request->height + EDGE);
    const uint64_t bytes = pixels * CHANNELS * 4;
    return bytes < job->size ? (size_t)bytes : job->size;
}

static Status decoder_run(JpegDecoder *decoder, const Job *job) {
    const JpegRequest *request = job->request;
    JpegInfo info;
    TRY(jpeg_parse_header(job->data, job->size, &info));
    if (info.width != request->width || info.height != request->height) {
        FAIL(STATUS_FORMAT, "JPEG of %u x %u pixels where %u x %u were expected", info.width, info.height,
             request->width, request->height);
    }
    TRY(jpeg_check_scans(job->data, job->size, info));
    TRY(memory_reserve(&decoder->interval, &decoder->interval_bytes, most_bytes(job) + JPEG_HUFFMAN_BEYOND, 1));
    decoder->given = 0;
    if (decodes(decoder, job)) return STATUS_OK;
    if (!decoder->by_library) { /* the library has the last word on streams with faults */
        decoder->by_library = true;
        const bool sound = decodes(decoder, job);
        decoder->by_library = false;
        if (sound) return STATUS_OK;
    }
    FAIL(STATUS_FORMAT, "corrupt JPEG data: %s", decoder->failure.message);
}

Status jpeg_decode(JpegDecoder *decoder, const void *data, size_t size, JpegIdct idct, uint32_t width, uint32_t height,
                   uint8_t *rgb, size_t stride) {
    const JpegRequest request = {.idct = idct, .width = width, .height = height, .shrink = 1};
    if (stride < (size_t)width * CHANNELS || stride > INT_MAX) {
        FAIL(STATUS_ARGUMENT, "rows of %u pixels do not fit a stride of %zu bytes", width, stride);
    }
    return decoder_run(decoder, &(Job){.data = data, .size = size, .request = &request, .rgb = rgb, .stride = stride});
}

Status jpeg_decode_region(JpegDecoder *decoder, const void *data, size_t size, const JpegRequest *request,
                          JpegTake take, void *context) {
    const JpegRegion *region = &request->region;
    if (request->shrink < 1 || request->shrink > 8 || (request->shrink & (request->shrink - 1)) != 0) {
        FAIL(STATUS_ARGUMENT, "a JPEG can be shrunk by 1, 2, 4 or 8, not by %u", request->shrink);
    }
    const uint32_t width = jpeg_shrunk(request->width, request->shrink),
                   height = jpeg_shrunk(request->height, request->shrink);
    if (region->height < 1 || region->width < 1 || (uint64_t)region->y + region->height > height ||
        (uint64_t)region->x + region->width > width) {
        FAIL(STATUS_ARGUMENT, "a region of %u x %u pixels at (%u, %u) is not within %u x %u", region->width,
             region->height, region->x, region->y, width, height);
    }
    /* The library looks for the end only after the last row. */
    if (!jpeg_has_end(data, size)) FAIL(STATUS_FORMAT, "corrupt JPEG data: it has no end marker");
    TRY(memory_reserve(&decoder->strip, &decoder->strip_bytes, STRIP_ROWS * (size_t)width * CHANNELS, 1));
    return decoder_run(decoder,
                       &(Job){.data = data, .size = size, .request = request, .take = take, .context = context});
}

/* ---- encoding ---- */

static void begin_target(j_compress_ptr library) { (void)library; }

static boolean overflow_target(j_compress_ptr library) {
    fail_with((Failure *)library->err, "the encoded data is larger than any JPEG of this size");
    return FALSE;
}

static bool encoder_starts(JpegEncoder *encoder) {
    encoder->library.err = failure_init(&encoder->failure);
    if (setjmp(encoder->failure.back) != 0) return false;
    jpeg_create_compress(&encoder->library);
    encoder->target.init_destination = encoder->target.term_destination = begin_target;
    encoder->target.empty_output_buffer = overflow_target;
    encoder->library.dest = &encoder->target;
    return true;
}

Status jpeg_encoder_create(JpegEncoder **out) {
    JpegEncoder *encoder = NULL;
    TRY(memory_calloc(1, sizeof *encoder, &encoder));
    if (encoder_starts(encoder)) {
        *out = encoder;
        return STATUS_OK;
    }
    Status status = error_fail(STATUS_LIBRARY, "libjpeg-turbo cannot start: %s", encoder->failure.message);
    jpeg_encoder_destroy(encoder);
    return status;
}

void jpeg_encoder_destroy(JpegEncoder *encoder) {
    if (encoder == NULL) return;
    jpeg_destroy_compress(&encoder->library);
    memory_free(encoder->buffer);
    memory_free(encoder);
}

/* 4:2:0 (the first component has twice the samples of the others in each direction) is the library's default. */
static bool encodes(JpegEncoder *encoder, const uint8_t *rgb, size_t stride, int quality) {
    struct jpeg_compress_struct *library = &encoder->library;
    if (setjmp(encoder->failure.back) != 0) {
        jpeg_abort_compress(library);
        return false;
    }
    library->input_components = CHANNELS;
    library->in_color_space = JCS_RGB;
    jpeg_set_defaults(library);
    jpeg_set_quality(library, quality, TRUE);
    library->dct_method = JDCT_ISLOW;
    encoder->target.next_output_byte = encoder->buffer;
    encoder->target.free_in_buffer = encoder->capacity;
    jpeg_start_compress(library, TRUE);
    while (library->next_scanline < library->image_height) {
        JSAMPROW row = (JSAMPROW)(uintptr_t)(rgb + library->next_scanline * stride); /* which it only reads */
        jpeg_write_scanlines(library, &row, 1);
    }
    jpeg_finish_compress(library);
    return true;
}

Status jpeg_encode(JpegEncoder *encoder, const uint8_t *rgb, size_t stride, uint32_t width, uint32_t height,
                   int quality, const uint8_t **data, size_t *size) {
    if (width == 0 || height == 0 || width > JPEG_MAX_SIDE || height > JPEG_MAX_SIDE) {
        FAIL(STATUS_ARGUMENT, "an image of %u x %u pixels cannot be a JPEG; sides are 1 to %d", width, height,
             JPEG_MAX_SIDE);
    }
    TRY(jpeg_check_pixels(width, height)); /* what is written here must be readable here, too */
    if (quality < 1 || quality > 100) FAIL(STATUS_ARGUMENT, "JPEG quality %d is not in 1..100", quality);
    if (stride < (size_t)width * CHANNELS || stride > INT_MAX) {
        FAIL(STATUS_ARGUMENT, "rows of %u pixels do not fit a stride of %zu bytes", width, stride);
    }
    const size_t blocks = (((size_t)width + 15) / 16) * (((size_t)height + 15) / 16);
    TRY(memory_reserve(&encoder->buffer, &encoder->capacity, blocks * 16 * 16 * 3 + HEADER_BYTES, 1));
    encoder->library.image_width = width;
    encoder->library.image_height = height;
    if (!encodes(encoder, rgb, stride, quality)) {
        FAIL(STATUS_LIBRARY, "JPEG encoding failed: %s", encoder->failure.message);
    }
    *data = encoder->buffer;
    *size = encoder->capacity - encoder->target.free_in_buffer;
    return STATUS_OK;
}
