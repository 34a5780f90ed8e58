// rooms: base
/* Where shared libraries are looked for, and what is said of one that cannot be opened. */
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/library.h"
#include "check.h"

#define REMEDY "apt install libthing1"
#define VARIABLE "CGXFFCV_TEST_LIBRARY"

static char root[] = "/tmp/cgxffcv-library-XXXXXX";

/* A link to the C library's mathematics under another name. */
static void place(const char *relative, const char *target) {
    char path[LIBRARY_PATH_BYTES], command[2 * LIBRARY_PATH_BYTES], folder[LIBRARY_PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", root, relative);
    snprintf(folder, sizeof folder, "%s", path);
    snprintf(command, sizeof command, "mkdir -p '%s'", dirname(folder));
    CHECK(system(command) == 0);
    CHECK(symlink(target, path) == 0);
}

static void test_order(const char *mathematics) {
    char first[LIBRARY_PATH_BYTES], second[LIBRARY_PATH_BYTES], path[LIBRARY_PATH_BYTES], why[LIBRARY_WHY_BYTES];
    const char *folders[] = {first, second};
    const LibraryRequest request = {
        .variable = VARIABLE, .package = "nvidia/thing/lib/libthing.so.1", .name = "libthing.so.1", .remedy = REMEDY};
    snprintf(first, sizeof first, "%s/first", root);
    snprintf(second, sizeof second, "%s/second", root);
    CHECK(library_open(&request, why) == NULL);
    CHECK(strstr(why, "libthing.so.1: cannot open shared object file") != NULL && strstr(why, "(" REMEDY ")") != NULL);

    place("second/nvidia/thing/lib/libthing.so.1", mathematics);
    CHECK(!library_find_package(request.package, path) && path[0] == '\0');
    CHECK_OK(library_set_folders(folders, 2));
    CHECK(library_find_package(request.package, path) && strncmp(path, second, strlen(second)) == 0);
    void *library = library_open(&request, why);
    double (*cosine)(double) = NULL;
    CHECK(library != NULL && why[0] == '\0');
    CHECK(library_function(library, "cos", &cosine) && cosine != NULL && cosine(0) == 1);
    CHECK(!library_function(library, "a_function_that_nobody_wrote", &cosine) && cosine == NULL);

    place("first/nvidia/thing/lib/libthing.so.1", "/nowhere"); /* what cannot be read is passed over */
    CHECK(library_find_package(request.package, path) && strncmp(path, second, strlen(second)) == 0);

    setenv(VARIABLE, "/nowhere/libthing.so", 1);
    CHECK(library_open(&request, why) == NULL && strstr(why, "/nowhere/libthing.so") != NULL);
    CHECK(strstr(why, REMEDY) != NULL);
    setenv(VARIABLE, mathematics, 1);
    CHECK(library_open(&request, why) == library);
    setenv(VARIABLE, "", 1); /* as if it were not set */
    CHECK(library_open(&request, why) == library);
    CHECK_OK(library_set_folders(NULL, 0));
    CHECK(library_open(&request, why) == NULL);
}

static void test_what_is_no_library(void) {
    char path[LIBRARY_PATH_BYTES], why[LIBRARY_WHY_BYTES];
    snprintf(path, sizeof path, "%s/text.so", root);
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs("not a library", file) >= 0 && fclose(file) == 0);
    CHECK(library_open_file(path, why) == NULL && strstr(why, path) != NULL);
}

int main(void) {
    char mathematics[LIBRARY_PATH_BYTES], command[LIBRARY_PATH_BYTES], real[PATH_MAX];
    void *library = library_find_open("libm.so.6");
    CHECK(mkdtemp(root) != NULL);
    CHECK(library != NULL && library_find_open("libnobody.so.1") == NULL);
    library_path(library, mathematics);
    CHECK(realpath(mathematics, real) != NULL && strstr(real, "libm") != NULL);
    test_order(mathematics);
    test_what_is_no_library();
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    CHECK(system(command) == 0);
    return check_result();
}
