// Dropout with the mask of dropout.rs, bit for bit.

#include "cuda/kernel.cuh"

// The finalizer of SplitMix64, as in rng.rs.
static __device__ __forceinline__ u64 mix(u64 z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

template <class T>
static __device__ void masked(const T* x, T* out, u64 count, u64 stream, u64 threshold, float kept) {
    u64 at = position();
    if (at >= count) return;
    u64 draw = mix(stream ^ (at * 0x9e3779b97f4a7c15ull)) >> 32;
    store(out + at, draw < threshold ? 0.0f : load(x + at) * kept);
}

#define DROPOUT(S, T)                                                                                  \
    KERNEL dropout_##S(const T* x, T* out, u64 count, u64 stream, u64 threshold, float kept) {         \
        masked(x, out, count, stream, threshold, kept);                                                \
    }                                                                                                  \
    ENTRY(dropout_##S)

DROPOUT(f32, float)
DROPOUT(bf16, bf16)
