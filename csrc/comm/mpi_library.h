/* MPI without mpi.h: which library is opened, its functions, and the constants that each family of MPI libraries has
 * chosen for itself. mpi_library.c opens it when it is first needed; mpi_world.c and mpi.c use it.
 *
 * A handle (of a communicator, a type, a request) is a pointer in Open MPI and in the standard ABI of MPI 5.0, and an
 * int in MPICH. Passed by value, the two look the same where registers and stack slots have 64 bits. A variable that a
 * handle is written to starts as zero, and the low bytes come first. Arrays of requests have a stride of handle_bytes,
 * arrays of statuses one of status_bytes. */
#ifndef CGXFFCV_COMM_MPI_LIBRARY_H
#define CGXFFCV_COMM_MPI_LIBRARY_H

#include "base/library.h"
#include "comm/comm.h"

typedef uintptr_t MpiHandle;

_Static_assert(sizeof(MpiHandle) == 8 && sizeof(int) == 4, "handles in registers of 64 bits");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "an int is the first bytes of a handle");

#define MPI_OK 0                 /* MPI_SUCCESS: the same in all families, by the standard */
#define MPI_ERROR_TEXT_BYTES 513 /* the longest MPI_MAX_ERROR_STRING is MPICH's, 512 */

/* X(name without MPI_, types of the arguments); requests and statuses are passed by address. */
#define COMM_MPI_CALLS(X)                                                                                              \
    X(Initialized, int *)                                                                                              \
    X(Finalized, int *)                                                                                                \
    X(Init_thread, int *, char ***, int, int *)                                                                        \
    X(Query_thread, int *)                                                                                             \
    X(Finalize, void)                                                                                                  \
    X(Get_library_version, char *, int *)                                                                              \
    X(Error_string, int, char *, int *)                                                                                \
    X(Error_class, int, int *)                                                                                         \
    X(Comm_rank, MpiHandle, int *)                                                                                     \
    X(Comm_size, MpiHandle, int *)                                                                                     \
    X(Comm_idup, MpiHandle, MpiHandle *, void *)                                                                       \
    X(Comm_get_attr, MpiHandle, int, void *, int *)                                                                    \
    X(Comm_set_errhandler, MpiHandle, MpiHandle)                                                                       \
    X(Isend, const void *, int, MpiHandle, int, int, MpiHandle, void *)                                                \
    X(Irecv, void *, int, MpiHandle, int, int, MpiHandle, void *)                                                      \
    X(Test, void *, int *, void *)                                                                                     \
    X(Testsome, int, void *, int *, int *, void *)                                                                     \
    X(Cancel, void *)                                                                                                  \
    X(Get_count, const void *, MpiHandle, int *)                                                                       \
    X(Allreduce, const void *, void *, int, MpiHandle, MpiHandle, MpiHandle)                                           \
    X(Iallgather, const void *, int, MpiHandle, void *, int, MpiHandle, MpiHandle, void *)                             \
    X(Ibarrier, MpiHandle, void *)

/* The constants of a family. */
typedef struct MpiAbi {
    const char *family; /* "Open MPI" */
    size_t handle_bytes, status_bytes, status_error_at;
    MpiHandle comm_world, comm_self, request_null, byte, float32, sum, errors_return;
    MpiHandle in_place, status_ignore; /* addresses */
    int any_source, undefined, err_in_status, tag_ub, thread_serialized, thread_multiple;
} MpiAbi;

typedef struct CommMpi {
    MpiAbi abi;
    void *library; /* of base/library.h */
    char path[LIBRARY_PATH_BYTES];
    char version[128]; /* the first line of what it says about itself */
#define MPI_MEMBER(name, ...) int (*name)(__VA_ARGS__);
    COMM_MPI_CALLS(MPI_MEMBER)
#undef MPI_MEMBER
} CommMpi;

/* Opens the library of the launcher that started the ranks, once in this process; *out lives as long as the process.
 * NOT_BUILT if there is none, TRANSPORT if it cannot be used. */
Status comm_mpi_open(const CommMpi **out);

#endif
