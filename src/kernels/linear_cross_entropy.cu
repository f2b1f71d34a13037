// The loss of rows of logits and its gradient; linear_cross_entropy.rs has the formulas. A block takes a row.
// Logits are f32 whatever the storage; slopes are stored as the product that follows reads them, and where
// that is f32 they take the logits' place.

#include "cuda/kernel.cuh"

template <class T>
static __device__ void loss_rows(const float* logits, T* slopes, const u32* labels, const float* scales, float* losses,
                                 u32 vocabulary, float softcap, u32 wanted) {
    const float* row = logits + (u64)blockIdx.x * vocabulary;
    T* out = slopes + (u64)blockIdx.x * vocabulary;
    u32 label = labels[blockIdx.x];
    float inverse = softcap > 0.0f ? 1.0f / softcap : 0.0f;
    float largest = -INFINITY, sum = 0.0f;
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float x = softcap > 0.0f ? softcap * tanhf(row[i] * inverse) : row[i];
        if (x > largest) {
            sum *= expf(largest - x);
            largest = x;
        }
        sum += expf(x - largest);
    }
    float own = largest;
    largest = over_block(largest, Largest(), -INFINITY);
    // A thread without any value has a sum of zero, whose largest is minus infinity.
    sum = sum_over_block(sum == 0.0f ? 0.0f : sum * expf(own - largest));
    float target = softcap > 0.0f ? softcap * tanhf(row[label] * inverse) : row[label];
    if (threadIdx.x == 0) losses[blockIdx.x] = logf(sum) + (largest - target);
    if (!wanted) return;
    __syncthreads();  // the label's logit was read by all
    float scale = scales[blockIdx.x], factor = scale / sum;
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float x = softcap > 0.0f ? softcap * tanhf(row[i] * inverse) : row[i];
        float slope = expf(x - largest) * factor;
        if (i == label) slope -= scale;
        if (softcap > 0.0f) slope *= 1.0f - x * inverse * (x * inverse);
        store(out + i, slope);
    }
}

#define LOSS_ROWS(S, T)                                                                                            \
    KERNEL loss_rows_##S(const float* logits, T* slopes, const u32* labels, const float* scales, float* losses,    \
                         u32 vocabulary, float softcap, u32 wanted) {                                              \
        loss_rows(logits, slopes, labels, scales, losses, vocabulary, softcap, wanted);                            \
    }                                                                                                              \
    ENTRY(loss_rows_##S)

LOSS_ROWS(f32, float)
LOSS_ROWS(bf16, bf16)
