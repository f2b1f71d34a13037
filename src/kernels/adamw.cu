// AdamW with the arithmetic of train/optim/adamw.rs, bit for bit: every operation is rounded once. Weights
// and moments are f32; a thread takes an element.

#include "cuda/kernel.cuh"

template <class T>
static __device__ void adamw(float* weight, const T* gradient, float* mean, float* square, u64 count, float scale,
                             float keep, float mean_rate, float square_decay, float square_rate, float root_bias,
                             float step, float epsilon) {
    u64 at = position();
    if (at >= count) return;
    float g = __fmul_rn(load(gradient + at), scale);
    float m = __fadd_rn(mean[at], __fmul_rn(__fsub_rn(g, mean[at]), mean_rate));
    float v = __fadd_rn(__fmul_rn(square[at], square_decay), __fmul_rn(__fmul_rn(g, g), square_rate));
    float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), root_bias), epsilon);
    mean[at] = m;
    square[at] = v;
    weight[at] = __fsub_rn(__fmul_rn(weight[at], keep), __fmul_rn(step, __fdiv_rn(m, denominator)));
}

#define ADAMW(S, T)                                                                                                 \
    KERNEL adamw_##S(float* weight, const T* gradient, float* mean, float* square, u64 count, float scale,          \
                     float keep, float mean_rate, float square_decay, float square_rate, float root_bias,           \
                     float step, float epsilon) {                                                                   \
        adamw(weight, gradient, mean, square, count, scale, keep, mean_rate, square_decay, square_rate, root_bias,  \
              step, epsilon);                                                                                       \
    }                                                                                                               \
    ENTRY(adamw_##S)

ADAMW(f32, float)
ADAMW(bf16, bf16)

// The sum of squares of `strip` values for each block, in f64; the host adds them in order.
template <class T> static __device__ void squares(const T* x, double* sums, u64 count, u32 strip) {
    __shared__ double parts[256];
    u64 first = (u64)blockIdx.x * strip, end = first + strip < count ? first + strip : count;
    double sum = 0.0;
    for (u64 at = first + threadIdx.x; at < end; at += blockDim.x) {
        double value = load(x + at);
        sum += value * value;
    }
    parts[threadIdx.x] = sum;
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = parts[0];
}

KERNEL sum_of_squares_f32(const float* x, double* sums, u64 count, u32 strip) { squares(x, sums, count, strip); }
ENTRY(sum_of_squares_f32)
KERNEL sum_of_squares_bf16(const bf16* x, double* sums, u64 count, u32 strip) { squares(x, sums, count, strip); }
ENTRY(sum_of_squares_bf16)
