/* Finds and opens the MPI library that matches the launcher of the ranks. Two libraries of one family look alike, but
 * ranks find each other only through the one that belongs to their launcher.
 *
 * Tried in turn: CGXFFCV_MPI_LIBRARY; what this process has already opened (mpi4py, say); next to the launcher, which
 * is among this process's ancestors; next to the mpirun on PATH; in the prefix of Python's packages, where the wheels
 * of Open MPI and MPICH install theirs; the system's. */
#include "comm/mpi_library.h"
#include "comm/net.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIBRARY_VARIABLE "CGXFFCV_MPI_LIBRARY"
#define REMEDY                                                                                                         \
    "apt install openmpi-bin, or pip install 'cgxffcv[mpi]', and start the ranks with the mpirun that comes with "     \
    "it; " LIBRARY_VARIABLE " selects another library"
#define ANCESTORS 16
#define VERSION_BYTES 8193 /* the longest MPI_MAX_LIBRARY_VERSION_STRING is MPICH's, 8192 */

static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
static CommMpi opened;                   /* filled once, under `opening` */
static _Atomic(const CommMpi *) current; /* &opened once it is */

/* ---- the families ---- */

/* mpi.h of MPICH 3.1 to 5.0, whose interface Intel MPI, MVAPICH and Cray MPICH keep (www.mpich.org/abi). */
static const MpiAbi mpich = {.family = "MPICH",
                             .handle_bytes = 4,
                             .status_bytes = 20, /* two counts, then source, tag, error */
                             .status_error_at = 16,
                             .comm_world = 0x44000000,
                             .comm_self = 0x44000001,
                             .request_null = 0x2c000000,
                             .byte = 0x4c00010d,
                             .float32 = 0x4c00040a,
                             .sum = 0x58000003,
                             .errors_return = 0x54000001,
                             .in_place = UINTPTR_MAX, /* -1 */
                             .status_ignore = 1,
                             .any_source = -2,
                             .undefined = -32766,
                             .err_in_status = 17,
                             .tag_ub = 0x64400001,
                             .thread_serialized = 2,
                             .thread_multiple = 3};

/* MPI: A Message-Passing Interface Standard, version 5.0, chapter 20 and appendix A. */
static const MpiAbi standard = {.family = "MPI 5.0",
                                .handle_bytes = 8,
                                .status_bytes = 32, /* source, tag, error, five more */
                                .status_error_at = 8,
                                .comm_world = 0x101,
                                .comm_self = 0x102,
                                .request_null = 0x180,
                                .byte = 0x247,
                                .float32 = 0x210,
                                .sum = 0x21,
                                .errors_return = 0x143,
                                .in_place = 1,
                                .status_ignore = 0,
                                .any_source = -1,
                                .undefined = -32766,
                                .err_in_status = 19,
                                .tag_ub = 501,
                                .thread_serialized = 2048,
                                .thread_multiple = 4096};

/* mpi.h of Open MPI 3.0 to 5.0: handles are addresses in the library. */
static bool fill_open_mpi(void *library, MpiAbi *abi) {
    *abi = (MpiAbi){.family = "Open MPI",
                    .handle_bytes = 8,
                    .status_bytes = 24, /* source, tag, error, an int, a size_t */
                    .status_error_at = 8,
                    .in_place = 1,
                    .status_ignore = 0,
                    .any_source = -1,
                    .undefined = -32766,
                    .err_in_status = 18,
                    .tag_ub = 0,
                    .thread_serialized = 2,
                    .thread_multiple = 3};
    return library_function(library, "ompi_mpi_comm_world", &abi->comm_world) &&
           library_function(library, "ompi_mpi_comm_self", &abi->comm_self) &&
           library_function(library, "ompi_request_null", &abi->request_null) &&
           library_function(library, "ompi_mpi_byte", &abi->byte) &&
           library_function(library, "ompi_mpi_float", &abi->float32) &&
           library_function(library, "ompi_mpi_op_sum", &abi->sum) &&
           library_function(library, "ompi_mpi_errors_return", &abi->errors_return);
}

static bool mentions_mpich(const char *version) {
    static const char *const words[] = {"MPICH", "Intel(R) MPI", "MVAPICH", "ParaStationMPI"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strstr(version, words[i]) != NULL) return true;
    }
    return false;
}

static const char *mpi_base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

static Status fill_functions(CommMpi *mpi) {
#define MPI_FILL(name, ...)                                                                                            \
    if (!library_function(mpi->library, "MPI_" #name, &mpi->name)) {                                                   \
        FAIL(STATUS_TRANSPORT, "%s has no MPI_" #name ": it is not a library of MPI 3 or later. Remedy: %s",           \
             mpi->path, REMEDY);                                                                                       \
    }
    COMM_MPI_CALLS(MPI_FILL)
#undef MPI_FILL
    return STATUS_OK;
}

/* Looks up the functions, the family and the version of an opened library. */
static Status mpi_bind(void *library, CommMpi *mpi) {
    char said[VERSION_BYTES] = "";
    int length = 0;
    *mpi = (CommMpi){.library = library};
    library_path(library, mpi->path);
    TRY(fill_functions(mpi));
    (void)mpi->Get_library_version(said, &length);
    snprintf(mpi->version, sizeof mpi->version, "%.*s", (int)strcspn(said, "\n,"), said);
    if (strncmp(mpi_base_name(mpi->path), "libmpi_abi.", 11) == 0) {
        mpi->abi = standard;
    } else if (!fill_open_mpi(library, &mpi->abi)) {
        mpi->abi = mpich;
        if (!mentions_mpich(said)) {
            FAIL(STATUS_TRANSPORT,
                 "%s calls itself %.100s: it is neither Open MPI nor MPICH nor derived from it, so its ABI is not "
                 "known here. Remedy: %s",
                 mpi->path, mpi->version, REMEDY);
        }
    }
    return STATUS_OK;
}

/* ---- where they are ---- */

/* The names that the families give their libraries; those of the family that started this process come first. */
static const char *const *library_names(void) {
    static const char *const open_mpi[] = {"libmpi.so.40", "libmpi.so.12", "libmpich.so.12", "libmpi_abi.so.1", NULL};
    static const char *const mpich_first[] = {"libmpi.so.12", "libmpich.so.12", "libmpi_abi.so.1", "libmpi.so.40",
                                              NULL};
    return getenv("OMPI_COMM_WORLD_SIZE") == NULL && getenv("PMI_SIZE") != NULL ? mpich_first : open_mpi;
}

static void *find_in_process(void) {
    void *library = NULL;
    for (const char *const *name = library_names(); *name != NULL && library == NULL; name++) {
        library = library_find_open(*name);
    }
    return library;
}

/* Next to a program in PREFIX/bin. `why` keeps the first reason why one that is there cannot be opened. */
static void *open_next_to(const char *program, char why[LIBRARY_WHY_BYTES]) {
    static const char *const folders[] = {
        "lib",
        "lib64",
#if defined(__x86_64__)
        "lib/x86_64-linux-gnu",
#elif defined(__aarch64__)
        "lib/aarch64-linux-gnu",
#endif
        "lib/release"
    };
    char path[LIBRARY_PATH_BYTES], reason[LIBRARY_WHY_BYTES];
    int prefix = (int)(mpi_base_name(program) - program) - 1;
    while (prefix > 0 && program[prefix - 1] != '/') prefix--;
    for (const char *const *name = library_names(); prefix > 0 && *name != NULL; name++) {
        for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
            int length = snprintf(path, sizeof path, "%.*s%s/%s", prefix, program, folders[i], *name);
            if (length >= (int)sizeof path || access(path, R_OK) != 0) continue;
            void *library = library_open_file(path, reason);
            if (library != NULL) return library;
            if (why[0] == '\0') memcpy(why, reason, sizeof reason);
        }
    }
    return NULL;
}

/* The process's parent, 0 if unknown; its program in `path`, "" if unknown. */
static int parent_of(int pid, char path[LIBRARY_PATH_BYTES]) {
    char name[32], text[512];
    snprintf(name, sizeof name, "/proc/%d/exe", pid);
    ssize_t length = readlink(name, path, LIBRARY_PATH_BYTES - 1);
    path[length < 0 ? 0 : length] = '\0';
    snprintf(name, sizeof name, "/proc/%d/stat", pid);
    FILE *file = fopen(name, "re");
    size_t bytes = file == NULL ? 0 : fread(text, 1, sizeof text - 1, file);
    if (file != NULL) fclose(file);
    text[bytes] = '\0';
    const char *behind = strrchr(text, ')'); /* a program's name may contain anything */
    int parent = 0;
    return behind != NULL && sscanf(behind, ") %*c %d", &parent) == 1 ? parent : 0;
}

static bool is_launcher(const char *program) {
    static const char *const names[] = {"mpirun", "mpiexec", "orterun", "orted", "prte", "hydra_", "pmi_proxy"};
    const char *name = mpi_base_name(program);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strncmp(name, names[i], strlen(names[i])) == 0) return true;
    }
    return false;
}

static void *open_next_to_launcher(char why[LIBRARY_WHY_BYTES]) {
    char program[LIBRARY_PATH_BYTES];
    int pid = getppid();
    void *library = NULL;
    for (int i = 0; i < ANCESTORS && pid > 1 && library == NULL; i++) {
        pid = parent_of(pid, program);
        if (is_launcher(program)) library = open_next_to(program, why);
    }
    return library;
}

static void *open_next_to_mpirun(char why[LIBRARY_WHY_BYTES]) {
    char path[LIBRARY_PATH_BYTES], real[PATH_MAX];
    const char *folder = getenv("PATH");
    while (folder != NULL && *folder != '\0') {
        size_t length = strcspn(folder, ":");
        snprintf(path, sizeof path, "%.*s/mpirun", (int)length, folder);
        if (length > 0 && access(path, X_OK) == 0) {
            return realpath(path, real) == NULL ? NULL : open_next_to(real, why);
        }
        folder += length + (folder[length] == ':');
    }
    return NULL;
}

/* PREFIX/lib of PREFIX/lib/python3.x/site-packages, then the system's. */
static void *open_installed(char why[LIBRARY_WHY_BYTES]) {
    char relative[64], path[LIBRARY_PATH_BYTES], reason[LIBRARY_WHY_BYTES];
    void *library = NULL;
    for (const char *const *name = library_names(); *name != NULL && library == NULL; name++) {
        snprintf(relative, sizeof relative, "../../%s", *name);
        if (library_find_package(relative, path)) library = library_open_file(path, why[0] == '\0' ? why : reason);
    }
    for (const char *const *name = library_names(); *name != NULL && library == NULL; name++) {
        library = library_open_file(*name, reason);
    }
    return library;
}

static Status find_library(void **out) {
    char why[LIBRARY_WHY_BYTES] = "", path[LIBRARY_PATH_BYTES];
    const char *chosen = getenv(LIBRARY_VARIABLE);
    void *present = find_in_process(), *library;
    if (chosen != NULL && *chosen != '\0') {
        library = library_open_file(chosen, why);
        if (library == NULL) FAIL(STATUS_NOT_BUILT, LIBRARY_VARIABLE "=%.200s cannot be opened: %.400s", chosen, why);
        if (present != NULL && present != library) {
            library_path(present, path);
            FAIL(STATUS_TRANSPORT,
                 LIBRARY_VARIABLE "=%.200s, but this process has already opened %.300s (through mpi4py?): name that "
                                  "one, or leave the variable unset",
                 chosen, path);
        }
        *out = library;
        return STATUS_OK;
    }
    library = present != NULL ? present : open_next_to_launcher(why);
    if (library == NULL) library = open_next_to_mpirun(why);
    if (library == NULL) library = open_installed(why);
    if (library == NULL && why[0] != '\0')
        FAIL(STATUS_NOT_BUILT, "MPI cannot be opened: %.400s. Remedy: %s", why, REMEDY);
    if (library == NULL) {
        FAIL(STATUS_NOT_BUILT,
             "several ranks need MPI, but no MPI library was found (libmpi.so.40 of Open MPI, libmpi.so.12 of MPICH). "
             "Remedy: %s",
             REMEDY);
    }
    *out = library;
    return STATUS_OK;
}

/* ---- opened ---- */

static Status open_once(void *library) {
    if (atomic_load(&current) != NULL) return STATUS_OK;
    if (library == NULL) TRY(find_library(&library));
    TRY(mpi_bind(library, &opened));
    atomic_store(&current, &opened);
    return STATUS_OK;
}

Status comm_mpi_open(const CommMpi **out) {
    pthread_mutex_lock(&opening);
    Status status = open_once(NULL);
    pthread_mutex_unlock(&opening);
    if (status == STATUS_OK) *out = atomic_load(&current);
    return status;
}

/* The open library, whether the call above or other code in this process has opened it; NULL if there is none. */
static const CommMpi *find_open(void) {
    if (atomic_load(&current) != NULL) return atomic_load(&current);
    void *library = find_in_process();
    if (library == NULL) return NULL;
    pthread_mutex_lock(&opening);
    (void)open_once(library);
    pthread_mutex_unlock(&opening);
    return atomic_load(&current);
}

int comm_net_running_size(void) {
    int initialised = 0, finalized = 0, size = 0;
    const CommMpi *open = find_open();
    if (open == NULL) return 0;
    open->Initialized(&initialised);
    open->Finalized(&finalized);
    return initialised && !finalized && open->Comm_size(open->abi.comm_world, &size) == MPI_OK ? size : 0;
}

Status comm_mpi_name(bool open, CommMpiName *out) {
    const CommMpi *mpi = atomic_load(&current);
    if (open) TRY(comm_mpi_open(&mpi));
    *out = (CommMpiName){0};
    if (mpi != NULL) *out = (CommMpiName){.family = mpi->abi.family, .path = mpi->path, .version = mpi->version};
    return STATUS_OK;
}
