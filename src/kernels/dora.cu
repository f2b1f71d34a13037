// The row lengths that DoRA divides by; dora.rs has the formula. In f64, in the order of the CPU.

#include "cuda/kernel.cuh"

// A thread takes a row. `products` [rank, outputs] is A·Wᵀ, `gram` [rank, rank] A·Aᵀ, `b` [outputs, rank].
KERNEL dora_row_norms_f32(const float* products, const float* gram, const float* b, const double* squares, float* out,
                          u32 outputs, u32 rank, double scale) {
    u64 row = position();
    if (row >= outputs) return;
    double cross = 0.0, square = 0.0;
    for (u32 i = 0; i < rank; i++) {
        double left = b[row * rank + i];
        cross = __dadd_rn(cross, __dmul_rn(left, products[(u64)i * outputs + row]));
        for (u32 j = 0; j < rank; j++) {
            double term = __dmul_rn(__dmul_rn(left, b[row * rank + j]), gram[i * rank + j]);
            square = __dadd_rn(square, term);
        }
    }
    double twice = __dmul_rn(2.0 * scale, cross), whole = __dmul_rn(scale * scale, square);
    double length = __dadd_rn(__dadd_rn(squares[row], twice), whole);
    out[row] = (float)sqrt(length > 0.0 ? length : 0.0);
}
ENTRY(dora_row_norms_f32)

// The squared length of every row of a matrix; a block takes a row.
template <class T> static __device__ void row_squares(const T* x, double* out, u32 width) {
    __shared__ double sums[256];
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        double value = load(x + (u64)blockIdx.x * width + i);
        sum += value * value;
    }
    sums[threadIdx.x] = sum;
    for (u32 count = blockDim.x / 2; count > 0; count /= 2) {
        __syncthreads();
        if (threadIdx.x < count) sums[threadIdx.x] += sums[threadIdx.x + count];
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}

KERNEL dora_row_squares_f32(const float* x, double* out, u32 width) { row_squares(x, out, width); }
ENTRY(dora_row_squares_f32)
KERNEL dora_row_squares_bf16(const bf16* x, double* out, u32 width) { row_squares(x, out, width); }
ENTRY(dora_row_squares_bf16)
