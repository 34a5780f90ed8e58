/* Cuts the gradient buffer into pieces of whole layers. Owns the second stream, its events, and the page-locked copy.
 *
 * The first few gradients go last, with the rest that backward finishes at its end: a loss that is not finite is marked
 * there when backward is over. */
#include "train/device_sum.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define PIECE_VARIABLE "CGXFFCV_COMM_PIECE_KIB"
#define PIECE_KIB 2048 /* long enough for the bandwidth, short enough to hide */
#define LATE_ELEMS ((size_t)64)

struct DeviceSum {
    Comm *comm;                  /* borrowed */
    NnModel *model;              /* borrowed */
    CommDevice *nccl;            /* owned; NULL: through host memory */
    DeviceStream *stream;        /* owned; with nccl */
    DeviceEvent *ready, *summed; /* owned; with nccl */
    size_t *ends;                /* owned: where pieces may end */
    size_t piece_elems;          /* the least of a piece */
    int end_count, next;         /* of `ends`: the first that has not been sent */
    size_t sent;                 /* [LATE_ELEMS, sent) is on its way */
    float *host;                 /* owned; without nccl */
    bool exact, average;
    char why[COMM_WHY_BYTES]; /* without nccl, and exact */
};

/* All ranks must cut alike. */
static Status choose_piece(DeviceSum *sum) {
    const char *text = getenv(PIECE_VARIABLE);
    char *end = NULL;
    long kib = text == NULL || *text == '\0' ? PIECE_KIB : strtol(text, &end, 10);
    if ((end != NULL && *end != '\0') || kib < 1 || kib > 1 << 20) {
        FAIL(STATUS_ARGUMENT, PIECE_VARIABLE "='%s': a whole number of KiB from 1 to %d is expected", text, 1 << 20);
    }
    sum->piece_elems = ((size_t)kib << 10) / sizeof(float);
    return comm_agree(sum->comm, &sum->piece_elems, sizeof sum->piece_elems);
}

static Status cut(DeviceSum *sum) {
    int count;
    size_t begin = 0;
    const NnLayer *layers = nn_model_layers(sum->model, &count);
    TRY(memory_calloc((size_t)count + 1, sizeof *sum->ends, &sum->ends));
    for (int i = 0; i < count; i++) {
        if (!layers[i].trained) continue;
        size_t end = layers[i].offset + layers[i].elems;
        if (end - begin < sum->piece_elems) continue;
        sum->ends[sum->end_count++] = end;
        begin = end;
    }
    return STATUS_OK;
}

static void begin_anew(DeviceSum *sum) {
    sum->next = 0;
    sum->sent = LATE_ELEMS;
}

/* Every sum that training will want, once. */
static Status rehearse(DeviceSum *sum, const size_t *elems, int count) {
    for (int i = 0; i < count; i++) {
        size_t told = 0;
        for (int k = 0; k < sum->end_count && sum->ends[k] <= elems[i]; k++) {
            TRY(device_sum_told(sum, told, sum->ends[k]));
            told = sum->ends[k];
        }
        TRY(device_sum_run(sum, elems[i]));
    }
    return device_sum_wait(sum, nn_model_stream(sum->model), NULL);
}

Status device_sum_create(Comm *comm, NnModel *model, bool exact, bool average, const size_t *elems, int count,
                         DeviceSum **out) {
    Status status = STATUS_OK;
    DeviceSum *sum = NULL;
    TRY(memory_calloc(1, sizeof *sum, &sum));
    sum->comm = comm;
    sum->model = model;
    sum->exact = exact;
    sum->average = average;
    begin_anew(sum);
    if (exact) TRY_GOTO(comm_device_create(comm, &sum->nccl, sum->why));
    if (sum->nccl == NULL) {
        TRY_GOTO(device_host_alloc((elems[0] + 1) * sizeof *sum->host, &sum->host));
    } else {
        TRY_GOTO(choose_piece(sum));
        TRY_GOTO(cut(sum));
        TRY_GOTO(device_stream_create(&sum->stream));
        TRY_GOTO(device_event_create(&sum->ready));
        TRY_GOTO(device_event_create(&sum->summed));
        TRY_GOTO(rehearse(sum, elems, count));
    }
    *out = sum;
    sum = NULL;
done:
    device_sum_destroy(sum);
    return status;
}

void device_sum_destroy(DeviceSum *sum) {
    if (sum == NULL) return;
    comm_device_destroy(sum->nccl);
    device_event_destroy(sum->summed);
    device_event_destroy(sum->ready);
    device_stream_destroy(sum->stream);
    device_host_free(sum->host);
    memory_free(sum->ends);
    memory_free(sum);
}

bool device_sum_on_gpu(const DeviceSum *sum) { return sum->nccl != NULL; }

/* On the second stream, behind what the model's stream holds now. */
static Status send(DeviceSum *sum, const CommPiece *pieces, int count) {
    TRY(device_event_record(sum->ready, nn_model_stream(sum->model)));
    TRY(device_stream_wait(sum->stream, sum->ready));
    return comm_device_allreduce(sum->nccl, pieces, count, sum->average, sum->stream);
}

static CommPiece piece(const DeviceSum *sum, size_t begin, size_t end) {
    return (CommPiece){.data = nn_model_gradient_data(sum->model) + begin, .elems = (int64_t)(end - begin)};
}

Status device_sum_told(DeviceSum *sum, size_t begin, size_t end) {
    if (begin == 0) begin_anew(sum);
    size_t to = sum->sent;
    while (sum->next < sum->end_count && sum->ends[sum->next] <= end) to = sum->ends[sum->next++];
    if (to <= sum->sent) return STATUS_OK;
    CommPiece one = piece(sum, sum->sent, to);
    TRY(send(sum, &one, 1));
    sum->sent = to;
    return STATUS_OK;
}

Status device_sum_run(DeviceSum *sum, size_t elems) {
    size_t late = elems < LATE_ELEMS ? elems : LATE_ELEMS;
    bool rest = sum->sent < elems;
    CommPiece pieces[2] = {piece(sum, 0, late)};
    if (sum->sent == LATE_ELEMS) { /* nothing was sent before: in one piece */
        pieces[0] = piece(sum, 0, elems);
        rest = false;
    }
    if (rest) pieces[1] = piece(sum, sum->sent, elems);
    begin_anew(sum);
    TRY(send(sum, pieces, rest ? 2 : 1));
    TRY(device_event_record(sum->summed, sum->stream));
    return device_stream_wait(nn_model_stream(sum->model), sum->summed);
}

Status device_sum_through_host(DeviceSum *sum, AllreducePlan *plan, float *gradients) {
    DeviceStream *stream = nn_model_stream(sum->model);
    size_t bytes = (size_t)allreduce_elems(plan) * sizeof *sum->host;
    TRY(device_copy(sum->host, gradients, bytes, stream));
    TRY(device_stream_synchronize(stream));
    TRY(allreduce_run(plan, sum->host));
    return device_copy(gradients, sum->host, bytes, stream);
}

Status device_sum_wait(DeviceSum *sum, DeviceStream *stream, DeviceEvent *event) {
    if (sum->nccl != NULL) return comm_device_wait(sum->nccl, stream, event);
    return event == NULL ? device_stream_synchronize(stream) : device_event_synchronize(event);
}

size_t device_sum_explain(const DeviceSum *sum, char *text, size_t bytes) {
    int length;
    if (sum->nccl != NULL) {
        length =
            snprintf(text, bytes, "on the GPUs by %s, uncompressed, in pieces of at least %zu KiB behind backward\n",
                     comm_device_name(sum->nccl), sum->piece_elems * sizeof(float) >> 10);
    } else {
        length = snprintf(text, bytes, "from the GPU through host memory (%s)\n",
                          sum->exact ? sum->why : "compressed gradients are summed by the processor");
    }
    return length < 0 ? 0 : (size_t)length;
}
