// Rows moved, repeated, added and converted: what lies between the products of other operations.

#include "cuda/kernel.cuh"

// out[row] = table[ids[row]].
template <class T>
static __device__ void gather(const T* table, const u32* ids, T* out, u64 count, u32 width) {
    u64 at = position();
    if (at < count) out[at] = table[(u64)ids[at / width] * width + at % width];
}

// out[ids[row]] = rows[row]; every id once.
template <class T>
static __device__ void scatter(const T* rows, const u32* ids, T* out, u64 count, u32 width) {
    u64 at = position();
    if (at < count) out[(u64)ids[at / width] * width + at % width] = rows[at];
}

// Every row of `out` becomes `row`.
template <class A, class T> static __device__ void repeat(const A* row, T* out, u64 count, u32 width) {
    u64 at = position();
    if (at < count) store(out + at, load(row + at % width));
}

// The sum of the rows of a matrix, column by column, in the order of the rows.
template <class A, class T> static __device__ void sum_rows(const A* x, T* out, u64 rows, u32 width) {
    u64 column = position();
    if (column >= width) return;
    float sum = 0.0f;
    for (u64 row = 0; row < rows; row++) sum += load(x + row * width + column);
    store(out + column, sum);
}

// As `sum_rows`, over the `strip` rows that belong to this block.
template <class T>
static __device__ void sum_strips(const T* x, float* sums, u64 rows, u32 width, u32 strip) {
    u64 column = position();
    if (column >= width) return;
    float sum = 0.0f;
    u64 first = (u64)blockIdx.y * strip, end = first + strip < rows ? first + strip : rows;
    for (u64 row = first; row < end; row++) sum += load(x + row * width + column);
    sums[(u64)blockIdx.y * width + column] = sum;
}

template <class A, class T> static __device__ void convert(const A* x, T* out, u64 count) {
    u64 at = position();
    if (at < count) store(out + at, load(x + at));
}

#define VECTOR(S, T)                                                                                          \
    KERNEL gather_##S(const T* table, const u32* ids, T* out, u64 count, u32 width) {                         \
        gather(table, ids, out, count, width);                                                                \
    }                                                                                                         \
    ENTRY(gather_##S)                                                                                         \
    KERNEL scatter_##S(const T* rows, const u32* ids, T* out, u64 count, u32 width) {                         \
        scatter(rows, ids, out, count, width);                                                                \
    }                                                                                                         \
    ENTRY(scatter_##S)                                                                                        \
    KERNEL repeat_##S(const T* row, T* out, u64 count, u32 width) { repeat(row, out, count, width); }         \
    ENTRY(repeat_##S)                                                                                         \
    KERNEL sum_rows_##S(const float* x, T* out, u64 rows, u32 width) { sum_rows(x, out, rows, width); }       \
    ENTRY(sum_rows_##S)                                                                                       \
    KERNEL sum_strips_##S(const T* x, float* sums, u64 rows, u32 width, u32 strip) {                          \
        sum_strips(x, sums, rows, width, strip);                                                              \
    }                                                                                                         \
    ENTRY(sum_strips_##S)

VECTOR(f32, float)
VECTOR(bf16, bf16)

// Named after what they read.
KERNEL convert_f32(const float* x, bf16* out, u64 count) { convert(x, out, count); }
ENTRY(convert_f32)
KERNEL convert_bf16(const bf16* x, float* out, u64 count) { convert(x, out, count); }
ENTRY(convert_bf16)
