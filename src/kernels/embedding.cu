// The gradient of a table of embeddings: a block adds the rows of one id's tokens, in their order, so equal
// tokens give equal bits. The forward pass is `gather` of vector.cu.

#include "cuda/kernel.cuh"

// `tokens` holds the places of all tokens, those of one id together: id i's from starts[i] to starts[i + 1].
template <class T>
static __device__ void backward(const T* grad, const u32* ids, const u32* starts, const u32* tokens, T* out,
                                u32 width) {
    u32 first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    u64 row = (u64)ids[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (u32 token = first; token < end; token++) sum += load(grad + (u64)tokens[token] * width + i);
        store(out + row + i, sum);
    }
}

#define EMBEDDING(S, T)                                                                                           \
    KERNEL embedding_backward_##S(const T* grad, const u32* ids, const u32* starts, const u32* tokens, T* out,    \
                                  u32 width) {                                                                    \
        backward(grad, ids, starts, tokens, out, width);                                                          \
    }                                                                                                             \
    ENTRY(embedding_backward_##S)

EMBEDDING(f32, float)
EMBEDDING(bf16, bf16)
