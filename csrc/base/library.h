/* Shared libraries that are opened when they are first needed, so that this module loads on machines without them.
 *
 * Where they are looked for: what a variable of the environment names, and nothing else; what this process has opened
 * already, whoever did; the folders of Python packages; the system's own folders. Nothing is ever closed again. The
 * process's handlers of faults stay as they are (handlers.h). */
#ifndef CGXFFCV_BASE_LIBRARY_H
#define CGXFFCV_BASE_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

#define LIBRARY_WHY_BYTES 512
#define LIBRARY_PATH_BYTES 1024

/* One library; all texts are borrowed for ever, and NULL where there is none. */
typedef struct LibraryWish {
    const char *variable; /* of the environment, which names the file */
    const char *package;  /* its path from a folder of Python packages: "nvidia/cudnn/lib/libcudnn.so.9" */
    const char *name;     /* as the system's linker knows it: "libcudnn.so.9" */
    const char *remedy;   /* what to install: "apt install libnccl2" */
} LibraryWish;

/* The folders in which Python packages lie, in the order in which Python looks into them; copied. Before the first
 * library is opened, from one thread. */
Status library_set_folders(const char *const *folders, int count);

/* NULL, with the reason and the remedy in `why`, if it cannot be opened. */
void *library_open(const LibraryWish *wish, char why[LIBRARY_WHY_BYTES]);

/* A file, or a name for the system's linker, as it is; NULL, with the reason in `why`, if it cannot be opened. */
void *library_open_file(const char *file, char why[LIBRARY_WHY_BYTES]);

/* What this process has opened already under that name; NULL if it has opened none. */
void *library_find_open(const char *name);

/* The first file at `relative` below a folder of Python packages that is there. */
bool library_find_package(const char *relative, char path[LIBRARY_PATH_BYTES]);

/* Puts the function of that name into the pointer to a function at `out`; false, with *out NULL, if there is none. */
bool library_function(void *library, const char *name, void *out);

/* The file that it was opened from. */
void library_path(void *library, char path[LIBRARY_PATH_BYTES]);

#endif
