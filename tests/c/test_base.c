// rooms: base
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/atomic_file.h"
#include "base/checked.h"
#include "base/cpu.h"
#include "base/environment.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/philox.h"
#include "base/pool.h"
#include "check.h"

/* The known answers of the Random123 distribution (kat_vectors, philox 4x32 10). */
static void test_philox(void) {
    Philox4 zero = philox(0, 0, 0, 0, 0, 0);
    CHECK(zero.word[0] == 0x6627e8d5 && zero.word[1] == 0xe169c58d);
    CHECK(zero.word[2] == 0xbc57ac4c && zero.word[3] == 0x9b00dbd8);
    Philox4 ones = philox(~0u, ~0u, ~0u, ~0u, ~0u, ~0u);
    CHECK(ones.word[0] == 0x408f276d && ones.word[1] == 0x41c83b0e);
    CHECK(ones.word[2] == 0xa20bc7c6 && ones.word[3] == 0x6d5451fd);
    Philox4 pi = philox(0xa4093822, 0x299f31d0, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344);
    CHECK(pi.word[0] == 0xd16cfe09 && pi.word[1] == 0x94fdcceb);
    CHECK(pi.word[2] == 0x5001e420 && pi.word[3] == 0x24126ea1);
    CHECK(philox_uniform(~0u) < 1.0f);
    CHECK(philox_below(~0u, 5) == 4 && philox_below(0, 5) == 0);
}

/* Every number of 16 bits goes up and down again; a float64 beside the middle of two goes to its side of it. */
static void test_half(void) {
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t bits = (uint16_t)i;
        CHECK(half_from_float(half_to_float(bits)) == ((i & 0x7FFF) > 0x7C00 ? HALF_NAN : bits));
        CHECK(bfloat16_from_float(bfloat16_to_float(bits)) == ((i & 0x7FFF) > 0x7F80 ? BFLOAT16_NAN : bits));
    }
    double most = 0x1.FFFFFFFFFFFFFp+1023;
    CHECK(half_from_double(1 + 0x1p-11) == 0x3C00 && half_from_double(1 + 0x3p-11) == 0x3C02);
    CHECK(half_from_double(1 + 0x1p-11 + 0x1p-50) == 0x3C01 && half_from_double(1 + 0x3p-11 - 0x1p-50) == 0x3C01);
    CHECK(half_from_double(-1 - 0x1p-11 - 0x1p-50) == 0xBC01 && half_from_double(-1 - 0x3p-11 + 0x1p-50) == 0xBC01);
    CHECK(bfloat16_from_double(1 + 0x1p-8) == 0x3F80 && bfloat16_from_double(1 + 0x1p-8 + 0x1p-50) == 0x3F81);
    CHECK(half_from_double(0x1p-25) == 0 && half_from_double(0x1p-25 + 0x1p-70) == 1 &&
          half_from_double(-0.0) == 0x8000);
    CHECK(half_from_double(65520) == 0x7C00 && half_from_double(65520 - 0x1p-30) == 0x7BFF);
    CHECK(half_from_double(most) == 0x7C00 && bfloat16_from_double(-most) == 0xFF80);
}

static void test_hash(void) {
    CHECK(hash_bytes("", 0, 0) == 0xEF46DB3751D8E999ULL);
    CHECK(hash_bytes("abc", 3, 0) == 0x44BC2CF5AD770999ULL);
    const char *text = "Nobody inspects the spammish repetition";
    CHECK(hash_bytes(text, 39, 0) == 0xFBCEA83C8A378BF1ULL);
    CHECK(hash_bytes(text, 4, 0) == 0x265FAA35D7AFEC64ULL && hash_bytes(text, 8, 0) == 0x93FC083B5A3F012CULL);
    CHECK(hash_bytes(text, 16, 0) == 0xC9AF09F9668B54FAULL && hash_bytes(text, 32, 0) == 0x96F5BFCBFE7F0D1AULL);
    CHECK(hash_bytes(text, 36, 0) == 0xFDE2562A393270B7ULL);
}

static void test_checked(void) {
    uint64_t out = 7;
    CHECK(!checked_add(UINT64_MAX, 1, &out) && !checked_mul(UINT64_MAX, 2, &out));
    CHECK(checked_round_up(4097, 4096, &out) && out == 8192);
    CHECK(!checked_round_up(UINT64_MAX - 1, 4096, &out));
    CHECK(checked_within(10, 5, 15) && !checked_within(11, 5, 15) && !checked_within(UINT64_MAX, 5, 15));
}

typedef struct Sum {
    atomic_ulong total;
    size_t fail_at;
} Sum;

static Status add(void *context, size_t item, int thread) {
    Sum *sum = context;
    (void)thread;
    if (item == sum->fail_at) return error_at_sample(error_fail(STATUS_FORMAT, "item %zu", item), (int64_t)item);
    atomic_fetch_add(&sum->total, item);
    return STATUS_OK;
}

/* Whoever passes a failure on adds what it knows; where it happened was said by whoever saw it first. */
static void test_error_record(void) {
    Status status = error_fail(STATUS_FORMAT, "cause %d", 7);
    CHECK(error_record()->sample == -1 && error_record()->offset == -1 && error_record()->rank == -1);
    CHECK(error_at_sample(status, 3) == STATUS_FORMAT && error_at_sample(status, 4) == STATUS_FORMAT);
    CHECK(error_at_offset(status, 30) == STATUS_FORMAT && error_at_offset(status, 40) == STATUS_FORMAT);
    CHECK(error_at_rank(status, 1) == STATUS_FORMAT && error_at_rank(status, 2) == STATUS_FORMAT);
    CHECK(error_at_sample(STATUS_OK, 5) == STATUS_OK);
    const ErrorRecord *record = error_record();
    CHECK(record->sample == 3 && record->offset == 30 && record->rank == 1);
    CHECK(record->code == STATUS_FORMAT && strcmp(record->message, "cause 7") == 0);
    (void)error_fail(STATUS_ARGUMENT, "another");
    CHECK(error_record()->sample == -1 && error_record()->offset == -1 && error_record()->rank == -1);
    CHECK(error_at_sample(STATUS_OK, 5) == STATUS_OK && error_record()->sample == -1);
}

static void test_pool(void) {
    for (int threads = 1; threads <= 5; threads++) {
        Pool *pool = NULL;
        CHECK_OK(pool_create(threads, &pool));
        for (int round = 0; round < 200; round++) {
            Sum sum = {.fail_at = SIZE_MAX};
            CHECK_OK(pool_run(pool, 100, add, &sum));
            CHECK(sum.total == 4950);
        }
        Sum failing = {.fail_at = 37};
        CHECK(pool_run(pool, 100, add, &failing) == STATUS_FORMAT);
        CHECK(error_record()->sample == 37);
        CHECK(threads > 1 || failing.total == 666); /* 0 to 36: no item is handed out after the failure */
        Sum none = {.fail_at = SIZE_MAX};
        CHECK_OK(pool_run(pool, 0, add, &none));
        CHECK(none.total == 0);
        pool_destroy(pool);
    }
    Pool *pool = NULL;
    CHECK(pool_create(0, &pool) == STATUS_ARGUMENT && pool == NULL);
}

static int features_under(const char *limit) {
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        setenv("CGXFFCV_CPU", limit, 1);
        const CpuFeatures *found = cpu_features();
        _exit(found->avx2 | found->avx512 << 1 | (found->avx512_bf16 || found->amx_bf16) << 2);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void test_cpu_limits(void) {
    int all = features_under("");
    CHECK(features_under("scalar") == 0 && features_under("avx2") == (all & 1) &&
          features_under("avx512") == (all & 3) && features_under("avx3") == all);
}

static void test_memory(void) {
    void *pointer = NULL;
    CHECK(memory_alloc(SIZE_MAX / 2, 3, &pointer) == STATUS_MEMORY && pointer == NULL);
    /* Also where the system promises more memory than it has, and would end the process that uses it. */
    CHECK(memory_calloc(memory_of_machine() / 8 + 1, 8, &pointer) == STATUS_MEMORY && pointer == NULL);
    CHECK(strstr(error_record()->message, "this machine's memory has") != NULL);
    CHECK_OK(memory_calloc(0, 8, &pointer));
    CHECK(pointer != NULL && (uintptr_t)pointer % MEMORY_ALIGNMENT == 0);
    memory_free(pointer);
    memory_free(NULL);
}

static void test_memory_reserve(void) {
    uint32_t *numbers = NULL;
    size_t room = 0;
    CHECK(memory_reserve(&numbers, &room, 0, sizeof *numbers) == STATUS_OK && numbers == NULL && room == 0);
    CHECK_OK(memory_reserve(&numbers, &room, 100, sizeof *numbers));
    CHECK(room == 100);
    for (uint32_t i = 0; i < 100; i++) numbers[i] = i;
    const uint32_t *before = numbers;
    CHECK(memory_reserve(&numbers, &room, 7, sizeof *numbers) == STATUS_OK && numbers == before && room == 100);
    CHECK(numbers[99] == 99);
    CHECK_OK(memory_reserve(&numbers, &room, 100000, sizeof *numbers));
    CHECK(room == 100000);
    numbers[99999] = 1;
    CHECK(memory_reserve(&numbers, &room, SIZE_MAX / 2, sizeof *numbers) == STATUS_MEMORY && numbers == NULL &&
          room == 0);
    memory_free(numbers);
}

#define SETTING "CGXFFCV_TEST_SETTING"

static void test_environment(void) {
    const char *const no_numbers[] = {"x", "7x", "0x7", "1e3", "3", "101", "-7", " ", "99999999999999999999"};
    const char *const no_seconds[] = {"x", "0", "-1", "nan", "inf", "1,5", "600.5", "2s"};
    const char *const no_switches[] = {"no", "2", "00", "true", "1 "};
    const char *const no_words[] = {"blu", "bluee", "Blue", "blue,", ",blue", "blue, red", "blue;red", "blue,green"};
    const char *const words[] = {"red", "blue", NULL}, *const single[] = {"red", NULL};
    uint32_t colours = 9;
    int64_t number = 5;
    double seconds = 2.5;
    bool on = true;
    unsetenv(SETTING);
    CHECK_OK(environment_whole(SETTING, "KiB", 4, 100, &number));
    CHECK_OK(environment_seconds(SETTING, 600, &seconds));
    setenv(SETTING, "", 1);
    CHECK_OK(environment_switch(SETTING, &on));
    CHECK(number == 5 && seconds == 2.5 && on);
    for (size_t i = 0; i < sizeof no_numbers / sizeof *no_numbers; i++) {
        setenv(SETTING, no_numbers[i], 1);
        CHECK(environment_whole(SETTING, "KiB", 4, 100, &number) == STATUS_ARGUMENT && number == 5);
    }
    CHECK(strcmp(error_record()->message,
                 SETTING "='99999999999999999999': a whole number of KiB from 4 to 100 is expected") == 0);
    for (size_t i = 0; i < sizeof no_seconds / sizeof *no_seconds; i++) {
        setenv(SETTING, no_seconds[i], 1);
        CHECK(environment_seconds(SETTING, 600, &seconds) == STATUS_ARGUMENT && seconds == 2.5);
    }
    for (size_t i = 0; i < sizeof no_switches / sizeof *no_switches; i++) {
        setenv(SETTING, no_switches[i], 1);
        CHECK(environment_switch(SETTING, &on) == STATUS_ARGUMENT && on);
    }
    for (size_t i = 0; i < sizeof no_words / sizeof *no_words; i++) {
        setenv(SETTING, no_words[i], 1);
        CHECK(environment_words(SETTING, words, &colours) == STATUS_ARGUMENT && colours == 9);
    }
    CHECK(strcmp(error_record()->message, SETTING "='blue,green': one or more of red,blue is expected") == 0);
    CHECK(environment_words(SETTING, single, &colours) == STATUS_ARGUMENT);
    CHECK(strcmp(error_record()->message, SETTING "='blue,green': red is expected") == 0);
    setenv(SETTING, "", 1);
    CHECK(environment_words(SETTING, words, &colours) == STATUS_OK && colours == 9);
    setenv(SETTING, "blue", 1);
    CHECK(environment_words(SETTING, words, &colours) == STATUS_OK && colours == 2);
    setenv(SETTING, "blue,red", 1);
    CHECK(environment_words(SETTING, words, &colours) == STATUS_OK && colours == 3);
    setenv(SETTING, "0", 1);
    CHECK(environment_switch(SETTING, &on) == STATUS_OK && !on);
    setenv(SETTING, "4", 1);
    CHECK(environment_whole(SETTING, "KiB", 4, 100, &number) == STATUS_OK && number == 4);
    setenv(SETTING, "0.25", 1);
    CHECK(environment_seconds(SETTING, 600, &seconds) == STATUS_OK && seconds == 0.25);
}

static void test_atomic_file(void) {
    char name[] = "/tmp/cgxffcv-test-XXXXXX";
    CHECK(mkdtemp(name) != NULL);
    char path[64];
    snprintf(path, sizeof path, "%s/file", name);
    AtomicFile *file = NULL;
    int unsynced = -1;
    CHECK_OK(atomic_file_create(path, &file));
    CHECK_OK(atomic_file_write_at(file, "abc", 3, 2));
    CHECK(access(path, F_OK) != 0);
    CHECK_OK(atomic_file_commit(file, &unsynced));
    CHECK(unsynced == 0);
    struct stat about;
    CHECK(stat(path, &about) == 0 && about.st_size == 5);
    CHECK_OK(atomic_file_create(path, &file));
    atomic_file_abort(file);
    CHECK(stat(path, &about) == 0 && about.st_size == 5);
    unlink(path);
    snprintf(path, sizeof path, "%s/missing/file", name);
    CHECK(atomic_file_create(path, &file) == STATUS_IO);
    CHECK(error_record()->errno_value == ENOENT);
    CHECK(rmdir(name) == 0); /* so no temporary file is left */
}

int main(void) {
    test_philox();
    test_half();
    test_hash();
    test_checked();
    test_error_record();
    test_pool();
    test_cpu_limits();
    test_memory();
    test_memory_reserve();
    test_environment();
    test_atomic_file();
    return check_result();
}
