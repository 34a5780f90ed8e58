/* What device/mma.cuh declares, for the emulator: a warp's lanes lay their registers side by side, meet, and each takes
 * what it needs. Matrices come from shared memory through accesses that are checked like any other. Copies arrive only
 * when they are waited for, so that whoever does not wait sees what was there before. */
#ifndef CGXFFCV_EMULATOR_MATRIX_H
#define CGXFFCV_EMULATOR_MATRIX_H

enum { EMULATED_BLOCK = 1024, EMULATED_COPIES = 512, EMULATED_REGISTERS = 6 };

static inline int emulator_thread(void) {
    return (int)((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}

/* ---- matrices ----------------------------------------------------------------------------------------------------*/

static inline const char *emulator_row(const void *row, int lane, int count) {
    if (emulator_lane() < 8 * count && (uintptr_t)row % 16 != 0) __trap();
    return (const char *)__shfl_sync(0xffffffffu, (uintptr_t)row, lane);
}

template <int COUNT> static inline void emulator_ldmatrix(uint32_t (&r)[COUNT], const void *row) {
    int g = emulator_lane() / 4, t = emulator_lane() % 4;
    for (int i = 0; i < COUNT; i++) r[i] = ((const uint32_t *)emulator_row(row, 8 * i + g, COUNT))[t];
}
template <int COUNT> static inline void emulator_ldmatrix_trans(uint32_t (&r)[COUNT], const void *row) {
    int g = emulator_lane() / 4, t = emulator_lane() % 4;
    for (int i = 0; i < COUNT; i++) {
        const char *first = emulator_row(row, 8 * i + 2 * t, COUNT);
        const char *second = emulator_row(row, 8 * i + 2 * t + 1, COUNT);
        r[i] = ((const uint16_t *)first)[g] | (uint32_t)((const uint16_t *)second)[g] << 16;
    }
}

static inline void ldmatrix_x4(uint32_t (&r)[4], const void *row) { emulator_ldmatrix<4>(r, row); }
static inline void ldmatrix_x2(uint32_t (&r)[2], const void *row) { emulator_ldmatrix<2>(r, row); }
static inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) { emulator_ldmatrix_trans<4>(r, row); }
static inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row) { emulator_ldmatrix_trans<2>(r, row); }

static inline uint32_t movmatrix_trans(uint32_t pair) {
    int g = emulator_lane() / 4, t = emulator_lane() % 4;
    uint32_t first = __shfl_sync(0xffffffffu, pair, 8 * t + g / 2);
    uint32_t second = __shfl_sync(0xffffffffu, pair, 8 * t + 4 + g / 2);
    return (first >> 16 * (g % 2) & 0xffffu) | (second >> 16 * (g % 2)) << 16;
}

static inline uint32_t shared_address(const void *shared) { return (uint32_t)(uintptr_t)shared; }

/* ---- products ----------------------------------------------------------------------------------------------------*/

template <typename T> UNCHECKED float emulator_element(uint32_t pair, int which) {
    T element;
    uint16_t bits = (uint16_t)(pair >> 16 * which);
    memcpy((void *)&element, &bits, sizeof element);
    return (float)element;
}

/* Registers of a lane: the four of A, the two of B. Sums run in double and are rounded once for 8 columns of A. */
template <typename T> UNCHECKED void emulator_mma(float *c, const uint32_t *own, int columns) {
    static float all[EMULATED_BLOCK][2 * EMULATED_REGISTERS];
    int thread = emulator_thread(), lane = emulator_lane(), g = lane / 4, t = lane % 4;
    const float(*warp)[2 * EMULATED_REGISTERS] = &all[thread - lane];
    for (int i = 0; i < 2 * EMULATED_REGISTERS; i++) all[thread][i] = emulator_element<T>(own[i / 2], i % 2);
    __syncwarp();
    for (int eight = 0; eight < columns / 8; eight++) {
        for (int i = 0; i < 4; i++) {
            int column = 2 * t + i % 2;
            double sum = (double)c[i];
            for (int k = 0; k < 8; k++) {
                double a = (double)warp[4 * g + k / 2][2 * (2 * eight + i / 2) + k % 2];
                sum += a * (double)warp[4 * column + k / 2][2 * (4 + eight) + k % 2];
            }
            c[i] = (float)sum;
        }
    }
    __syncwarp();
}

template <typename T> static inline void mma_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t own[EMULATED_REGISTERS] = {a[0], a[1], a[2], a[3], b0, b1};
    emulator_mma<T>(c, own, 16);
}
template <typename T> static inline void mma_1688(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    uint32_t own[EMULATED_REGISTERS] = {a0, a1, 0, 0, b0, 0};
    emulator_mma<T>(c, own, 8);
}

/* ---- copies ------------------------------------------------------------------------------------------------------*/

struct EmulatedCopy {
    void *to;
    const void *from; /* NULL: clear */
};
struct EmulatedCopies { /* of a thread: a queue, with the ends of its groups marked by `to` NULL */
    EmulatedCopy queue[EMULATED_COPIES];
    unsigned begin, end;
};

UNCHECKED inline EmulatedCopies *emulator_copies(void) {
    static EmulatedCopies all[EMULATED_BLOCK];
    return &all[emulator_thread()];
}
UNCHECKED inline void emulator_push(void *to, const void *from) {
    EmulatedCopies *copies = emulator_copies();
    if (copies->end - copies->begin == EMULATED_COPIES) emulator_trap();
    copies->queue[copies->end++ % EMULATED_COPIES] = EmulatedCopy{to, from};
}
/* The oldest, if more than `pending` groups have been ended. */
UNCHECKED inline bool emulator_pop(int pending, EmulatedCopy *copy) {
    EmulatedCopies *copies = emulator_copies();
    int groups = 0;
    for (unsigned i = copies->begin; i != copies->end; i++) {
        groups += copies->queue[i % EMULATED_COPIES].to == nullptr;
    }
    if (groups <= pending) return false;
    *copy = copies->queue[copies->begin++ % EMULATED_COPIES];
    return true;
}

static inline void cp_async_16(void *shared, const void *from, bool clear) {
    if ((uintptr_t)shared % 16 != 0 || (uintptr_t)from % 16 != 0) __trap();
    emulator_push(shared, clear ? nullptr : from);
}
static inline void cp_async_commit(void) { emulator_push(nullptr, nullptr); }
template <int PENDING> static inline void cp_async_wait(void) {
    for (EmulatedCopy copy; emulator_pop(PENDING, &copy);) {
        if (copy.to == nullptr) continue;
        *(uint4 *)copy.to = copy.from == nullptr ? make_uint4(0, 0, 0, 0) : *(const uint4 *)copy.from;
    }
}

#endif
