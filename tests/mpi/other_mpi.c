/* Stands in for MPI libraries that are not here. As MPICH, a world of one rank whose handles are ints, and which ends
 * the process where it is given what is none of them; as UNKNOWN, something that is no family of MPI. Like UCX, it puts
 * handlers of faults in place of what it finds, as it is opened and once more as it is initialised. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORLD 0x44000000
#define DUPLICATE ((int)0x84000001)
#define REQUEST ((int)0x98000000)
#define REQUEST_NULL 0x2c000000

#ifdef UNKNOWN
#define VERSION "A library of 1994, release 7\nand more"
#else
#define VERSION "MPICH Version:      9.9\nMPICH Release date: never"
#endif

#define EXPECT(what)                                                                                                   \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "other_mpi: %s: not %s\n", __func__, #what);                                               \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static int initialised;

static void lose(int number) {
    (void)number;
    _exit(77);
}

__attribute__((constructor)) static void take_handlers(void) {
    signal(SIGBUS, lose);
    signal(SIGSEGV, lose);
}

int MPI_Get_library_version(char *text, int *length) {
    strcpy(text, VERSION);
    *length = (int)strlen(text);
    return 0;
}

int MPI_Initialized(int *flag) {
    *flag = initialised;
    return 0;
}

int MPI_Finalized(int *flag) {
    *flag = 0;
    return 0;
}

int MPI_Init_thread(int *argc, char ***argv, int wanted, int *provided) {
    take_handlers();
    EXPECT(argc == NULL && argv == NULL && wanted == 3);
    initialised = 1;
    *provided = 2;
    return 0;
}

int MPI_Query_thread(int *provided) {
    *provided = 2;
    return 0;
}

int MPI_Comm_set_errhandler(int comm, int handler) {
    EXPECT(comm == WORLD || comm == WORLD + 1 || comm == DUPLICATE);
    EXPECT(handler == 0x54000001);
    return 0;
}

int MPI_Comm_rank(int comm, int *rank) {
    EXPECT(comm == WORLD);
    *rank = 0;
    return 0;
}

int MPI_Comm_size(int comm, int *size) {
    EXPECT(comm == WORLD);
    *size = 1;
    return 0;
}

int MPI_Comm_idup(int comm, int *duplicate, int *request) {
    EXPECT(comm == WORLD);
    *duplicate = DUPLICATE;
    *request = REQUEST;
    return 0;
}

int MPI_Ibarrier(int comm, int *request) {
    EXPECT(comm == WORLD);
    *request = REQUEST;
    return 0;
}

int MPI_Test(int *request, int *flag, void *status) {
    EXPECT(*request == REQUEST && status == (void *)1);
    *request = REQUEST_NULL;
    *flag = 1;
    return 0;
}

int MPI_Finalize(void) {
    fprintf(stderr, "other_mpi: finalised\n");
    return 0;
}

#define UNUSED(name)                                                                                                   \
    int MPI_##name(void) { abort(); }
UNUSED(Error_string)
UNUSED(Error_class)
UNUSED(Comm_get_attr)
UNUSED(Isend)
UNUSED(Irecv)
UNUSED(Testsome)
UNUSED(Cancel)
UNUSED(Get_count)
UNUSED(Allreduce)
UNUSED(Iallgather)
