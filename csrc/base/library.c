/* Opening shared libraries by name. Owns the list of folders; the libraries belong to the process. */
#include "base/library.h"

#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/handlers.h"
#include "base/memory.h"

#define OPENING (RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)

static char **list; /* owned, with its texts */
static int list_count;

Status library_set_folders(const char *const *folders, int count) {
    Status status = STATUS_OK;
    char **made = NULL;
    int filled = 0;
    TRY_GOTO(memory_calloc((size_t)count + 1, sizeof *made, &made));
    for (; filled < count; filled++) {
        size_t bytes = strlen(folders[filled]) + 1;
        TRY_GOTO(memory_alloc(bytes, 1, &made[filled]));
        memcpy(made[filled], folders[filled], bytes);
    }
    char **old = list;
    int old_count = list_count;
    list = made;
    list_count = count;
    made = old;
    filled = old_count;
done:
    for (int i = 0; i < filled; i++) memory_free(made[i]);
    memory_free(made);
    return status;
}

bool library_find_package(const char *relative, char path[LIBRARY_PATH_BYTES]) {
    for (int i = 0; i < list_count; i++) {
        int length = snprintf(path, LIBRARY_PATH_BYTES, "%s/%s", list[i], relative);
        if (length > 0 && length < LIBRARY_PATH_BYTES && access(path, R_OK) == 0) return true;
    }
    path[0] = '\0';
    return false;
}

void *library_open_file(const char *file, char why[LIBRARY_WHY_BYTES]) {
    Handlers handlers;
    handlers_save(&handlers);
    void *library = dlopen(file, OPENING);
    handlers_restore(&handlers);
    why[0] = '\0';
    if (library != NULL) return library;
    const char *message = dlerror();
    snprintf(why, LIBRARY_WHY_BYTES, "%.*s", LIBRARY_WHY_BYTES - 1, message == NULL ? file : message);
    return NULL;
}

void *library_find_open(const char *name) { return dlopen(name, OPENING | RTLD_NOLOAD); }

/* Appends the remedy to the reason. */
static void *open_or_advise(const LibraryRequest *request, const char *file, char why[LIBRARY_WHY_BYTES]) {
    char reason[LIBRARY_WHY_BYTES];
    void *library = library_open_file(file, reason);
    why[0] = '\0';
    if (library != NULL) return library;
    snprintf(why, LIBRARY_WHY_BYTES, "%.300s cannot be loaded (%.170s)", reason, request->remedy);
    return NULL;
}

void *library_open(const LibraryRequest *request, char why[LIBRARY_WHY_BYTES]) {
    char path[LIBRARY_PATH_BYTES];
    const char *chosen = request->variable == NULL ? NULL : getenv(request->variable);
    if (chosen != NULL && *chosen != '\0') return open_or_advise(request, chosen, why);
    void *library = library_find_open(request->name);
    why[0] = '\0';
    if (library != NULL) return library;
    if (request->package != NULL && library_find_package(request->package, path))
        return open_or_advise(request, path, why);
    return open_or_advise(request, request->name, why);
}

bool library_function(void *library, const char *name, void *out) {
    void *symbol = dlsym(library, name);
    memcpy(out, &symbol, sizeof symbol);
    return symbol != NULL;
}

void library_path(void *library, char path[LIBRARY_PATH_BYTES]) {
    struct link_map *map = NULL;
    path[0] = '\0';
    if (dlinfo(library, RTLD_DI_LINKMAP, &map) != 0 || map == NULL) return;
    snprintf(path, LIBRARY_PATH_BYTES, "%s", map->l_name);
}
