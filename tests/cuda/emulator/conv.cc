/* Stands in for nn/cuda/conv/cudnn.c: convolutions as plain loops, operands in their storage type, sums in float32.
 * Where CGXFFCV_CACHE names a folder it times its one way to compute and remembers that as cudnn.c does its plans. */
#include "machine.h"

#include <memory>
#include <mutex>
#include <string>
#include <vector>

extern "C" {
#include "base/clock.h"
#include "nn/cuda/conv/conv.h"
#include "nn/cuda/conv/plans.h"
#include "nn/libraries.h"
}

struct CudaConvs {
    cudaStream_t stream;
};

struct CudaConv {
    cudaStream_t stream;
    CudaConvShape shape;
    NnAlgorithmSource source;
    double milliseconds;
    std::string text;
};

namespace {

const size_t ALIGNMENT = 16, WORKSPACE_BYTES = 4096;
#define NAME "engine 0 of the emulator"

size_t size_of(Precision precision) { return precision == PRECISION_FLOAT32 ? 4 : 2; }

std::vector<float> unpack(Precision precision, const void *from, size_t count) {
    std::vector<float> values(count);
    for (size_t i = 0; i < count; i++) {
        values[i] = precision == PRECISION_FLOAT32    ? ((const float *)from)[i]
                    : precision == PRECISION_BFLOAT16 ? __bfloat162float(((const __nv_bfloat16 *)from)[i])
                                                      : __half2float(((const __half *)from)[i]);
    }
    return values;
}

void pack(Precision precision, const std::vector<float> &values, void *to) {
    for (size_t i = 0; i < values.size(); i++) {
        if (precision == PRECISION_FLOAT32)
            ((float *)to)[i] = values[i];
        else if (precision == PRECISION_BFLOAT16)
            ((__nv_bfloat16 *)to)[i] = __float2bfloat16_rn(values[i]);
        else
            ((__half *)to)[i] = __float2half_rn(values[i]);
    }
}

struct Sizes {
    size_t input, filters, output;
};

Sizes sizes_of(const CudaConvShape &s) {
    return {(size_t)s.images * (size_t)(s.in_height * s.in_width * s.in_channels),
            (size_t)s.out_channels * (size_t)(s.kernel * s.kernel * s.in_channels),
            (size_t)s.images * (size_t)(s.out_height * s.out_width * s.out_channels)};
}

/* Calls each(input pixel, tap, output pixel) for all that meet; a pixel or tap is the number of its first channel. */
template <typename Each> void meet(const CudaConvShape &s, Each each) {
    for (int image = 0; image < s.images; image++) {
        for (int row = 0; row < s.out_height; row++) {
            for (int column = 0; column < s.out_width; column++) {
                size_t out = (size_t)((image * s.out_height + row) * s.out_width + column) * (size_t)s.out_channels;
                for (int tap = 0; tap < s.kernel * s.kernel; tap++) {
                    int y = row * s.stride - s.padding + tap / s.kernel;
                    int x = column * s.stride - s.padding + tap % s.kernel;
                    if (y < 0 || y >= s.in_height || x < 0 || x >= s.in_width) continue;
                    size_t in = (size_t)((image * s.in_height + y) * s.in_width + x) * (size_t)s.in_channels;
                    each(in, (size_t)tap * (size_t)s.in_channels, out);
                }
            }
        }
    }
}

std::vector<float> forward(const CudaConvShape &s, const std::vector<float> &input, const std::vector<float> &filters) {
    std::vector<float> output(sizes_of(s).output);
    size_t in_channels = (size_t)s.in_channels, row = (size_t)(s.kernel * s.kernel) * in_channels;
    meet(s, [&](size_t in, size_t tap, size_t out) {
        for (size_t o = 0; o < (size_t)s.out_channels; o++) {
            float sum = 0.0f;
            for (size_t i = 0; i < in_channels; i++) sum += input[in + i] * filters[o * row + tap + i];
            output[out + o] += sum;
        }
    });
    return output;
}

std::vector<float> data(const CudaConvShape &s, const std::vector<float> &output, const std::vector<float> &filters) {
    std::vector<float> input(sizes_of(s).input);
    size_t in_channels = (size_t)s.in_channels, row = (size_t)(s.kernel * s.kernel) * in_channels;
    meet(s, [&](size_t in, size_t tap, size_t out) {
        for (size_t o = 0; o < (size_t)s.out_channels; o++) {
            float factor = output[out + o];
            for (size_t i = 0; i < in_channels; i++) input[in + i] += factor * filters[o * row + tap + i];
        }
    });
    return input;
}

std::vector<float> filter(const CudaConvShape &s, const std::vector<float> &input, const std::vector<float> &output) {
    std::vector<float> filters(sizes_of(s).filters);
    size_t in_channels = (size_t)s.in_channels, row = (size_t)(s.kernel * s.kernel) * in_channels;
    meet(s, [&](size_t in, size_t tap, size_t out) {
        for (size_t o = 0; o < (size_t)s.out_channels; o++) {
            float factor = output[out + o];
            for (size_t i = 0; i < in_channels; i++) filters[o * row + tap + i] += factor * input[in + i];
        }
    });
    return filters;
}

void run_now(const CudaConvShape &s, const void *a, const void *b, void *to) {
    Sizes sizes = sizes_of(s);
    bool forward_pass = s.pass == CUDA_CONV_FORWARD, data_pass = s.pass == CUDA_CONV_DATA;
    std::vector<float> first = unpack(s.precision, a, data_pass ? sizes.output : sizes.input);
    std::vector<float> second = unpack(s.precision, b, s.pass == CUDA_CONV_FILTER ? sizes.output : sizes.filters);
    pack(s.precision,
         forward_pass ? forward(s, first, second)
         : data_pass  ? data(s, first, second)
                      : filter(s, first, second),
         to);
}

} // namespace

/* The file of plans, opened with the first convolution; NULL: nothing is remembered. */
static ConvPlans *plans() {
    static ConvPlans *opened = NULL;
    static std::once_flag once;
    std::call_once(once, [] {
        const char *folder = getenv("CGXFFCV_CACHE");
        if (folder != NULL && nn_cuda_plans_open("emulated device", "plain loops", &opened) != STATUS_OK) opened = NULL;
    });
    return opened;
}

static double time_once(const CudaConvShape &s) {
    Sizes sizes = sizes_of(s);
    size_t first = s.pass == CUDA_CONV_DATA ? sizes.output : sizes.input;
    size_t second = s.pass == CUDA_CONV_FILTER ? sizes.output : sizes.filters;
    size_t result = s.pass == CUDA_CONV_FORWARD ? sizes.output : s.pass == CUDA_CONV_DATA ? sizes.input : sizes.filters;
    std::vector<char> a(first * 4), b(second * 4), to(result * 4);
    double begin = clock_now_seconds();
    run_now(s, a.data(), b.data(), to.data());
    return clock_now_seconds() - begin;
}

/* From the file, or timed now. */
static Status choose(CudaConv *conv) {
    const CudaConvShape &s = conv->shape;
    char key[CONV_PLANS_KEY_BYTES], value[CONV_PLANS_VALUE_BYTES];
    int end = 0;
    bool own = false;
    double nanoseconds = 0;
    conv->source = ALGORITHM_FIXED;
    conv->text = NAME;
    if (plans() == NULL) return STATUS_OK;
    snprintf(key, sizeof key, "%d %d n%d in %dx%dx%d out %dx%dx%d kernel %d stride %d padding %d%s", s.pass,
             s.precision, s.images, s.in_height, s.in_width, s.in_channels, s.out_height, s.out_width, s.out_channels,
             s.kernel, s.stride, s.padding, s.deterministic ? " deterministic" : "");
    if (nn_cuda_plans_find(plans(), key, value, &own) && sscanf(value, NAME " ns %lf%n", &nanoseconds, &end) == 1 &&
        value[end] == '\0') {
        conv->source = own ? ALGORITHM_TIMED : ALGORITHM_CACHED;
        conv->text = NAME ", remembered";
    } else {
        nanoseconds = time_once(s) * 1e9;
        snprintf(value, sizeof value, NAME " ns %.0f", nanoseconds);
        TRY(nn_cuda_plans_store(plans(), key, value));
        conv->source = ALGORITHM_TIMED;
        conv->text = NAME ", fastest of 1";
    }
    conv->milliseconds = nanoseconds / 1e6;
    return STATUS_OK;
}

extern "C" Status nn_cuda_convs_create(DeviceStream *stream, CudaConvs **out) {
    *out = new CudaConvs{(cudaStream_t)stream};
    return STATUS_OK;
}

extern "C" void nn_cuda_convs_destroy(CudaConvs *convs) { delete convs; }

extern "C" Status nn_cuda_conv_create(CudaConvs *convs, const CudaConvShape *shape, CudaConv **out) {
    const CudaConvShape &s = *shape;
    int height = (s.in_height + 2 * s.padding - s.kernel) / s.stride + 1;
    int width = (s.in_width + 2 * s.padding - s.kernel) / s.stride + 1;
    if (s.images < 1 || height != s.out_height || width != s.out_width || s.in_channels % 8 != 0 ||
        s.out_channels % 8 != 0) {
        FAIL(STATUS_ARGUMENT, "convolution of %d images, %d x %d x %d to %d x %d x %d by %d filters of %d x %d",
             s.images, s.in_height, s.in_width, s.in_channels, s.out_height, s.out_width, s.out_channels,
             s.out_channels, s.kernel, s.kernel);
    }
    auto conv = std::make_unique<CudaConv>();
    conv->stream = convs->stream;
    conv->shape = s;
    TRY(choose(conv.get()));
    *out = conv.release();
    return STATUS_OK;
}

extern "C" void nn_cuda_conv_destroy(CudaConv *conv) { delete conv; }
extern "C" size_t nn_cuda_conv_workspace_bytes(const CudaConv *) { return WORKSPACE_BYTES; }

extern "C" void nn_cuda_conv_describe(const CudaConv *conv, NnAlgorithm *out) {
    *out = NnAlgorithm{NAME, conv->text.c_str(), conv->source, conv->milliseconds, WORKSPACE_BYTES};
}

extern "C" void nn_cuda_convs_describe(const CudaConvs *, NnPlanLibrary *out) {
    ConvPlansReport report = {};
    if (plans() != NULL) nn_cuda_plans_report(plans(), &report);
    snprintf(out->name, sizeof out->name, "the emulator's plain loops");
    snprintf(out->cache, sizeof out->cache, "%s", report.path);
    snprintf(out->note, sizeof out->note, "%s", report.note);
}

extern "C" Status nn_cuda_conv_run(CudaConv *conv, const void *a, const void *b, void *to, void *workspace) {
    CudaConvShape s = conv->shape;
    Sizes sizes = sizes_of(s);
    size_t size = size_of(s.precision);
    for (const void *address : {a, b, (const void *)to, (const void *)workspace}) {
        if ((uintptr_t)address % ALIGNMENT != 0) FAIL(STATUS_ARGUMENT, "convolution: address %p", address);
    }
    size_t first = s.pass == CUDA_CONV_DATA ? sizes.output : sizes.input;
    size_t second = s.pass == CUDA_CONV_FILTER ? sizes.output : sizes.filters;
    size_t result = s.pass == CUDA_CONV_FORWARD ? sizes.output : s.pass == CUDA_CONV_DATA ? sizes.input : sizes.filters;
    /* The workspace is left with what no reader may trust. */
    auto work = [=]() {
        memset(workspace, 0xff, WORKSPACE_BYTES);
        run_now(s, a, b, to);
        return cudaSuccess;
    };
    cudaError_t error = machine_submit("convolution", conv->stream, work,
                                       {{a, first * size, false},
                                        {b, second * size, false},
                                        {to, result * size, true},
                                        {workspace, WORKSPACE_BYTES, true}});
    if (error == cudaSuccess) return STATUS_OK;
    return error_fail(STATUS_CUDA, "convolution: %s", cudaGetErrorString(error));
}

int nn_cudnn_version(void) { return 99999; }
