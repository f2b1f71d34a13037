// Root-mean-square normalization; rms_norm.rs has the formulas. A block takes a row.

#include "cuda/kernel.cuh"

// 1 / sqrt(mean(x²) + eps) of a row, for every thread of the block.
template <class T> static __device__ float inverse_of(const T* x, u32 width, float eps) {
    float square = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) square += load(x + i) * load(x + i);
    return 1.0f / sqrtf(sum_over_block(square) / width + eps);
}

template <class T>
static __device__ void forward(const T* x, const T* weight, T* out, u32 width, float eps, float offset) {
    u64 row = (u64)blockIdx.x * width;
    float inverse = inverse_of(x + row, width, eps);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        store(out + row + i, load(x + row + i) * inverse * (offset + load(weight + i)));
    }
}

// The gradient of x, and the inverse root mean square of every row for the gradient of the weight.
template <class T>
static __device__ void backward(const T* x, const T* weight, const T* grad, T* out, float* inverses, u32 width,
                                float eps, float offset) {
    u64 row = (u64)blockIdx.x * width;
    float inverse = inverse_of(x + row, width, eps), along = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        along += load(grad + row + i) * (offset + load(weight + i)) * load(x + row + i);
    }
    along = sum_over_block(along) * inverse * inverse / width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float slope = load(grad + row + i) * (offset + load(weight + i));
        store(out + row + i, (slope - load(x + row + i) * along) * inverse);
    }
    if (threadIdx.x == 0) inverses[blockIdx.x] = inverse;
}

// A thread adds one column of a strip of rows; the strips' sums [strips, width] are added by `sum_rows`.
template <class T>
static __device__ void weight_sums(const T* x, const T* grad, const float* inverses, float* sums, u64 rows, u32 width,
                                   u32 strip) {
    u64 column = position();
    if (column >= width) return;
    float sum = 0.0f;
    u64 first = (u64)blockIdx.y * strip, end = first + strip < rows ? first + strip : rows;
    for (u64 row = first; row < end; row++) {
        sum += load(grad + row * width + column) * load(x + row * width + column) * inverses[row];
    }
    sums[(u64)blockIdx.y * width + column] = sum;
}

#define RMS_NORM(S, T)                                                                                              \
    KERNEL rms_norm_forward_##S(const T* x, const T* weight, T* out, u32 width, float eps, float offset) {          \
        forward(x, weight, out, width, eps, offset);                                                                \
    }                                                                                                               \
    ENTRY(rms_norm_forward_##S)                                                                                     \
    KERNEL rms_norm_backward_##S(const T* x, const T* weight, const T* grad, T* out, float* inverses, u32 width,    \
                                 float eps, float offset) {                                                         \
        backward(x, weight, grad, out, inverses, width, eps, offset);                                               \
    }                                                                                                               \
    ENTRY(rms_norm_backward_##S)                                                                                    \
    KERNEL rms_norm_weight_sums_##S(const T* x, const T* grad, const float* inverses, float* sums, u64 rows,        \
                                    u32 width, u32 strip) {                                                         \
        weight_sums(x, grad, inverses, sums, rows, width, strip);                                                   \
    }                                                                                                               \
    ENTRY(rms_norm_weight_sums_##S)

RMS_NORM(f32, float)
RMS_NORM(bf16, bf16)
