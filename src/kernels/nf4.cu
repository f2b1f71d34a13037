// NF4 with double quantization, decoded with the bits of nf4.rs: every product and sum is rounded once.

#include "cuda/kernel.cuh"

// A thread takes a byte, which holds two values; `levels` has 16 and `map` 256 entries.
template <class T>
static __device__ void decode(const unsigned char* codes, const unsigned char* magnitudes, const float* nested,
                              const float* levels, const float* map, T* out, u64 count, float offset) {
    __shared__ float level[16];
    if (threadIdx.x < 16) level[threadIdx.x] = levels[threadIdx.x];
    __syncthreads();
    u64 at = 2 * position();
    if (at >= count) return;
    u64 block = at / 64;
    float magnitude = __fadd_rn(__fmul_rn(map[magnitudes[block]], nested[block / 256]), offset);
    unsigned char code = codes[at / 2];
    store(out + at, __fmul_rn(level[code >> 4], magnitude));
    if (at + 1 < count) store(out + at + 1, __fmul_rn(level[code & 15], magnitude));
}

#define NF4(S, T)                                                                                                   \
    KERNEL nf4_decode_##S(const unsigned char* codes, const unsigned char* magnitudes, const float* nested,         \
                          const float* levels, const float* map, T* out, u64 count, float offset) {                 \
        decode(codes, magnitudes, nested, levels, map, out, count, offset);                                         \
    }                                                                                                               \
    ENTRY(nf4_decode_##S)

NF4(f32, float)
NF4(bf16, bf16)
