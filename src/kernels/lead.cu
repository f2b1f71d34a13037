// The same rows in front of every record; lead.rs says for what.

#include "cuda/kernel.cuh"

// places[row] says where a row of `out` comes from: below `leading` from `rows`, else from `x`.
template <class T>
static __device__ void forward(const T* rows, const T* x, const u32* places, T* out, u64 count, u32 width,
                               u32 leading) {
    u64 at = position();
    if (at >= count) return;
    u64 place = places[at / width], column = at % width;
    out[at] = place < leading ? rows[place * width + column] : x[(place - leading) * width + column];
}

// The gradient of the rows: the sum over the records, which begin at the rows `starts` of `grad`.
template <class T>
static __device__ void backward(const T* grad, const u32* starts, T* out, u32 records, u64 count, u32 width) {
    u64 at = position();
    if (at >= count) return;
    float sum = 0.0f;
    for (u32 record = 0; record < records; record++) sum += load(grad + (u64)starts[record] * width + at);
    store(out + at, sum);
}

#define LEAD(S, T)                                                                                               \
    KERNEL lead_forward_##S(const T* rows, const T* x, const u32* places, T* out, u64 count, u32 width,          \
                            u32 leading) {                                                                       \
        forward(rows, x, places, out, count, width, leading);                                                    \
    }                                                                                                            \
    ENTRY(lead_forward_##S)                                                                                      \
    KERNEL lead_backward_##S(const T* grad, const u32* starts, T* out, u32 records, u64 count, u32 width) {      \
        backward(grad, starts, out, records, count, width);                                                      \
    }                                                                                                            \
    ENTRY(lead_backward_##S)

LEAD(f32, float)
LEAD(bf16, bf16)
