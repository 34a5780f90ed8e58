// rooms: base
/* Atomic files where the system has no files without names: O_TMPFILE is made to fail, as on NFS. */
#include <fcntl.h>

#undef O_TMPFILE
#define O_TMPFILE (O_DIRECTORY | O_CREAT)
#include "../../csrc/base/atomic_file.c"

#include <dirent.h>
#include <stdlib.h>

#include "check.h"

static int entries(const char *directory) {
    int count = 0;
    DIR *stream = opendir(directory);
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;)
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;

    closedir(stream);
    return count;
}

int main(void) {
    char directory[] = "/tmp/cgxffcv-named-XXXXXX", path[64], text[8] = "";
    AtomicFile *file = NULL, *second = NULL;
    int unsynced = -1;
    CHECK(mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/x", directory);
    CHECK_OK(atomic_file_create(path, &file));
    CHECK(file->named && entries(directory) == 1 && access(path, F_OK) != 0);
    CHECK_OK(atomic_file_write_at(file, "abc", 3, 0));
    CHECK_OK(atomic_file_read_at(file, text, 3, 0));
    CHECK(strcmp(text, "abc") == 0);
    CHECK(atomic_file_read_at(file, text, 3, 1) == STATUS_IO);
    CHECK_OK(atomic_file_create_again(file, &second));
    CHECK(entries(directory) == 2);
    atomic_file_abort(second);
    CHECK_OK(atomic_file_commit(file, &unsynced));
    CHECK(unsynced == 0);
    CHECK(entries(directory) == 1 && access(path, F_OK) == 0);
    CHECK_OK(atomic_file_create(path, &file));
    file->owner++; /* as in a forked child */
    atomic_file_abort(file);
    CHECK(entries(directory) == 2);
    CHECK_OK(atomic_file_create(path, &file));
    atomic_file_abort(file);
    CHECK(entries(directory) == 2);
    snprintf(path, sizeof path, "rm -r %s", directory);
    CHECK(system(path) == 0);
    return check_result();
}
