/* Shared libraries that are opened when they are first needed, so that this module loads on machines without them.
 *
 * The search order: the file that an environment variable names (if set, nothing else is tried); libraries already open
 * in this process, whoever opened them; the folders of Python packages; the system's own folders. Libraries are never
 * closed. The process's fault handlers stay as they are (handlers.h). */
#ifndef CGXFFCV_BASE_LIBRARY_H
#define CGXFFCV_BASE_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

#define LIBRARY_WHY_BYTES 512
#define LIBRARY_PATH_BYTES 1024

/* One library to look for; all strings are borrowed for ever, NULL where there is none. */
typedef struct LibraryRequest {
    const char *variable; /* the environment variable that names the file */
    const char *package;  /* its path in a folder of Python packages: "nvidia/cudnn/lib/libcudnn.so.9" */
    const char *name;     /* as the system's linker knows it: "libcudnn.so.9" */
    const char *remedy;   /* what to install: "apt install libnccl2" */
} LibraryRequest;

/* Sets the folders that contain Python packages, in Python's search order; copied. Call from one thread, before the
 * first library is opened. */
Status library_set_folders(const char *const *folders, int count);

/* Opens a library; NULL, with the reason and the remedy in `why`, if it cannot be opened. */
void *library_open(const LibraryRequest *request, char why[LIBRARY_WHY_BYTES]);

/* Opens a file, or a name for the system's linker, as given; NULL, with the reason in `why`, if that fails. */
void *library_open_file(const char *file, char why[LIBRARY_WHY_BYTES]);

/* The library that is already open in this process under that name; NULL if there is none. */
void *library_find_open(const char *name);

/* Finds the first readable file at `relative` below the folders of Python packages; false if there is none. */
bool library_find_package(const char *relative, char path[LIBRARY_PATH_BYTES]);

/* Stores the function of that name in the function pointer at `out`; false, with *out NULL, if there is none. */
bool library_function(void *library, const char *name, void *out);

/* The file that the library was loaded from; "" if unknown. */
void library_path(void *library, char path[LIBRARY_PATH_BYTES]);

#endif
