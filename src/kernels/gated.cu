// The gated activation; gated.rs has the formulas. A thread takes an element.

#include "cuda/kernel.cuh"

// σ(z(x)) and dz/dx; `gelu` chooses between the two activations.
static __device__ __forceinline__ void opened(float x, u32 gelu, float* open, float* steepness) {
    float z = x;
    *steepness = 1.0f;
    if (gelu) {
        const float cube = 0.044715f, root = 0.7978846f;
        x = fminf(fmaxf(x, -30.0f), 30.0f);
        z = 2.0f * root * x * (1.0f + cube * x * x);
        *steepness = 2.0f * root * (1.0f + 3.0f * cube * x * x);
    }
    *open = 1.0f / (1.0f + expf(-z));
}

template <class T> static __device__ void forward(const T* gate, const T* up, T* out, u64 count, u32 gelu) {
    u64 at = position();
    if (at >= count) return;
    float open, steepness, x = load(gate + at);
    opened(x, gelu, &open, &steepness);
    store(out + at, x * open * load(up + at));
}

// Either gradient may be left out: its place is null.
template <class T>
static __device__ void backward(const T* gate, const T* up, const T* grad, T* grad_gate, T* grad_up, u64 count,
                                u32 gelu) {
    u64 at = position();
    if (at >= count) return;
    float open, steepness, x = load(gate + at), slope = load(grad + at);
    opened(x, gelu, &open, &steepness);
    if (grad_gate) store(grad_gate + at, slope * load(up + at) * open * (1.0f + x * (1.0f - open) * steepness));
    if (grad_up) store(grad_up + at, slope * x * open);
}

#define GATED(S, T)                                                                                              \
    KERNEL gated_forward_##S(const T* gate, const T* up, T* out, u64 count, u32 gelu) {                          \
        forward(gate, up, out, count, gelu);                                                                     \
    }                                                                                                            \
    ENTRY(gated_forward_##S)                                                                                     \
    KERNEL gated_backward_##S(const T* gate, const T* up, const T* grad, T* grad_gate, T* grad_up, u64 count,    \
                              u32 gelu) {                                                                        \
        backward(gate, up, grad, grad_gate, grad_up, count, gelu);                                               \
    }                                                                                                            \
    ENTRY(gated_backward_##S)

GATED(f32, float)
GATED(bf16, bf16)
