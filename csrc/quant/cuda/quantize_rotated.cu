/* Tensors in device memory with the codec "rotated": whole pieces of buckets of 64, 128 .. 4,096 elements the quick
 * way, and what is left of a run bucket by bucket.
 *
 * The quick way: a warp has a piece (pieces.cuh), as 32 rows of 32 values. A lane first has a row, v[i] being value 32
 * lane + i, and with it the first five steps of the butterflies, and then a column, v[k] being value 32 k + lane, with
 * the others; sums are those of columns. In between, values pass through shared memory: value i is word i there, but
 * that the chunks of four of a row change places, so that rows and columns are both spread over all banks. Between the
 * pieces of a bucket that has several, values pass through their warps' shared memory, too, and sums go from one to the
 * next; barriers then wait for all warps, and so one without a piece works on a bucket that another writes. */
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
__device__ __forceinline__ void rotated_put_known(RotatedRoom *room, const typename QuantElement<TYPE>::Stored *x) {
    const int lane = quant_lane();
    PiecesElements<TYPE> elements;
    elements.load(x);
    FOR_QUADS(j) {
        float four[4];
        elements.group(j, four);
        *rotated_chunk(room, 4 * j + lane / 8, lane % 8) = make_float4(four[0], four[1], four[2], four[3]);
    }
}

/* The elements of a piece, of any type. */
__device__ static __forceinline__ void rotated_put_elements(RotatedRoom *room, const QuantItem *item, int64_t piece) {
#define PUT(TYPE)                                                                                                      \
    rotated_put_known<TYPE>(room, (const typename QuantElement<TYPE>::Stored *)item->run.x + piece * QUANT_PIECE)
    QUANT_BY_TYPE(item->run.spec.type, PUT);
#undef PUT
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

/* Those at distances of whole pieces; this warp has piece `part` of PIECES, in columns. */
template <int PIECES> __device__ __forceinline__ void rotated_between(RotatedRoom *room, int part, float (&v)[WARP]) {
#pragma unroll
    for (int h = 1; h < PIECES; h *= 2) {
        const float sign = (part & h) != 0 ? -1.0f : 1.0f; /* whose product is exact, so that one rounding is left */
        const float *other = room[(part & h) != 0 ? -h : h].values;
        ROTATED_LANES(k) room->values[WARP * k + quant_lane()] = v[k];
        __syncthreads();
        ROTATED_LANES(k) v[k] = __fmaf_rn(v[k], sign, other[WARP * k + quant_lane()]);
        __syncthreads();
    }
}

/* The signs of this lane's row; a bucket has ROWS of them in a piece. */
template <int ROWS> __device__ __forceinline__ uint32_t rotated_signs(const QuantRandom &run, const PiecesOwn &piece) {
    const int bucket = quant_lane() / ROWS, row = quant_lane() % ROWS;
    QuantRandom random = run;
    random.quad += (uint64_t)(piece.number * QUANT_PIECE - piece.inside) / 4 + (uint64_t)(bucket * ROWS * (WARP / 4));
    const Philox4 signs = quant_signs(&random, piece.inside / QUANT_SIGNS + row / 4);
    return row % 4 == 0 ? signs.word[0] : row % 4 == 1 ? signs.word[1] : row % 4 == 2 ? signs.word[2] : signs.word[3];
}

__device__ static __forceinline__ float rotated_flipped(float value, uint32_t signs, int bit) {
    return float_of_bits(float_bits(value) ^ (signs << (WARP - 1 - bit) & 0x80000000u));
}

/* ---- sums, of which each lane gets that of the bucket that its row is of ---- */

/* Of all lanes' partial sums of each of BUCKETS buckets, folded 16, 8, 4, 2, 1 as by quant_warp_fold: a step leaves
 * the same sum in two lanes, so with several buckets each half of the lanes goes on with half of them. */
template <int BUCKETS, int DISTANCE = WARP / 2>
__device__ __forceinline__ float rotated_fold(const float (&partial)[BUCKETS]) {
    constexpr int LEFT = BUCKETS > 1 ? BUCKETS / 2 : 1;
    const bool upper = BUCKETS > 1 && (quant_lane() & DISTANCE) != 0;
    float sums[LEFT];
#pragma unroll
    for (int i = 0; i < LEFT; i++) {
        const float low = partial[i], high = partial[BUCKETS - LEFT + i];
        const float given = __shfl_xor_sync(WHOLE_WARP, upper ? low : high, DISTANCE);
        sums[i] = QUANT_ADD(upper ? high : low, given);
    }
    if constexpr (DISTANCE > 1) {
        return rotated_fold<LEFT, DISTANCE / 2>(sums);
    } else {
        return sums[0];
    }
}

/* Of term(k) of each row k, bucket by bucket. */
template <int ROWS, int PIECES, typename Term>
__device__ __forceinline__ float rotated_sum(RotatedRoom *room, int part, const Term &term) {
    float partial[WARP / ROWS] = {};
    if constexpr (PIECES == 1) {
        ROTATED_LANES(k) partial[k / ROWS] = QUANT_ADD(partial[k / ROWS], term(k));
    } else {
        const int own = QUANT_PIECE - WARP + quant_lane(); /* behind codes */
#pragma unroll 1
        for (int turn = 0; turn < PIECES; turn++) {
            if (turn == part) {
                partial[0] = turn == 0 ? 0.0f : room[-1].values[own];
                ROTATED_LANES(k) partial[0] = QUANT_ADD(partial[0], term(k));
                room->values[own] = partial[0];
            }
            __syncthreads();
        }
        partial[0] = room[PIECES - 1 - part].values[own];
    }
    return rotated_fold(partial);
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

/* The codes of a piece, this lane's column of which is v, to the room, a byte each; returns the scale of the bucket
 * that the lane's row is of, from the sum of its squares. The values are no more afterwards. */
template <int ROWS, int PIECES>
__device__ __forceinline__ float rotated_put_codes(const QuantSpec &spec, float squares, int part, RotatedRoom *room,
                                                   float (&v)[WARP]) {
    const RotatedTables tables(spec.bits);
    float partial[WARP / ROWS] = {};
    const float rms = quant_rotated_rms(squares, PIECES * ROWS * WARP), inverse = quant_rotated_inverse(rms);
#pragma unroll
    for (int first = 0; first < WARP; first += ROWS) {
        const float own = ROWS == WARP ? inverse : __shfl_sync(WHOLE_WARP, inverse, first);
#pragma unroll
        for (int k = first; k < first + ROWS; k++) {
            const uint32_t code = tables.code(QUANT_MUL(v[k], own));
            room->codes.codes[k * WARP + quant_lane()] = (uint8_t)code;
            v[k] = QUANT_MUL(v[k], __shfl_sync(WHOLE_WARP, tables.level, (int)code));
            if (PIECES == 1) partial[k / ROWS] = QUANT_ADD(partial[k / ROWS], v[k]); /* at once: fewer registers */
        }
    }
    if (spec.scale == QUANT_SCALE_MSE) return rms; /* all warps of the block do */
    const float projection =
        PIECES == 1 ? rotated_fold(partial) : rotated_sum<ROWS, PIECES>(room, part, [&](int k) { return v[k]; });
    return inverse != inverse ? rms : QUANT_DIV(squares, projection);
}

template <int ROWS, int PIECES>
__device__ __forceinline__ void rotated_encode(const QuantItem *item, const PiecesOwn &piece, RotatedRoom *room) {
    const QuantSpec &spec = item->run.spec;
    const int part = piece.inside / QUANT_PIECE;
    uint8_t *base = (uint8_t *)item->run.wire;
    float v[WARP];
    rotated_put_elements(room, item, piece.number);
    rotated_take_row(room, v);
    const bool nan = rotated_is_nan<ROWS>(v);
    const uint32_t signs = rotated_signs<ROWS>(item->run.random, piece);
    ROTATED_LANES(i) v[i] = rotated_flipped(v[i], signs, i);
    rotated_butterflies<WARP>(v);
    rotated_turn(room, v);
    rotated_butterflies<ROWS>(v);
    if (PIECES > 1 && nan) v[0] = float_of_bits(QUANT_NAN_F32); /* for the other pieces */
    rotated_between<PIECES>(room, part, v);
    ROTATED_LANES(k) v[k] = QUANT_MUL(v[k], quant_rotation_factor(PIECES * ROWS * WARP));
    const float squares = rotated_sum<ROWS, PIECES>(room, part, [&](int k) { return QUANT_MUL(v[k], v[k]); });
    const float scale =
        rotated_put_codes<ROWS, PIECES>(spec, nan ? float_of_bits(QUANT_NAN_F32) : squares, part, room, v);
    if (!piece.some) return;
    if (part == 0 && quant_lane() % ROWS == 0) {
        reinterpret_cast<float *>(base + piece.place.metadata)[quant_lane() / ROWS] = scale;
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

/* This lane's column of a piece. */
template <QuantType TYPE>
__device__ __forceinline__ void rotated_store_known(const float (&v)[WARP], typename QuantElement<TYPE>::Stored *to) {
    ROTATED_LANES(k) to[k * WARP + quant_lane()] = QuantElement<TYPE>::narrowed(v[k]);
}

template <int ROWS, int PIECES>
__device__ __forceinline__ void rotated_decode(const QuantItem *item, const PiecesOwn &piece, RotatedRoom *room) {
    const uint8_t *base = (const uint8_t *)item->run.wire, *codes = base + piece.place.codes;
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
    const uint32_t signs = rotated_signs<ROWS>(item->run.random, piece);
    rotated_butterflies<WARP>(v);
    rotated_turn(room, v);
    rotated_butterflies<ROWS>(v);
    rotated_between<PIECES>(room, piece.inside / QUANT_PIECE, v);
    if (!piece.some) return;
    ROTATED_LANES(k) {
        const float value = QUANT_MUL(v[k], quant_rotation_factor(PIECES * ROWS * WARP));
        const uint32_t row = __shfl_sync(WHOLE_WARP, signs, k);
        v[k] = rotated_flipped(value, row, quant_lane());
    }
#define STORE(TYPE)                                                                                                    \
    rotated_store_known<TYPE>(v, (typename QuantElement<TYPE>::Stored *)item->run.x + piece.number * QUANT_PIECE)
    QUANT_BY_TYPE(item->run.spec.type, STORE);
#undef STORE
}

/* ---- kernels ---- */

static_assert(QUANT_ROTATED_MAX_BUCKET == 1 << 12 && QUANT_WARPS % QUANT_MAX_PIECES == 0, "all sizes have a kernel");

/* Those buckets of a batch that have 2^SHIFT elements: compiled together, all sizes would not fit into registers. */
template <bool ENCODE, int SHIFT>
static __global__ void __launch_bounds__(QUANT_WARPS *WARP, SHIFT > 10 && ENCODE ? 3 : 4)
    rotated_pieces_kernel(const QuantItem *items, int count) {
    constexpr int ROWS = 1 << (SHIFT < 10 ? SHIFT - 5 : 5), PIECES = 1 << (SHIFT < 10 ? 0 : SHIFT - 10);
    __shared__ RotatedRoom rooms[QUANT_WARPS];
    grid_begin();
    const QuantItem *item = quant_find_item<true>(items, count);
    const int warp = (int)threadIdx.x / WARP;
    PiecesOwn piece = pieces_own(item);
    if (item->shift != SHIFT || (PIECES == 1 && !piece.some)) return;
    if (!piece.some) {
        piece = pieces_of(item, warp % PIECES); /* of the block's first bucket */
        piece.some = false;
    }
    if (ENCODE) {
        rotated_encode<ROWS, PIECES>(item, piece, &rooms[warp]);
    } else {
        rotated_decode<ROWS, PIECES>(item, piece, &rooms[warp]);
    }
}

template <bool ENCODE> static Status rotated_launch_shifts(const QuantDeviceBatch *batch, DeviceStream *stream) {
#define LAUNCH_SHIFT(SHIFT)                                                                                            \
    if (batch->shifts >> SHIFT & 1) {                                                                                  \
        TRY(LAUNCH_AFTER((rotated_pieces_kernel<ENCODE, SHIFT>), (unsigned)batch->quick_blocks, QUANT_WARPS *WARP, 0,  \
                         stream, batch->items, batch->count));                                                         \
    }
    LAUNCH_SHIFT(6)
    LAUNCH_SHIFT(7)
    LAUNCH_SHIFT(8)
    LAUNCH_SHIFT(9)
    LAUNCH_SHIFT(10)
    LAUNCH_SHIFT(11)
    LAUNCH_SHIFT(12)
#undef LAUNCH_SHIFT
    return STATUS_OK;
}

extern "C" Status quant_launch_rotated(const QuantDeviceBatch *batch, bool encode, DeviceStream *stream) {
    TRY(encode ? rotated_launch_shifts<true>(batch, stream) : rotated_launch_shifts<false>(batch, stream));
    return batch->blocks > 0 ? quant_launch<QUANT_ROTATED>(batch, encode, stream) : STATUS_OK;
}
