/* What one warp does with a piece of a bucket: 1,024 elements in registers, 8 groups of 128 after each other, of which
 * a lane has four. Codes pass through shared memory on their way to the packed form, and packed on their way back. */
#ifndef CGXFFCV_QUANT_CUDA_WARP_CUH
#define CGXFFCV_QUANT_CUDA_WARP_CUH

#include "device/kernel.cuh"

extern "C" {
#include "quant/residual.h"
}

#define QUANT_ROWS 32
static_assert(QUANT_PIECE == QUANT_ROWS * WARP && QUANT_GROUP == 4 * WARP, "a warp has a piece");
#define QUANT_MOVE_BYTES 16 /* bytes that are moved at once */

/* A warp's shared memory. */
struct alignas(16) QuantRoom {
    uint8_t codes[QUANT_PIECE + 2 * QUANT_MOVE_BYTES]; /* what is packed may begin within a move and is read by words */
    uint32_t words[QUANTIZE_MAX_SPIKES];               /* random numbers, or spikes that came in */
};

/* How the elements of a piece lie: v[k] of a lane is element 32 k + lane, so that the 32 partial sums of docs/WIRE.md
 * are the lanes' and ballots are in order; or a lane has four neighbours of each group, which are moved at once, share
 * a draw of random numbers, and stand beside each other when they are packed. */
enum QuantLie { QUANT_STRIPED, QUANT_QUADS };

template <QuantCodec CODEC> __host__ __device__ constexpr QuantLie quant_lie(void) {
    return CODEC == QUANT_MAXMIN ? QUANT_QUADS : QUANT_STRIPED;
}

/* Where a bucket stands, in bytes from the base of whatever it is written to or read from. */
struct QuantPlace {
    uint64_t metadata, spikes, codes;
};

/* Where a bucket is written to: the same bytes at the same places behind several bases, which are multiples of
 * QUANT_MOVE_BYTES. */
struct QuantSink {
    uint8_t *const *bases;
    int count;
};

/* Keeps what is lost: residual = (value - decoded) * unscaled of the bucket's elements, 0 where that is no number. */
struct QuantKeep {
    static constexpr bool EIGHT = false;
    float *residual; /* NULL: nothing is kept */
    float unscaled;

    __device__ __forceinline__ bool keeps() const { return residual != nullptr; }
};

/* The same in 8 bits (quant/residual.h). A type of its own, so that what keeps nothing takes no registers for it. */
struct QuantKeepEight {
    static constexpr bool EIGHT = true;
    int8_t *codes;      /* NULL: nothing is kept */
    uint8_t *exponents; /* of the bucket, and of those behind it */
    float unscaled;

    __device__ __forceinline__ bool keeps() const { return codes != nullptr; }
};

__device__ static __forceinline__ int quant_lane(void) { return (int)(threadIdx.x % WARP); }

/* The element of v[k] is quant_start + quant_step(k) of the piece. */
template <QuantLie LIE> __device__ __forceinline__ int quant_start(void) {
    return LIE == QUANT_QUADS ? 4 * quant_lane() : quant_lane();
}
template <QuantLie LIE> __device__ constexpr int quant_step(int k) {
    return LIE == QUANT_QUADS ? k / 4 * QUANT_GROUP + k % 4 : k * WARP;
}

/* For each group that has elements of a piece of `count`. */
#define FOR_GROUPS(j, count)                                                                                           \
    _Pragma("unroll") for (int j = 0; j < QUANT_PIECE / QUANT_GROUP; j++) if (j * QUANT_GROUP < (count))

/* ---- elements; on the way down every NaN becomes the canonical one ---- */

/* CALL with the type as a constant. */
#define QUANT_BY_TYPE(type, CALL)                                                                                      \
    ((type) == QUANT_F16 ? CALL(QUANT_F16) : (type) == QUANT_BF16 ? CALL(QUANT_BF16) : CALL(QUANT_F32))

template <QuantType TYPE> struct QuantElement;

template <> struct QuantElement<QUANT_F32> {
    typedef float Stored;
    __device__ static __forceinline__ float narrowed(float value) {
        return value != value ? float_of_bits(QUANT_NAN_F32) : value;
    }
    __device__ static __forceinline__ float widened(float value) { return value; }
};

template <> struct QuantElement<QUANT_F16> {
    typedef uint16_t Stored;
    __device__ static __forceinline__ uint16_t narrowed(float value) {
        return value != value ? (uint16_t)HALF_NAN : __half_as_ushort(__float2half_rn(value));
    }
    __device__ static __forceinline__ float widened(uint16_t value) { return __half2float(__ushort_as_half(value)); }
};

template <> struct QuantElement<QUANT_BF16> {
    typedef uint16_t Stored;
    __device__ static __forceinline__ uint16_t narrowed(float value) {
        return value != value ? (uint16_t)BFLOAT16_NAN : __bfloat16_as_ushort(__float2bfloat16_rn(value));
    }
    __device__ static __forceinline__ float widened(uint16_t value) { return bfloat16_to_float(value); }
};

/* The rows that hold elements of this lane, of `count` in the piece, where they lie striped. */
__device__ static __forceinline__ int quant_rows(int count) { return (count + WARP - 1 - quant_lane()) / WARP; }

/* Whether four neighbours can be moved at once. */
template <typename Stored> __device__ __forceinline__ bool quant_is_aligned(const Stored *x) {
    return (uintptr_t)x % (4 * sizeof(Stored)) == 0;
}

/* Own memory is read as usual; what others write, past the nearer cache, which may hold what was there before. */
template <bool OTHERS, typename T> __device__ __forceinline__ T quant_read(const T *from) {
    return OTHERS ? __ldcg(from) : *from;
}

template <bool OTHERS> __device__ __forceinline__ void quant_read_four(const float *from, float (&to)[4]) {
    float4 four = quant_read<OTHERS>(reinterpret_cast<const float4 *>(from));
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

template <bool OTHERS> __device__ __forceinline__ void quant_read_four(const uint16_t *from, uint16_t (&to)[4]) {
    uint2 four = quant_read<OTHERS>(reinterpret_cast<const uint2 *>(from));
    to[0] = (uint16_t)four.x, to[1] = (uint16_t)(four.x >> 16), to[2] = (uint16_t)four.y;
    to[3] = (uint16_t)(four.y >> 16);
}

__device__ static __forceinline__ void quant_put_four(float *to, const float (&four)[4]) {
    *reinterpret_cast<float4 *>(to) = make_float4(four[0], four[1], four[2], four[3]);
}

__device__ static __forceinline__ void quant_put_four(uint16_t *to, const uint16_t (&four)[4]) {
    *reinterpret_cast<uint2 *>(to) = make_uint2(four[0] | (uint32_t)four[1] << 16, four[2] | (uint32_t)four[3] << 16);
}

__device__ static __forceinline__ void quant_read_four(const int8_t *from, int8_t (&to)[4]) {
    const uint32_t four = *reinterpret_cast<const uint32_t *>(from);
    to[0] = (int8_t)four, to[1] = (int8_t)(four >> 8), to[2] = (int8_t)(four >> 16), to[3] = (int8_t)(four >> 24);
}

__device__ static __forceinline__ void quant_put_four(int8_t *to, const int8_t (&four)[4]) {
    *reinterpret_cast<uint32_t *>(to) = (uint8_t)four[0] | (uint32_t)(uint8_t)four[1] << 8 |
                                        (uint32_t)(uint8_t)four[2] << 16 | (uint32_t)(uint8_t)four[3] << 24;
}

/* This lane's elements of group j of a piece of `count` at x; 0 beyond. */
template <QuantType TYPE, QuantLie LIE, bool OTHERS>
__device__ __forceinline__ void quant_load_group(const typename QuantElement<TYPE>::Stored *x, int j, int count,
                                                 float (&to)[4]) {
    typedef typename QuantElement<TYPE>::Stored Stored;
    const int left = count - quant_start<LIE>();
    const Stored *from = x + quant_start<LIE>();
    if (LIE == QUANT_QUADS && quant_is_aligned(x) && quant_step<LIE>(4 * j) + 4 <= left) {
        Stored four[4];
        quant_read_four<OTHERS>(from + quant_step<LIE>(4 * j), four);
#pragma unroll
        for (int c = 0; c < 4; c++) to[c] = QuantElement<TYPE>::widened(four[c]);
        return;
    }
#pragma unroll
    for (int c = 0; c < 4; c++) {
        const int step = quant_step<LIE>(4 * j + c);
        to[c] = step < left ? QuantElement<TYPE>::widened(quant_read<OTHERS>(from + step)) : 0.0f;
    }
}

/* The same of a residual's codes: `unit` times each. */
template <QuantLie LIE>
__device__ __forceinline__ void quant_load_kept(const int8_t *codes, float unit, int j, int count, float (&to)[4]) {
    const int left = count - quant_start<LIE>();
    const int8_t *from = codes + quant_start<LIE>();
    int8_t four[4] = {};
    if (LIE == QUANT_QUADS && quant_is_aligned(codes) && quant_step<LIE>(4 * j) + 4 <= left) {
        quant_read_four(from + quant_step<LIE>(4 * j), four);
    } else {
#pragma unroll
        for (int c = 0; c < 4; c++) four[c] = quant_step<LIE>(4 * j + c) < left ? from[quant_step<LIE>(4 * j + c)] : 0;
    }
#pragma unroll
    for (int c = 0; c < 4; c++) to[c] = quant_residual_value(four[c], unit);
}

/* The residual's codes of what this lane has lost of group j. */
template <QuantLie LIE>
__device__ __forceinline__ void quant_store_kept(int8_t *codes, float inverse, int j, int count, const float *lost) {
    const int left = count - quant_start<LIE>();
    int8_t *to = codes + quant_start<LIE>(), four[4];
#pragma unroll
    for (int c = 0; c < 4; c++) four[c] = quant_residual_code(lost[c], inverse);
    if (LIE == QUANT_QUADS && quant_is_aligned(codes) && quant_step<LIE>(4 * j) + 4 <= left) {
        quant_put_four(to + quant_step<LIE>(4 * j), four);
        return;
    }
#pragma unroll
    for (int c = 0; c < 4; c++) {
        if (quant_step<LIE>(4 * j + c) < left) to[quant_step<LIE>(4 * j + c)] = four[c];
    }
}

/* The exponent of a bucket whose lanes have lost up to these magnitudes, written down by one of them. */
__device__ static __forceinline__ uint8_t quant_keep_exponent(uint8_t *exponent, uint32_t magnitude) {
    const uint8_t found = quant_residual_exponent(warp_max(magnitude));
    if (quant_lane() == 0) *exponent = found;
    return found;
}

__device__ static __forceinline__ uint32_t quant_greater_magnitude(uint32_t magnitude, float value) {
    const uint32_t own = float_bits(value) & 0x7FFFFFFFu;
    return own > magnitude ? own : magnitude;
}

/* Elements [first, first + count) of x. */
template <QuantType TYPE, QuantLie LIE, bool OTHERS>
__device__ __forceinline__ void quant_load_known(const void *x, int64_t first, int count, float (&v)[QUANT_ROWS]) {
    const auto *from = (const typename QuantElement<TYPE>::Stored *)x + first;
    FOR_GROUPS(j, count) {
        float four[4];
        quant_load_group<TYPE, LIE, OTHERS>(from, j, count, four);
#pragma unroll
        for (int c = 0; c < 4; c++) v[4 * j + c] = four[c];
    }
}

template <QuantLie LIE, bool OTHERS = false>
__device__ __forceinline__ void quant_load_piece(QuantType type, const void *x, int64_t first, int count,
                                                 float (&v)[QUANT_ROWS]) {
#define LOAD(TYPE) quant_load_known<TYPE, LIE, OTHERS>(x, first, count, v)
    QUANT_BY_TYPE(type, LOAD);
#undef LOAD
}

template <QuantType TYPE, QuantLie LIE>
__device__ __forceinline__ void quant_store_known(void *x, int64_t first, int count, const float (&v)[QUANT_ROWS]) {
    typedef typename QuantElement<TYPE>::Stored Stored;
    Stored *start = (Stored *)x + first, *to = start + quant_start<LIE>();
    const int left = count - quant_start<LIE>();
    FOR_GROUPS(j, count) {
        Stored four[4];
#pragma unroll
        for (int c = 0; c < 4; c++) four[c] = QuantElement<TYPE>::narrowed(v[4 * j + c]);
        if (LIE == QUANT_QUADS && quant_is_aligned(start) && quant_step<LIE>(4 * j) + 4 <= left) {
            quant_put_four(to + quant_step<LIE>(4 * j), four);
            continue;
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            if (quant_step<LIE>(4 * j + c) < left) to[quant_step<LIE>(4 * j + c)] = four[c];
        }
    }
}

template <QuantLie LIE = QUANT_STRIPED>
__device__ __forceinline__ void quant_store_piece(QuantType type, void *x, int64_t first, int count,
                                                  const float (&v)[QUANT_ROWS]) {
#define STORE(TYPE) quant_store_known<TYPE, LIE>(x, first, count, v)
    QUANT_BY_TYPE(type, STORE);
#undef STORE
}

__device__ static __forceinline__ int quant_piece_count(int64_t elems, int64_t first) {
    return elems - first < QUANT_PIECE ? (int)(elems - first) : QUANT_PIECE;
}

/* Elements as the codec sees them: with 16-bit ranges they are of the tensor's type. Only kernels with NARROWS
 * encode elements that have yet to be rounded to it. */
template <bool NARROWS> __device__ __forceinline__ float quant_seen(const QuantSpec &spec, float value) {
#define SEEN(TYPE) QuantElement<TYPE>::widened(QuantElement<TYPE>::narrowed(value))
    return NARROWS && spec.half_metadata ? QUANT_BY_TYPE(spec.type, SEEN) : value;
#undef SEEN
}

/* ---- codes of elements in [min, max] of their bucket ---- */

/* They never leave their range, and so rounding to a whole number is an addition of 1.5 * 2^23 that rounds the same
 * way: that number's last bit counts ones, and a code is returned in the last bits. */
#define QUANT_MARK 0x4B400000u

__device__ static __forceinline__ uint32_t quant_marked_nearest(float x, float min, float inverse) {
    return float_bits(__fadd_rz(QUANT_ADD(quant_place(x, min, inverse), 0.5f), float_of_bits(QUANT_MARK)));
}

/* Of stochastic rounding by a random word, up to `levels`. The code after a place's whole part is taken where its
 * random number is below the rest, which is the place less that number, rounded up: first to a float, then to a whole
 * number. */
__device__ static __forceinline__ uint32_t quant_marked_drawn(float x, float min, float inverse, float levels,
                                                              uint32_t word) {
    const float place = fminf(quant_place(x, min, inverse), levels);
    return float_bits(__fadd_ru(__fmaf_ru((float)(word >> 8), -0x1p-24f, place), float_of_bits(QUANT_MARK)));
}

/* ---- to the wire ---- */

/* Four codes of a byte each as 4 * BITS bits. */
template <int BITS> __device__ __forceinline__ uint32_t quant_pack_four(uint32_t codes) {
    if (BITS == 4) return __byte_perm(codes | codes >> 4, 0, 0x4420);
    uint32_t pairs = (codes & 0x00FF00FFu) | ((codes & 0xFF00FF00u) >> (8 - BITS));
    return (pairs & 0xFFFFu) | ((pairs >> 16) << (2 * BITS));
}

/* The room's codes, of the groups of a piece of `count`, as quant_put_codes has left them, become packed ones from its
 * start on. */
template <int BITS, QuantLie LIE> __device__ __forceinline__ void quant_pack(QuantRoom *room, int count) {
    const int lane = quant_lane();
    const bool own = lane * WARP / QUANT_GROUP * QUANT_GROUP < count;
    uint32_t codes[WARP / 4] = {}, packed[BITS] = {};
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2 && own; i++) {
        uint4 moved = reinterpret_cast<const uint4 *>(room->codes)[2 * lane + i];
        codes[4 * i] = moved.x, codes[4 * i + 1] = moved.y, codes[4 * i + 2] = moved.z, codes[4 * i + 3] = moved.w;
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < WARP / 4; i++) {
        const int at = i * 4 * BITS, word = at / 32, shift = at % 32;
        uint32_t bits = LIE == QUANT_QUADS ? codes[i] : quant_pack_four<BITS>(codes[i]);
        packed[word] |= bits << shift;
        if (shift + 4 * BITS > 32) packed[(word + 1) % BITS] |= bits >> ((32 - shift) % 32);
    }
    uint32_t *to = reinterpret_cast<uint32_t *>(room->codes) + lane * BITS;
#pragma unroll
    for (int i = 0; i < BITS; i++) {
        if (own) to[i] = packed[i];
    }
    __syncwarp();
}

/* A lane's four codes of group j, side by side, into the room: in their place where they fill whole bytes, so that
 * quant_pack has nothing left to do, else in a word each. */
__device__ static __forceinline__ void quant_put_packed(QuantRoom *room, int j, int bits, uint32_t packed) {
    const int at = j * WARP + quant_lane();
    if (bits == 4) {
        reinterpret_cast<uint16_t *>(room->codes)[at] = (uint16_t)packed;
    } else if (bits == 2) {
        room->codes[at] = (uint8_t)packed;
    } else {
        reinterpret_cast<uint32_t *>(room->codes)[at] = packed;
    }
}

/* Four codes of a lane into the room, a byte each where they lie striped. */
template <QuantLie LIE>
__device__ __forceinline__ void quant_put_codes(QuantRoom *room, int j, int bits, const uint32_t (&codes)[4]) {
    if constexpr (LIE == QUANT_QUADS) {
        quant_put_packed(room, j, bits, codes[0] | codes[1] << bits | codes[2] << 2 * bits | codes[3] << 3 * bits);
    } else {
#pragma unroll
        for (int c = 0; c < 4; c++) room->codes[(4 * j + c) * WARP + quant_lane()] = (uint8_t)codes[c];
    }
}

template <QuantLie LIE> __device__ constexpr bool quant_packs_at_once(int bits) {
    return LIE == QUANT_QUADS && (bits == 2 || bits == 4 || bits == 8);
}

/* Writes `bytes` of shared memory (at a multiple of QUANT_MOVE_BYTES). */
__device__ static __forceinline__ void quant_emit(QuantSink sink, uint64_t at, const uint8_t *from, int bytes) {
    int whole = at % QUANT_MOVE_BYTES == 0 ? bytes / QUANT_MOVE_BYTES : 0;
    for (int i = quant_lane(); i < whole; i += WARP) {
        uint4 moved = reinterpret_cast<const uint4 *>(from)[i];
        for (int s = 0; s < sink.count; s++) reinterpret_cast<uint4 *>(sink.bases[s] + at)[i] = moved;
    }
    for (int i = whole * QUANT_MOVE_BYTES + quant_lane(); i < bytes; i += WARP) {
        for (int s = 0; s < sink.count; s++) sink.bases[s][at + (uint64_t)i] = from[i];
    }
}

template <QuantLie LIE = QUANT_STRIPED>
__device__ __forceinline__ void quant_emit_codes(QuantSink sink, uint64_t at, int bits, int count, QuantRoom *room) {
#define QUANT_CASE(q)                                                                                                  \
    case q:                                                                                                            \
        quant_pack<q, LIE>(room, count);                                                                               \
        break;
    if (quant_packs_at_once<LIE>(bits)) {
        __syncwarp();
    } else {
        switch (bits) {
            QUANT_CASE(1)
            QUANT_CASE(2)
            QUANT_CASE(3)
            QUANT_CASE(4)
            QUANT_CASE(5)
            QUANT_CASE(6)
            QUANT_CASE(7)
            QUANT_CASE(8)
        }
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

/* Brings `bytes` at base + at into the room; returns how many bytes of the room come before them. The base is a
 * multiple of QUANT_MOVE_BYTES, and the memory behind it ends at one. */
__device__ static __forceinline__ int quant_fetch(const uint8_t *base, uint64_t at, int bytes, QuantRoom *room) {
    int before = (int)(at % QUANT_MOVE_BYTES), moves = (before + bytes + QUANT_MOVE_BYTES - 1) / QUANT_MOVE_BYTES;
    const uint4 *from = reinterpret_cast<const uint4 *>(base + (at - (uint64_t)before));
    uint4 *to = reinterpret_cast<uint4 *>(room->codes);
    __syncwarp();
    for (int i = quant_lane(); i < moves; i += WARP) to[i] = __ldcg(from + i);
    if (quant_lane() == 0) to[moves] = make_uint4(0, 0, 0, 0); /* the last code may end with the last word */
    __syncwarp();
    return before;
}

/* This lane's codes of a piece that lies striped, `before` bytes into the room. A row takes as many words as a code
 * takes bits, so that all of a lane's codes begin at the same bit of a word. */
struct QuantStripedCodes {
    const uint32_t *words;
    uint32_t shift, mask;
    int bits;
    bool crosses;

    __device__ __forceinline__ QuantStripedCodes(const QuantRoom *room, int before, int width) : bits(width) {
        const int bit = before * 8 + quant_lane() * bits;
        words = reinterpret_cast<const uint32_t *>(room->codes) + bit / 32;
        shift = (uint32_t)bit % 32;
        mask = (1u << bits) - 1u;
        crosses = shift + (uint32_t)bits > 32;
    }

    __device__ __forceinline__ uint32_t row(int k) const {
        const uint32_t high = crosses ? words[k * bits + 1] : 0;
        return __funnelshift_r(words[k * bits], high, shift) & mask;
    }
};

/* The four codes, side by side, that begin at a bit of the room. */
__device__ static __forceinline__ uint32_t quant_four_codes_at(const QuantRoom *room, int bit, int bits) {
    const uint32_t *words = reinterpret_cast<const uint32_t *>(room->codes) + bit / 32;
    uint32_t high = bit % 32 + 4 * bits > 32 ? words[1] : 0;
    return __funnelshift_r(words[0], high, (uint32_t)bit % 32);
}

/* ---- reductions ---- */

/* NaN where one of the two is. */
__device__ static __forceinline__ float quant_min_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float least;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(b));
    return least;
#else
    return a != a ? a : b != b ? b : fminf(a, b);
#endif
}

__device__ static __forceinline__ float quant_max_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float greatest;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(greatest) : "f"(a), "f"(b));
    return greatest;
#else
    return a != a ? a : b != b ? b : fmaxf(a, b);
#endif
}

__device__ static __forceinline__ float quant_warp_least(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value = fminf(value, __shfl_xor_sync(WHOLE_WARP, value, distance));
    }
    return value;
}

/* The greatest of all lanes' magnitudes, which may be NaN, as bits. */
__device__ static __forceinline__ uint32_t quant_warp_magnitude(float value) {
    return warp_max(float_bits(value) & 0x7FFFFFFFu);
}

/* The 32 partial sums folded 16, 8, 4, 2, 1: lane 0's is the sum, which all get. */
__device__ static __forceinline__ float quant_warp_fold(float partial) {
#pragma unroll
    for (int width = WARP / 2; width > 0; width /= 2) {
        partial = QUANT_ADD(partial, __shfl_down_sync(WHOLE_WARP, partial, (unsigned)width));
    }
    return __shfl_sync(WHOLE_WARP, partial, 0);
}

/* The random words of this lane's elements of group j. */
template <QuantLie LIE>
__device__ __forceinline__ void quant_draw(const QuantRandom &random, int64_t first, int j, QuantRoom *room,
                                           uint32_t (&words)[4]) {
    uint64_t quad = random.quad + (uint64_t)first / 4 + (uint64_t)(j * WARP + quant_lane());
    Philox4 drawn = philox_at(random.seed, random.call, quad, PHILOX_QUANTIZE, random.rank);
    if (LIE == QUANT_QUADS) {
#pragma unroll
        for (int c = 0; c < 4; c++) words[c] = drawn.word[c];
        return;
    }
    __syncwarp();
    reinterpret_cast<uint4 *>(room->words)[quant_lane()] =
        make_uint4(drawn.word[0], drawn.word[1], drawn.word[2], drawn.word[3]);
    __syncwarp();
#pragma unroll
    for (int c = 0; c < 4; c++) words[c] = room->words[c * WARP + quant_lane()];
}

#endif
