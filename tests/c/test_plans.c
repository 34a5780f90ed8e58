// rooms: base, with nn/cuda/conv/plans.c
/* The cache of convolution plans on disk: what is stored is found by the next process, whatever lies in the file. */
#include "nn/cuda/conv/plans.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/hash.h"
#include "check.h"

#define DEVICE "NVIDIA H100 80GB HBM3 sm_90"
#define LIBRARY "cuDNN 91900"

static char home[] = "/tmp/test_plans_XXXXXX";

static ConvPlans *open_plans(void) {
    ConvPlans *plans = NULL;
    CHECK_OK(nn_cuda_plans_open(DEVICE, LIBRARY, &plans));
    return plans;
}

static ConvPlansReport report_of(ConvPlans *plans) {
    ConvPlansReport report;
    nn_cuda_plans_report(plans, &report);
    return report;
}

static bool holds(ConvPlans *plans, const char *key, const char *value) {
    char found[CONV_PLANS_VALUE_BYTES];
    bool own;
    return nn_cuda_plans_find(plans, key, found, &own) && strcmp(found, value) == 0;
}

static bool lacks(ConvPlans *plans, const char *key) {
    char found[CONV_PLANS_VALUE_BYTES];
    bool own;
    return !nn_cuda_plans_find(plans, key, found, &own);
}

/* Whether this process has stored it. */
static bool is_own(ConvPlans *plans, const char *key) {
    char found[CONV_PLANS_VALUE_BYTES];
    bool own = false;
    CHECK(nn_cuda_plans_find(plans, key, found, &own));
    return own;
}

static void write_text(const char *path, const char *text, size_t size) {
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fwrite(text, 1, size, file) == size);
    if (file != NULL) fclose(file);
}

static size_t read_text(const char *path, char *to, size_t room) {
    FILE *file = fopen(path, "rb");
    size_t size = file == NULL ? 0 : fread(to, 1, room, file);
    if (file != NULL) fclose(file);
    return size;
}

/* A file with these lines and the hash that belongs to them. */
static void write_signed(const char *path, const char *lines, size_t size) {
    static char text[8 << 20];
    memcpy(text, lines, size);
    size += (size_t)sprintf(text + size, "end %016llx\n", (unsigned long long)hash_bytes(text, size, 0));
    write_text(path, text, size);
}

static void test_round_trip(void) {
    ConvPlans *plans = open_plans();
    char path[CONV_PLANS_PATH_BYTES];
    CHECK(lacks(plans, "forward n8"));
    CHECK_OK(nn_cuda_plans_store(plans, "forward n8", "engine 3 knobs 0 ns 12"));
    CHECK_OK(nn_cuda_plans_store(plans, "data n8", "engine 4 knobs 1 2=-5 ns 13"));
    CHECK(holds(plans, "forward n8", "engine 3 knobs 0 ns 12"));
    ConvPlansReport report = report_of(plans);
    CHECK(report.hits == 1 && report.misses == 1 && report.entries == 2 && report.note[0] == '\0');
    snprintf(path, sizeof path, "%s/deep/er/NVIDIA_H100_80GB_HBM3_sm_90__cuDNN_91900.plans", home);
    CHECK(strcmp(report.path, path) == 0);
    nn_cuda_plans_close(plans);

    plans = open_plans();
    CHECK(holds(plans, "forward n8", "engine 3 knobs 0 ns 12"));
    CHECK(holds(plans, "data n8", "engine 4 knobs 1 2=-5 ns 13"));
    CHECK(!is_own(plans, "forward n8"));
    CHECK_OK(nn_cuda_plans_store(plans, "forward n8", "engine 5 knobs 0 ns 9"));
    CHECK(is_own(plans, "forward n8") && !is_own(plans, "data n8"));
    report = report_of(plans);
    CHECK(report.hits == 5 && report.misses == 0 && report.entries == 2);
    nn_cuda_plans_close(plans);

    plans = open_plans();
    CHECK(holds(plans, "forward n8", "engine 5 knobs 0 ns 9"));
    nn_cuda_plans_close(plans);
    CHECK_OK(nn_cuda_plans_open(DEVICE, "cuDNN 91901", &plans));
    CHECK(report_of(plans).entries == 0);
    nn_cuda_plans_close(plans);
}

/* What another process has written since is kept; where both have written a key, the later one wins. */
static void test_two_writers(void) {
    ConvPlans *first = open_plans(), *second = open_plans();
    CHECK_OK(nn_cuda_plans_store(first, "a", "first"));
    CHECK_OK(nn_cuda_plans_store(second, "b", "second"));
    CHECK_OK(nn_cuda_plans_store(second, "a", "second"));
    CHECK_OK(nn_cuda_plans_store(first, "c", "first"));
    CHECK(holds(first, "b", "second"));
    ConvPlans *third = open_plans();
    CHECK(holds(third, "a", "first") && holds(third, "b", "second") && holds(third, "c", "first"));
    nn_cuda_plans_close(first);
    nn_cuda_plans_close(second);
    nn_cuda_plans_close(third);
}

static void test_refusals(void) {
    ConvPlans *plans = open_plans();
    char longest[CONV_PLANS_VALUE_BYTES + 1];
    int before = report_of(plans).entries;
    memset(longest, 'x', sizeof longest);
    longest[CONV_PLANS_VALUE_BYTES] = '\0';
    CHECK(nn_cuda_plans_store(plans, "k", "") == STATUS_ARGUMENT);
    CHECK(nn_cuda_plans_store(plans, "", "v") == STATUS_ARGUMENT);
    CHECK(nn_cuda_plans_store(plans, "k\t", "v") == STATUS_ARGUMENT);
    CHECK(nn_cuda_plans_store(plans, "k", "v\nw") == STATUS_ARGUMENT);
    CHECK(nn_cuda_plans_store(plans, "k", "\xc3\xa4") == STATUS_ARGUMENT);
    CHECK(nn_cuda_plans_store(plans, "k", longest) == STATUS_ARGUMENT);
    CHECK(nn_cuda_plans_store(plans, longest, "v") == STATUS_ARGUMENT);
    CHECK(report_of(plans).entries == before);
    longest[CONV_PLANS_VALUE_BYTES - 1] = '\0';
    CHECK_OK(nn_cuda_plans_store(plans, "k", longest));
    nn_cuda_plans_close(plans);
    plans = open_plans();
    CHECK(holds(plans, "k", longest));
    nn_cuda_plans_close(plans);
}

/* Every shorter file, and every file with a changed byte, counts as empty. */
static void test_damage(const char *path) {
    static char good[1 << 16], bad[1 << 16];
    size_t size = read_text(path, good, sizeof good);
    CHECK(size > 100 && size < sizeof good);
    size_t wrong = 0;
    for (size_t i = 0; i < size; i++) {
        ConvPlans *plans = NULL;
        memcpy(bad, good, size);
        bad[i] = (char)(bad[i] ^ (1 << (i % 8)));
        write_text(path, bad, i % 2 == 0 ? size : i);
        CHECK_OK(nn_cuda_plans_open(DEVICE, LIBRARY, &plans));
        ConvPlansReport report = report_of(plans);
        wrong += report.entries != 0 || strstr(report.note, "ignored ") != report.note;
        nn_cuda_plans_close(plans);
    }
    CHECK(wrong == 0);
    ConvPlans *plans = open_plans(); /* of the last damage */
    CHECK_OK(nn_cuda_plans_store(plans, "again", "value"));
    nn_cuda_plans_close(plans);
    plans = open_plans();
    CHECK(holds(plans, "again", "value") && report_of(plans).entries == 1 && report_of(plans).note[0] == '\0');
    nn_cuda_plans_close(plans);
    write_text(path, good, size);
}

/* Files with the right hash that no honest writer makes. */
static void test_hostile(const char *path) {
    static char lines[5 << 20];
    const char *begin = "cgxffcv convolution plans 1\nfor " DEVICE ", " LIBRARY "\n";
    const char *const bodies[] = {"key", "key\n", "\tvalue\n", "key\t\n", "k\x01y\tvalue\n", "key\tval\0ue\n",
                                  "\n",  "\t\n"};
    const size_t sizes[] = {3, 4, 7, 5, 10, 11, 1, 2};
    size_t head = strlen(begin);
    memcpy(lines, begin, head);
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        memcpy(lines + head, bodies[i], sizes[i]);
        write_signed(path, lines, head + sizes[i]);
        ConvPlans *plans = open_plans();
        CHECK(report_of(plans).entries == 0 && report_of(plans).note[0] != '\0');
        nn_cuda_plans_close(plans);
    }
    for (int which = 0; which < 2; which++) { /* a key or a value that is too long by one */
        size_t length = which == 0 ? CONV_PLANS_KEY_BYTES : CONV_PLANS_VALUE_BYTES;
        size_t at = head;
        if (which == 1) at += (size_t)sprintf(lines + at, "k\t");
        memset(lines + at, 'y', length);
        at += length;
        at += (size_t)sprintf(lines + at, which == 0 ? "\tv\n" : "\n");
        write_signed(path, lines, at);
        ConvPlans *plans = open_plans();
        CHECK(report_of(plans).entries == 0 && report_of(plans).note[0] != '\0');
        nn_cuda_plans_close(plans);
    }
    size_t at = head; /* more entries than are kept: the last ones remain */
    for (int i = 0; i < CONV_PLANS_MAX_ENTRIES + 10; i++) at += (size_t)sprintf(lines + at, "key %d\tvalue %d\n", i, i);
    write_signed(path, lines, at);
    ConvPlans *plans = open_plans();
    CHECK(report_of(plans).entries == CONV_PLANS_MAX_ENTRIES);
    CHECK(lacks(plans, "key 9") && holds(plans, "key 10", "value 10"));
    CHECK_OK(nn_cuda_plans_store(plans, "one more", "value"));
    CHECK(report_of(plans).entries == CONV_PLANS_MAX_ENTRIES && holds(plans, "one more", "value"));
    nn_cuda_plans_close(plans);
    memset(lines, 'z', sizeof lines); /* longer than any file of ours */
    write_text(path, lines, sizeof lines);
    plans = open_plans();
    CHECK(report_of(plans).entries == 0 && strstr(report_of(plans).note, "too long") != NULL);
    nn_cuda_plans_close(plans);
}

/* Whole files of another GPU, library or version of the format, and what is no file of ours at all: as if there were
 * none, and the next store makes a good one. */
static void test_foreign(const char *path) {
    const struct {
        const char *text;
        bool sign;
        const char *why;
    } files[] = {
        {"cgxffcv convolution plans 1\nfor NVIDIA A100 sm_80, " LIBRARY "\nkey\tvalue\n", true, "another GPU"},
        {"cgxffcv convolution plans 1\nfor " DEVICE ", cuDNN 91800\nkey\tvalue\n", true, "another GPU or library"},
        {"cgxffcv convolution plans 2\nfor " DEVICE ", " LIBRARY "\nkey\tvalue\n", true, "another version"},
        {"cgxffcv convolution plans 1\nfor " DEVICE ", " LIBRARY "\nkey\tvalue\n", false, "damaged"},
        {"", true, "another version"},
        {"", false, "damaged"},
        {"\x7f"
         "ELF\x02\x01\x01, not text at all, and longer than the last line of a file",
         false, "damaged"},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        (files[i].sign ? write_signed : write_text)(path, files[i].text, strlen(files[i].text));
        ConvPlans *plans = open_plans();
        ConvPlansReport report = report_of(plans);
        CHECK(report.entries == 0 && strstr(report.note, "ignored ") == report.note && lacks(plans, "key"));
        CHECK(strstr(report.note, files[i].why) != NULL && strstr(report.note, path) != NULL);
        CHECK_OK(nn_cuda_plans_store(plans, "found again", "value"));
        nn_cuda_plans_close(plans);
        plans = open_plans();
        CHECK(report_of(plans).entries == 1 && report_of(plans).note[0] == '\0' &&
              holds(plans, "found again", "value"));
        nn_cuda_plans_close(plans);
    }
}

/* A disk that is full, a folder that is gone, a file where the folder should be: nothing is lost but the memory of
 * later processes, and what lay there stays as it was. */
static void test_unwritable(const char *path) {
    static char before[1 << 12], after[1 << 12];
    struct rlimit unlimited, none;
    ConvPlans *plans = open_plans();
    CHECK_OK(nn_cuda_plans_store(plans, "kept", "value"));
    size_t size = read_text(path, before, sizeof before);
    CHECK(getrlimit(RLIMIT_FSIZE, &unlimited) == 0);
    none = (struct rlimit){.rlim_cur = 0, .rlim_max = unlimited.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &none) == 0);
    CHECK_OK(nn_cuda_plans_store(plans, "no room", "1"));
    CHECK_OK(nn_cuda_plans_store(plans, "nor for this", "2"));
    CHECK(setrlimit(RLIMIT_FSIZE, &unlimited) == 0);
    CHECK(strncmp(report_of(plans).note, "cannot write ", 13) == 0);
    CHECK(holds(plans, "no room", "1") && holds(plans, "nor for this", "2") && holds(plans, "kept", "value"));
    CHECK(read_text(path, after, sizeof after) == size && memcmp(before, after, size) == 0);
    nn_cuda_plans_close(plans);

    char gone[64], nested[128];
    snprintf(gone, sizeof gone, "%s/gone", home);
    snprintf(nested, sizeof nested, "%s/in", gone);
    setenv("CGXFFCV_CACHE", nested, 1);
    plans = open_plans();
    CHECK_OK(nn_cuda_plans_store(plans, "a", "1"));
    CHECK(unlink(report_of(plans).path) == 0 && rmdir(nested) == 0 && rmdir(gone) == 0);
    CHECK_OK(nn_cuda_plans_store(plans, "b", "2")); /* the folder is made again */
    CHECK(report_of(plans).note[0] == '\0');
    nn_cuda_plans_close(plans);
    plans = open_plans();
    CHECK(holds(plans, "a", "1") && holds(plans, "b", "2"));
    CHECK(unlink(report_of(plans).path) == 0 && rmdir(nested) == 0 && rmdir(gone) == 0);
    nn_cuda_plans_close(plans);

    write_text(gone, "no folder", 9);
    plans = open_plans();
    CHECK(report_of(plans).note[0] == '\0');
    CHECK_OK(nn_cuda_plans_store(plans, "a", "1"));
    CHECK(holds(plans, "a", "1") && strncmp(report_of(plans).note, "cannot write ", 13) == 0);
    CHECK(read_text(gone, after, sizeof after) == 9 && memcmp(after, "no folder", 9) == 0);
    nn_cuda_plans_close(plans);
    snprintf(nested, sizeof nested, "%s/deep/er", home);
    setenv("CGXFFCV_CACHE", nested, 1);
}

/* No file, because there is no place for one: the memory of the process does, and says so once. */
static void test_no_place(const char *path) {
    CHECK(unlink(path) == 0 && mkdir(path, 0700) == 0);
    ConvPlans *plans = open_plans();
    CHECK(strstr(report_of(plans).note, "it is not a regular file") != NULL);
    CHECK_OK(nn_cuda_plans_store(plans, "a", "1"));
    CHECK_OK(nn_cuda_plans_store(plans, "b", "2"));
    CHECK(holds(plans, "a", "1") && holds(plans, "b", "2"));
    nn_cuda_plans_close(plans);
    CHECK(rmdir(path) == 0 && mkfifo(path, 0600) == 0);
    plans = open_plans();
    CHECK(strstr(report_of(plans).note, "it is not a regular file") != NULL);
    nn_cuda_plans_close(plans);
    CHECK(unlink(path) == 0);

    setenv("CGXFFCV_CACHE", "/proc/nowhere/at/all", 1);
    plans = open_plans();
    CHECK(report_of(plans).note[0] == '\0');
    CHECK_OK(nn_cuda_plans_store(plans, "a", "1"));
    CHECK(holds(plans, "a", "1") && strstr(report_of(plans).note, "cannot write /proc/nowhere/at/all/") != NULL);
    nn_cuda_plans_close(plans);

    char longest[5000];
    memset(longest, 'd', sizeof longest);
    longest[0] = '/';
    longest[sizeof longest - 1] = '\0';
    setenv("CGXFFCV_CACHE", longest, 1);
    plans = open_plans();
    CHECK(report_of(plans).path[0] == '\0' && strstr(report_of(plans).note, "CGXFFCV_CACHE") != NULL);
    CHECK_OK(nn_cuda_plans_store(plans, "a", "1"));
    CHECK(holds(plans, "a", "1") && lacks(plans, "b"));
    nn_cuda_plans_close(plans);
}

static void test_directories(void) {
    char cache[CONV_PLANS_PATH_BYTES];
    unsetenv("CGXFFCV_CACHE");
    setenv("HOME", "/somewhere", 1);
    setenv("XDG_CACHE_HOME", home, 1);
    ConvPlans *plans = open_plans();
    snprintf(cache, sizeof cache, "%s/cgxffcv/NVIDIA", home);
    CHECK(strncmp(report_of(plans).path, cache, strlen(cache)) == 0);
    nn_cuda_plans_close(plans);
    setenv("XDG_CACHE_HOME", "relative", 1);
    plans = open_plans();
    CHECK(strncmp(report_of(plans).path, "/somewhere/.cache/cgxffcv/NVIDIA", 32) == 0);
    nn_cuda_plans_close(plans);
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    plans = open_plans();
    CHECK(report_of(plans).path[0] == '\0' && report_of(plans).note[0] != '\0');
    nn_cuda_plans_close(plans);
    ConvPlans *odd = NULL;
    setenv("CGXFFCV_CACHE", home, 1);
    CHECK_OK(nn_cuda_plans_open("../../GPU\nof\tno/name", "x", &odd));
    snprintf(cache, sizeof cache, "%s/.._.._GPU_of_no_name__x.plans", home);
    CHECK(strcmp(report_of(odd).path, cache) == 0);
    CHECK_OK(nn_cuda_plans_store(odd, "a", "1"));
    CHECK(report_of(odd).note[0] == '\0');
    nn_cuda_plans_close(odd);
}

/* Several processes that write at once leave a whole file. */
static void test_at_once(void) {
    pid_t children[4];
    for (int child = 0; child < 4; child++) {
        children[child] = fork();
        if (children[child] == 0) {
            ConvPlans *plans = NULL;
            bool good = nn_cuda_plans_open(DEVICE, "at once", &plans) == STATUS_OK;
            for (int i = 0; good && i < 25; i++) {
                char key[32];
                snprintf(key, sizeof key, "%d %d", child, i);
                good = nn_cuda_plans_store(plans, key, "value") == STATUS_OK && report_of(plans).note[0] == '\0';
            }
            nn_cuda_plans_close(plans);
            _exit(good ? 0 : 1);
        }
    }
    for (int child = 0; child < 4; child++) {
        int result = -1;
        CHECK(waitpid(children[child], &result, 0) == children[child] && result == 0);
    }
    ConvPlans *plans = NULL;
    CHECK_OK(nn_cuda_plans_open(DEVICE, "at once", &plans));
    ConvPlansReport report = report_of(plans);
    CHECK(report.note[0] == '\0' && report.entries >= 25 && report.entries <= 100);
    nn_cuda_plans_close(plans);
}

int main(void) {
    char cache[64], path[CONV_PLANS_PATH_BYTES], command[128];
    if (mkdtemp(home) == NULL) return 1;
    snprintf(cache, sizeof cache, "%s/deep/er", home);
    setenv("CGXFFCV_CACHE", cache, 1);
    test_round_trip();
    test_two_writers();
    test_refusals();
    ConvPlans *plans = open_plans();
    memcpy(path, report_of(plans).path, sizeof path);
    nn_cuda_plans_close(plans);
    test_damage(path);
    test_hostile(path);
    test_foreign(path);
    test_unwritable(path);
    test_at_once();
    test_no_place(path);
    test_directories();
    snprintf(command, sizeof command, "rm -rf '%s'", home);
    CHECK(system(command) == 0);
    return check_result();
}
