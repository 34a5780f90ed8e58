/* What device/wgmma.cuh declares, for the emulator: each thread makes its sums from the factors in shared memory as
 * soon as it is told to; so a missing wait for products is not seen, but one for copies is. */
#ifndef CGXFFCV_EMULATOR_WGMMA_H
#define CGXFFCV_EMULATOR_WGMMA_H

#define HAS_WGMMA 1

/* ---- barriers ----------------------------------------------------------------------------------------------------*/

typedef struct CopyBarrier {
    int count, arrived, parity;
} CopyBarrier;

UNCHECKED inline void copy_barrier_init(CopyBarrier *barrier, int count) { *barrier = CopyBarrier{count, 0, 0}; }
UNCHECKED inline void copy_barrier_arrive(CopyBarrier *barrier) {
    if (++barrier->arrived < barrier->count) return;
    barrier->arrived = 0;
    barrier->parity ^= 1;
}
UNCHECKED inline void copy_barrier_wait(CopyBarrier *barrier, int parity) {
    while (barrier->parity == parity) emulator_yield();
}

/* ---- products ----------------------------------------------------------------------------------------------------*/

static inline void wgmma_begin(void) {}
static inline void wgmma_commit(void) {}
template <int PENDING> static inline void wgmma_wait(void) {}

static inline uint64_t factor_descriptor(const void *begin) { return (uint64_t)(uintptr_t)begin; }

template <typename T> UNCHECKED double emulator_factor(uint64_t begin, int row, int element) {
    uint64_t address = begin + (uint64_t)(row * 128 + element * 2);
    T value;
    memcpy((void *)&value, (const void *)(uintptr_t)(address ^ (address >> 7 & 7) << 4), sizeof value);
    return (double)(float)value;
}

template <int N, typename T, bool TRANSPOSED> struct WarpGroupProduct {
    UNCHECKED static void run(float (&sums)[N / 2], uint64_t a, uint64_t b, bool add) {
        int thread = emulator_thread() % 128, g = thread % 32 / 4, t = thread % 4;
        for (int i = 0; i < N / 2; i++) {
            int row = thread / 32 * 16 + g + i % 4 / 2 * 8, column = i / 4 * 8 + 2 * t + i % 2;
            double sum = add ? (double)sums[i] : 0;
            for (int k = 0; k < 16; k++) {
                double left = TRANSPOSED ? emulator_factor<T>(a, k, row) : emulator_factor<T>(a, row, k);
                sum += left * emulator_factor<T>(b, column, k);
            }
            sums[i] = (float)sum;
        }
    }
};

#endif
