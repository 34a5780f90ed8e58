/* What one warp does with a piece of a bucket: 1,024 elements in registers, `v[k]` of a lane being element 32 k + lane,
 * so that loads of any alignment are whole lines and the 32 partial sums of docs/WIRE.md are the lanes'. Codes pass
 * through shared memory, a byte each, on their way to the packed form, and packed on their way back. */
#ifndef CGXFFCV_QUANT_CUDA_WARP_CUH
#define CGXFFCV_QUANT_CUDA_WARP_CUH

#include "device/kernel.cuh"

extern "C" {
#include "quant/formula.h"
}

#define QUANT_ROWS 32
#define QUANT_PIECE (QUANT_ROWS * WARP)
#define QUANT_CHUNK 16 /* bytes that are moved at once */

/* A warp's shared memory. */
struct alignas(16) QuantRoom {
    uint8_t codes[QUANT_PIECE + 2 * QUANT_CHUNK]; /* what is packed may begin within a chunk and is read by words */
    uint32_t words[QUANTIZE_MAX_SPIKES];          /* random numbers, or spikes that came in */
};

/* Where a bucket stands, in bytes from the base of whatever it is written to or read from. */
struct QuantPlace {
    uint64_t metadata, spikes, codes;
};

/* Where a bucket is written to: the same bytes at the same places behind several bases, multiples of QUANT_CHUNK. */
struct QuantSink {
    uint8_t *const *bases;
    int count;
};

/* Keeps what is lost: residual = (value - decoded) * unscaled of the bucket's elements, 0 where that is no number. */
struct QuantKeep {
    float *residual; /* NULL: nothing is kept */
    float unscaled;
};

__device__ static __forceinline__ int quant_lane(void) { return (int)(threadIdx.x % WARP); }

/* ---- elements; on the way down every NaN becomes the canonical one ---- */

template <QuantType TYPE> struct QuantElement;

template <> struct QuantElement<QUANT_F32> {
    typedef float Stored;
    __device__ static __forceinline__ float load(const float *from) { return *from; }
    __device__ static __forceinline__ float narrowed(float value) {
        return value != value ? float_of_bits(QUANT_NAN_F32) : value;
    }
    __device__ static __forceinline__ float widened(float value) { return value; }
};

template <> struct QuantElement<QUANT_F16> {
    typedef uint16_t Stored;
    __device__ static __forceinline__ float load(const uint16_t *from) { return widened(*from); }
    __device__ static __forceinline__ uint16_t narrowed(float value) {
        return value != value ? (uint16_t)HALF_NAN : __half_as_ushort(__float2half_rn(value));
    }
    __device__ static __forceinline__ float widened(uint16_t value) { return __half2float(__ushort_as_half(value)); }
};

template <> struct QuantElement<QUANT_BF16> {
    typedef uint16_t Stored;
    __device__ static __forceinline__ float load(const uint16_t *from) { return bfloat16_to_float(*from); }
    __device__ static __forceinline__ uint16_t narrowed(float value) { return bfloat16_from_float(value); }
    __device__ static __forceinline__ float widened(uint16_t value) { return bfloat16_to_float(value); }
};

/* The rows that hold elements of this lane, of `count` in the piece. */
__device__ static __forceinline__ int quant_rows(int count) { return (count + WARP - 1 - quant_lane()) / WARP; }

/* Elements [first, first + count) of x, scaled; 0 beyond. */
template <QuantType TYPE>
__device__ __forceinline__ void quant_load_piece(const void *x, int64_t first, int count, float scale,
                                                 float (&v)[QUANT_ROWS]) {
    typedef typename QuantElement<TYPE>::Stored Stored;
    const Stored *from = (const Stored *)x + first + quant_lane();
    if (count == QUANT_PIECE) {
#pragma unroll
        for (int k = 0; k < QUANT_ROWS; k++) v[k] = QUANT_MUL(QuantElement<TYPE>::load(from + k * WARP), scale);
        return;
    }
    int rows = quant_rows(count);
#pragma unroll
    for (int k = 0; k < QUANT_ROWS; k++) {
        v[k] = k < rows ? QUANT_MUL(QuantElement<TYPE>::load(from + k * WARP), scale) : 0.0f;
    }
}

template <QuantType TYPE>
__device__ __forceinline__ void quant_store_piece(void *x, int64_t first, int count, const float (&v)[QUANT_ROWS]) {
    typedef typename QuantElement<TYPE>::Stored Stored;
    Stored *to = (Stored *)x + first + quant_lane();
    int rows = quant_rows(count);
#pragma unroll
    for (int k = 0; k < QUANT_ROWS; k++) {
        if (k < rows) to[k * WARP] = QuantElement<TYPE>::narrowed(v[k]);
    }
}

__device__ static __forceinline__ int quant_piece_count(int64_t elems, int64_t first) {
    return elems - first < QUANT_PIECE ? (int)(elems - first) : QUANT_PIECE;
}

/* Elements as the codec sees them: with 16-bit ranges they are of the tensor's type. */
template <QuantType TYPE> __device__ __forceinline__ float quant_seen(const QuantSpec &spec, float value) {
    if (TYPE == QUANT_F32 || !spec.half_metadata) return value;
    return QuantElement<TYPE>::widened(QuantElement<TYPE>::narrowed(value));
}

/* ---- to the wire ---- */

/* Four codes of a byte each as 4 * BITS bits. */
template <int BITS> __device__ __forceinline__ uint32_t quant_pack_four(uint32_t codes) {
    uint32_t pairs = (codes & 0x00FF00FFu) | ((codes & 0xFF00FF00u) >> (8 - BITS));
    return (pairs & 0xFFFFu) | ((pairs >> 16) << (2 * BITS));
}

/* The room's codes become packed ones in its first 128 * BITS bytes. */
template <int BITS> __device__ __forceinline__ void quant_pack(QuantRoom *room) {
    const int lane = quant_lane();
    uint32_t codes[WARP / 4], packed[BITS] = {};
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint4 chunk = reinterpret_cast<const uint4 *>(room->codes)[2 * lane + i];
        codes[4 * i] = chunk.x, codes[4 * i + 1] = chunk.y, codes[4 * i + 2] = chunk.z, codes[4 * i + 3] = chunk.w;
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < WARP / 4; i++) {
        const int at = i * 4 * BITS, word = at / 32, shift = at % 32;
        uint32_t bits = quant_pack_four<BITS>(codes[i]);
        packed[word] |= bits << shift;
        if (shift + 4 * BITS > 32) packed[(word + 1) % BITS] |= bits >> ((32 - shift) % 32);
    }
    uint32_t *to = reinterpret_cast<uint32_t *>(room->codes) + lane * BITS;
#pragma unroll
    for (int i = 0; i < BITS; i++) to[i] = packed[i];
    __syncwarp();
}

/* Writes `bytes` of shared memory (at a multiple of QUANT_CHUNK). */
__device__ static __forceinline__ void quant_emit(QuantSink sink, uint64_t at, const uint8_t *from, int bytes) {
    int whole = at % QUANT_CHUNK == 0 ? bytes / QUANT_CHUNK : 0;
    for (int i = quant_lane(); i < whole; i += WARP) {
        uint4 chunk = reinterpret_cast<const uint4 *>(from)[i];
        for (int s = 0; s < sink.count; s++) reinterpret_cast<uint4 *>(sink.bases[s] + at)[i] = chunk;
    }
    for (int i = whole * QUANT_CHUNK + quant_lane(); i < bytes; i += WARP) {
        for (int s = 0; s < sink.count; s++) sink.bases[s][at + (uint64_t)i] = from[i];
    }
}

__device__ static __forceinline__ void quant_emit_codes(QuantSink sink, uint64_t at, int bits, int count,
                                                        QuantRoom *room) {
#define QUANT_CASE(q)                                                                                                  \
    case q:                                                                                                            \
        quant_pack<q>(room);                                                                                           \
        break;
    switch (bits) {
        QUANT_CASE(1) QUANT_CASE(2) QUANT_CASE(3) QUANT_CASE(4) QUANT_CASE(5) QUANT_CASE(6) QUANT_CASE(7) QUANT_CASE(8)
    }
#undef QUANT_CASE
    quant_emit(sink, at, room->codes, (count * bits + 7) / 8);
}

/* Writes 2, 4 or 8 bytes, which stand at a multiple of their size. */
__device__ static __forceinline__ void quant_emit_word(QuantSink sink, uint64_t at, uint64_t word, int bytes) {
    for (int s = quant_lane(); s < sink.count; s += WARP) {
        uint8_t *to = sink.bases[s] + at;
        if (bytes == 8) *reinterpret_cast<uint2 *>(to) = make_uint2((uint32_t)word, (uint32_t)(word >> 32));
        if (bytes == 4) *reinterpret_cast<uint32_t *>(to) = (uint32_t)word;
        if (bytes == 2) *reinterpret_cast<uint16_t *>(to) = (uint16_t)word;
    }
}

/* ---- from the wire: others write it, so the nearer cache is passed by ---- */

__device__ static __forceinline__ uint64_t quant_fetch_word(const uint8_t *from, int bytes) {
    if (bytes == 2) return __ldcg(reinterpret_cast<const unsigned short *>(from));
    if (bytes == 4) return __ldcg(reinterpret_cast<const unsigned int *>(from));
    uint2 both = __ldcg(reinterpret_cast<const uint2 *>(from));
    return (uint64_t)both.y << 32 | both.x;
}

/* Brings `bytes` at base + at into the room, in chunks; returns how many bytes of the room come before them. The base
 * is a multiple of QUANT_CHUNK, and the memory behind it ends at one. */
__device__ static __forceinline__ int quant_fetch(const uint8_t *base, uint64_t at, int bytes, QuantRoom *room) {
    int before = (int)(at % QUANT_CHUNK), chunks = (before + bytes + QUANT_CHUNK - 1) / QUANT_CHUNK;
    const uint4 *from = reinterpret_cast<const uint4 *>(base + (at - (uint64_t)before));
    uint4 *to = reinterpret_cast<uint4 *>(room->codes);
    __syncwarp();
    for (int i = quant_lane(); i < chunks; i += WARP) to[i] = __ldcg(from + i);
    if (quant_lane() == 0) to[chunks] = make_uint4(0, 0, 0, 0); /* the last code may end with the last word */
    __syncwarp();
    return before;
}

/* The code that begins at a bit of the room. */
__device__ static __forceinline__ uint32_t quant_code_at(const QuantRoom *room, int bit, int bits) {
    const uint32_t *words = reinterpret_cast<const uint32_t *>(room->codes) + bit / 32;
    uint32_t high = (bits & (bits - 1)) == 0 ? 0 : words[1]; /* a power of two never crosses words */
    return __funnelshift_r(words[0], high, (uint32_t)bit % 32) & ((1u << bits) - 1u);
}

/* ---- reductions ---- */

__device__ static __forceinline__ float quant_warp_least(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value = fminf(value, __shfl_xor_sync(WHOLE_WARP, value, distance));
    }
    return value;
}

/* The 32 partial sums folded 16, 8, 4, 2, 1: lane 0's is the sum, which all get. */
__device__ static __forceinline__ float quant_warp_fold(float partial) {
#pragma unroll
    for (int width = WARP / 2; width > 0; width /= 2) {
        partial = QUANT_ADD(partial, __shfl_down_sync(WHOLE_WARP, partial, (unsigned)width));
    }
    return __shfl_sync(WHOLE_WARP, partial, 0);
}

/* Random words of elements [first + 128 group, + 128), each in the lane and row that holds the element. */
__device__ static __forceinline__ void quant_draw(const QuantRandom &random, int64_t first, int group,
                                                  QuantRoom *room) {
    uint64_t quad = random.quad + (uint64_t)first / 4 + (uint64_t)(group * WARP + quant_lane());
    Philox4 drawn = philox_at(random.seed, random.call, quad, PHILOX_QUANTIZE, random.rank);
    __syncwarp();
    reinterpret_cast<uint4 *>(room->words)[quant_lane()] =
        make_uint4(drawn.word[0], drawn.word[1], drawn.word[2], drawn.word[3]);
    __syncwarp();
}

#endif
