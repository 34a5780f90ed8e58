/* MPI's world, and what all calls to MPI share. mpi_world.c makes it, mpi.c moves frames in it. */
#ifndef CGXFFCV_COMM_MPI_WORLD_H
#define CGXFFCV_COMM_MPI_WORLD_H

#include <pthread.h>

#include "comm/mpi_library.h"
#include "comm/net.h"

struct CommNetWorld {
    const CommMpi *mpi; /* borrowed: lives as long as the process */
    MpiHandle handle;   /* the duplicate of MPI's world */
    int rank, size;
    CommNetWorld *next; /* the one made before it */
};

/* Serialises our calls to MPI. None of those under it blocks, so nobody waits for it long. */
extern pthread_mutex_t comm_mpi_lock;

/* TRANSPORT, with MPI's message, if `error` is one. */
Status comm_mpi_check(const CommMpi *mpi, int error, const char *what);

#define TRY_MPI(mpi, name, ...) TRY(comm_mpi_check(mpi, (mpi)->name(__VA_ARGS__), "MPI_" #name))
#define TRY_MPI_GOTO(mpi, name, ...) TRY_GOTO(comm_mpi_check(mpi, (mpi)->name(__VA_ARGS__), "MPI_" #name))

/* Tests whether the request is complete, as MPI_Test; its status is not wanted. */
int comm_mpi_test(const CommMpi *mpi, void *request, int *finished);

/* Whether MPI has been finalised, or was never opened (NULL). */
bool comm_mpi_is_over(const CommMpi *mpi);

#endif
