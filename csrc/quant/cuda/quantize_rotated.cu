/* Tensors in device memory with the codec "rotated": whole pieces of buckets of 64, 128 .. 1,024 elements the quick
 * way, and what is left of a run bucket by bucket.
 *
 * The quick way: a warp has a piece (pieces.cuh), as 32 rows of 32 values. A lane first has a row, v[i] being value 32
 * lane + i, and with it the first five steps of the butterflies, and then a column, v[k] being value 32 k + lane, with
 * the others; sums are those of columns. In between, values pass through shared memory: value i is word i there, but
 * that the chunks of four of a row change places, so that rows and columns are both spread over all banks. */
#include "quant/cuda/pieces.cuh"

#define ROTATED_LANES(k) _Pragma("unroll") for (int k = 0; k < WARP; k++)

/* A warp's shared memory; codes come when values are no longer needed. */
union RotatedRoom {
    QuantRoom codes;
    float4 chunks[QUANT_PIECE / 4];
    float values[QUANT_PIECE];
};

/* ---- values ---- */

/* Of row `row`. */
__device__ static __forceinline__ float4 *rotated_chunk(RotatedRoom *room, int row, int chunk) {
    return room->chunks + 8 * row + (chunk ^ (row & 7));
}

template <QuantType TYPE>
__device__ __forceinline__ void rotated_put_elements(RotatedRoom *room, const PiecesElements<TYPE> &elements) {
    const int lane = quant_lane();
    FOR_QUADS(j) {
        float four[4];
        elements.group(j, four);
        *rotated_chunk(room, 4 * j + lane / 8, lane % 8) = make_float4(four[0], four[1], four[2], four[3]);
    }
    __syncwarp();
}

__device__ static __forceinline__ void rotated_take_row(RotatedRoom *room, float (&v)[WARP]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float4 four = *rotated_chunk(room, quant_lane(), i);
        v[4 * i] = four.x, v[4 * i + 1] = four.y, v[4 * i + 2] = four.z, v[4 * i + 3] = four.w;
    }
}

/* Rows become columns. */
__device__ static __forceinline__ void rotated_turn(RotatedRoom *room, float (&v)[WARP]) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; i++) {
        *rotated_chunk(room, quant_lane(), i) = make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
    }
    __syncwarp();
    ROTATED_LANES(k) v[k] = room->values[WARP * k + (quant_lane() ^ 4 * (k & 7))];
    __syncwarp();
}

/* Up to a distance of COUNT. */
template <int COUNT> __device__ __forceinline__ void rotated_butterflies(float (&v)[WARP]) {
#pragma unroll
    for (int h = 1; h < COUNT; h *= 2) {
        ROTATED_LANES(k) {
            if ((k & h) == 0) quant_butterfly(&v[k], &v[k + h]);
        }
    }
}

/* The signs of this lane's row; a bucket has ROWS of them. */
template <int ROWS> __device__ __forceinline__ uint32_t rotated_signs(const QuantRandom &run, int64_t piece) {
    const int bucket = quant_lane() / ROWS, row = quant_lane() % ROWS;
    QuantRandom random = run;
    random.quad += (uint64_t)piece * (QUANT_PIECE / 4) + (uint64_t)(bucket * ROWS * (WARP / 4));
    const Philox4 signs = quant_signs(&random, row / 4);
    return row % 4 == 0 ? signs.word[0] : row % 4 == 1 ? signs.word[1] : row % 4 == 2 ? signs.word[2] : signs.word[3];
}

__device__ static __forceinline__ float rotated_flipped(float value, uint32_t signs, int bit) {
    return float_of_bits(float_bits(value) ^ (signs << (WARP - 1 - bit) & 0x80000000u));
}

/* ---- to the wire ---- */

/* Whether this lane's row belongs to a bucket of NaN. */
template <int ROWS> __device__ __forceinline__ bool rotated_is_nan(const float (&v)[WARP]) {
    float magnitude = 0.0f;
    ROTATED_LANES(i) magnitude = quant_max_nan(magnitude, fabsf(v[i]));
#pragma unroll
    for (int distance = 1; distance < ROWS; distance *= 2) {
        magnitude = quant_max_nan(magnitude, __shfl_xor_sync(WHOLE_WARP, magnitude, distance));
    }
    return (float_bits(magnitude) & 0x7FFFFFFFu) >= QUANT_ROTATED_LIMIT;
}

/* What codes are found with: lane l has the level of code l, and the threshold above it, again and again. */
struct RotatedTables {
    QuantCurve curve;
    float level, above;

    __device__ __forceinline__ explicit RotatedTables(int bits) : curve(bits) {
        const int code = quant_lane() & ((1 << bits) - 1);
        level = quant_level(bits, code);
        above = quant_threshold_above(bits, code);
    }

    /* Marked; shuffles go by the last bits. */
    __device__ __forceinline__ uint32_t code(float t) const {
        const float guess = curve.guess(t);
        return quant_marked_decided(guess, __shfl_sync(WHOLE_WARP, above, (int)float_bits(guess)), t);
    }
};

/* The codes of a bucket, this lane's column of which is v, to `codes`, 32 for each row; returns its scale. */
template <int ROWS>
__device__ __forceinline__ float rotated_encode_bucket(const RotatedTables &tables, const float *v, bool unbiased,
                                                       uint8_t *codes) {
    float squares = 0.0f, partial = 0.0f;
#pragma unroll
    for (int k = 0; k < ROWS; k++) squares = QUANT_ADD(squares, QUANT_MUL(v[k], v[k]));
    squares = quant_warp_fold(squares);
    const float rms = quant_rotated_rms(squares, ROWS * WARP), inverse = quant_rotated_inverse(rms);
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        const uint32_t code = tables.code(QUANT_MUL(v[k], inverse));
        codes[k * WARP + quant_lane()] = (uint8_t)code;
        if (unbiased) partial = QUANT_ADD(partial, QUANT_MUL(v[k], __shfl_sync(WHOLE_WARP, tables.level, (int)code)));
    }
    if (inverse != inverse || !unbiased) return rms;
    return QUANT_DIV(squares, quant_warp_fold(partial));
}

template <QuantType TYPE, int ROWS>
__device__ __forceinline__ void rotated_encode(const QuantItem *item, const PiecesOwn &piece, RotatedRoom *room) {
    const QuantSpec &spec = item->run.spec;
    const RotatedTables tables(spec.bits);
    uint8_t *base = (uint8_t *)item->run.wire;
    float *scales = reinterpret_cast<float *>(base + piece.place.metadata);
    PiecesElements<TYPE> elements;
    float v[WARP];
    elements.load((const typename QuantElement<TYPE>::Stored *)item->run.x + piece.number * QUANT_PIECE);
    rotated_put_elements(room, elements);
    rotated_take_row(room, v);
    const uint32_t nan = __ballot_sync(WHOLE_WARP, rotated_is_nan<ROWS>(v));
    const uint32_t signs = rotated_signs<ROWS>(item->run.random, piece.number);
    ROTATED_LANES(i) v[i] = rotated_flipped(v[i], signs, i);
    rotated_butterflies<WARP>(v);
    rotated_turn(room, v);
    rotated_butterflies<ROWS>(v);
#pragma unroll
    for (int first = 0; first < WARP; first += ROWS) {
        const float factor = nan >> first & 1 ? float_of_bits(QUANT_NAN_F32) : quant_rotation_factor(ROWS * WARP);
#pragma unroll
        for (int k = first; k < first + ROWS; k++) v[k] = QUANT_MUL(v[k], factor);
        const float scale = rotated_encode_bucket<ROWS>(tables, v + first, spec.scale != QUANT_SCALE_MSE,
                                                        room->codes.codes + first * WARP);
        if (quant_lane() == 0) scales[first / ROWS] = scale;
    }
    quant_emit_codes({&base, 1}, piece.place.codes, spec.bits, QUANT_PIECE, &room->codes);
}

/* ---- from the wire ---- */

/* This lane's row of codes, `BITS` words of them, as levels times a scale. */
template <int BITS>
__device__ __forceinline__ void rotated_take_levels(const uint8_t *codes, float scale, float (&v)[WARP]) {
    const float level = quant_level(BITS, quant_lane() & ((1 << BITS) - 1));
    const uint32_t *from = reinterpret_cast<const uint32_t *>(codes) + BITS * quant_lane();
    uint32_t words[BITS + 1] = {};
    if constexpr (BITS == 4) {
        const uint4 four = __ldcg(reinterpret_cast<const uint4 *>(from));
        words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
    } else {
#pragma unroll
        for (int i = 0; i < BITS; i++) words[i] = __ldcg(from + i);
    }
    ROTATED_LANES(i) {
        const int word = i * BITS / WARP, shift = i * BITS % WARP;
        const uint32_t code = __funnelshift_r(words[word], words[word + 1], shift); /* shuffles go by the last bits */
        v[i] = QUANT_MUL(__shfl_sync(WHOLE_WARP, level, (int)code), scale);
    }
}

template <QuantType TYPE, int ROWS>
__device__ __forceinline__ void rotated_decode(const QuantItem *item, const PiecesOwn &piece, RotatedRoom *room) {
    const uint8_t *base = (const uint8_t *)item->run.wire, *codes = base + piece.place.codes;
    auto *to = (typename QuantElement<TYPE>::Stored *)item->run.x + piece.number * QUANT_PIECE + quant_lane();
    float scale = __ldcg(reinterpret_cast<const float *>(base + piece.place.metadata) + quant_lane() / ROWS);
    float v[WARP];
    if (!quant_is_finite(scale)) scale = float_of_bits(QUANT_NAN_F32);
    switch (item->run.spec.bits) {
    case 1:
        rotated_take_levels<1>(codes, scale, v);
        break;
    case 2:
        rotated_take_levels<2>(codes, scale, v);
        break;
    case 3:
        rotated_take_levels<3>(codes, scale, v);
        break;
    default:
        rotated_take_levels<4>(codes, scale, v);
    }
    const uint32_t signs = rotated_signs<ROWS>(item->run.random, piece.number);
    rotated_butterflies<WARP>(v);
    rotated_turn(room, v);
    rotated_butterflies<ROWS>(v);
    ROTATED_LANES(k) {
        const float value = QUANT_MUL(v[k], quant_rotation_factor(ROWS * WARP));
        const uint32_t row = __shfl_sync(WHOLE_WARP, signs, k);
        to[k * WARP] = QuantElement<TYPE>::narrowed(rotated_flipped(value, row, quant_lane()));
    }
}

/* ---- kernels ---- */

template <QuantType TYPE, bool ENCODE>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, 4)
    rotated_pieces_kernel(const QuantItem *items, int count) {
    __shared__ RotatedRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<true>(items, count);
    const PiecesOwn piece = pieces_own(item);
    RotatedRoom *room = &rooms[threadIdx.x / WARP];
    if (!piece.some) return;
#define CASE(shift)                                                                                                    \
    case shift:                                                                                                        \
        if (ENCODE) rotated_encode<TYPE, 1 << (shift - 5)>(item, piece, room);                                         \
        if (!ENCODE) rotated_decode<TYPE, 1 << (shift - 5)>(item, piece, room);                                        \
        break;
    switch (item->shift) {
        CASE(6)
        CASE(7)
        CASE(8)
        CASE(9)
        CASE(10)
    }
#undef CASE
}

template <QuantType TYPE>
static Status rotated_launch_type(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
#define LAUNCH_PIECES(ENCODE)                                                                                          \
    LAUNCH_AFTER((rotated_pieces_kernel<TYPE, ENCODE>), (unsigned)batch->quick_blocks, QUANT_WARPS *WARP, 0, stream,   \
                 batch->items, batch->count)
    return encode ? LAUNCH_PIECES(true) : LAUNCH_PIECES(false);
#undef LAUNCH_PIECES
}

static Status rotated_launch_quick(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    if (batch->type == QUANT_F16) return rotated_launch_type<QUANT_F16>(batch, encode, stream);
    if (batch->type == QUANT_BF16) return rotated_launch_type<QUANT_BF16>(batch, encode, stream);
    return rotated_launch_type<QUANT_F32>(batch, encode, stream);
}

extern "C" Status quant_launch_rotated(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    if (batch->quick_blocks > 0) TRY(rotated_launch_quick(batch, encode, stream));
    return batch->blocks > 0 ? quant_launch<QUANT_ROTATED>(batch, encode, stream) : STATUS_OK;
}
