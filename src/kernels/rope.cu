// Rotary position embedding; rope.rs has the layout. A thread turns one pair, or copies one element that
// stands past the angles. Angles are f32 whatever the storage.

#include "cuda/kernel.cuh"

template <class T>
static __device__ void turned(const T* x, const float* cos, const float* sin, T* out, u64 count, u32 heads, u32 size,
                              u32 half, float turn) {
    u64 at = position();
    if (at >= count) return;
    u32 i = at % (size - half);
    u64 head = at / (size - half), low = head * size + i;
    if (i >= half) {
        out[low + half] = x[low + half];
        return;
    }
    u64 angle = head / heads * half + i;
    float c = cos[angle], s = turn * sin[angle], a = load(x + low), b = load(x + low + half);
    store(out + low, a * c - b * s);
    store(out + low + half, b * c + a * s);
}

#define ROPE(S, T)                                                                                              \
    KERNEL rope_##S(const T* x, const float* cos, const float* sin, T* out, u64 count, u32 heads, u32 size,     \
                    u32 half, float turn) {                                                                     \
        turned(x, cos, sin, out, count, heads, size, half, turn);                                               \
    }                                                                                                           \
    ENTRY(rope_##S)

ROPE(f32, float)
ROPE(bf16, bf16)
