// Attention over packed records, forward and backward (FlashAttention's scheme, arXiv 2205.14135): scores live
// in registers and one tile of shared memory, and the backward pass makes them again from the log-sum-exp of
// each row. Two passes backward, one by queries and one by keys, so no sum depends on the order of blocks.
//
// A block of four warps takes a tile of rows of one head: queries in `forward` and `query_gradient`, keys in
// `key_gradients`. Each warp owns R of these rows and meets the other side 32 at a time, one to a lane. A row's
// d values are spread over the lanes, C to each. Heads are padded with zeros to a multiple of four values.

#include "cuda/kernel.cuh"

#define WARPS 4
#define LANES 32

// One tile, as attention.rs of the folder `cuda` writes it. Rows of the tile and of the other side are counted
// in their record. `ahead` is by how many keys the record's queries are preceded.
struct Tile {
    u32 row, rows, first, other, others, ahead, timeless;
};

struct Shape {
    u32 heads, key_heads, size;
};

static __device__ __forceinline__ Tile tile_of(const u32* tiles) {
    const u32* at = tiles + 7 * (u64)blockIdx.x;
    return {at[0], at[1], at[2], at[3], at[4], at[5], at[6]};
}

// Whether a query sees a key, both counted in their record; a window of 0 is none.
static __device__ __forceinline__ bool sees(u32 query, u32 key, const Tile& tile, u32 window) {
    if (tile.timeless) return true;
    u32 end = query + 1 + tile.ahead;
    return key < end && (window == 0 || key + window >= end);
}

// Brings `count` rows of one head into shared memory; what lies beyond them, or past the head, is zero.
template <class T>
static __device__ void bring(float* into, u32 stride, const T* from, u64 row, u32 count, u32 heads, u32 head, u32 size,
                             u32 rows) {
    u32 padded = (size + 3) / 4 * 4;
    for (u32 at = threadIdx.x; at < rows * padded; at += blockDim.x) {
        u32 r = at / padded, i = at % padded;
        into[r * stride + i] = r < count && i < size ? load(from + ((row + r) * heads + head) * size + i) : 0.0f;
    }
}

// The products of R rows, which all lanes share, with the lane's own row.
template <u32 R>
static __device__ __forceinline__ void products(float* out, const float* rows, const float* own, u32 padded) {
    for (u32 r = 0; r < R; r++) out[r] = 0.0f;
    for (u32 i = 0; i < padded; i += 4) {
        float a = own[i], b = own[i + 1], c = own[i + 2], d = own[i + 3];
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            const float* row = rows + r * padded + i;
            out[r] += row[0] * a + row[1] * b + row[2] * c + row[3] * d;
        }
    }
}

// sums[r] += Σ over the 32 rows j of weights[r][j] · rows[j], the lane's columns.
template <u32 R, u32 C>
static __device__ __forceinline__ void weighted(float (*sums)[C], const float* weights, const float* rows, u32 stride,
                                                u32 size) {
    u32 lane = threadIdx.x % LANES;
    for (u32 j = 0; j < LANES; j++) {
#pragma unroll
        for (u32 c = 0; c < C; c++) {
            u32 column = lane + LANES * c;
            float value = column < size ? rows[j * stride + column] : 0.0f;
#pragma unroll
            for (u32 r = 0; r < R; r++) sums[r][c] += weights[r * LANES + j] * value;
        }
    }
}

// Brings the next 32 rows of two tensors, once every warp has done with the last.
template <class T>
static __device__ void next_rows(float* a, const T* from_a, float* b, const T* from_b, u32 stride, u64 row, u32 count,
                                 u32 heads, u32 head, u32 size) {
    __syncthreads();
    bring(a, stride, from_a, row, count, heads, head, size, LANES);
    bring(b, stride, from_b, row, count, heads, head, size, LANES);
    __syncthreads();
}

// Writes the warp's rows of one head, each lane its columns.
template <class T, u32 R, u32 C>
static __device__ __forceinline__ void write_rows(T* out, const float (*sums)[C], float scale, const Tile& tile,
                                                  u32 heads, u32 head, u32 size) {
    u32 lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        u32 row = warp * R + r;
        if (row >= tile.rows) continue;
        u64 place = ((u64)tile.row + row) * heads + head;
#pragma unroll
        for (u32 c = 0; c < C; c++) {
            u32 column = lane + LANES * c;
            if (column < size) store(out + place * size + column, scale * sums[r][c]);
        }
    }
}

static __device__ __forceinline__ float capped(float score, float softcap) {
    return softcap > 0.0f ? softcap * tanhf(score / softcap) : score;
}

// d capped / d score, from the capped score.
static __device__ __forceinline__ float slope_of_cap(float capped, float softcap) {
    return softcap > 0.0f ? 1.0f - capped / softcap * (capped / softcap) : 1.0f;
}

// The keys that any query of a tile of queries sees.
static __device__ __forceinline__ void keys_of(const Tile& tile, u32 window, u32* start, u32* end) {
    u32 first = tile.first + 1 + tile.ahead;
    *end = tile.timeless ? tile.others : first + tile.rows - 1;
    *start = tile.timeless || window == 0 || first < window ? 0 : first - window;
}

template <class T, u32 R, u32 C>
static __device__ void forward(const T* q, const T* k, const T* v, const u32* tiles, T* out, float* log_sums,
                               Shape shape, float scale, u32 window, float softcap) {
    DYNAMIC_SHARED(float, shared);
    Tile tile = tile_of(tiles);
    u32 size = shape.size, padded = (size + 3) / 4 * 4, stride = padded + 1;
    u32 head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
    u32 lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    float *queries = shared, *keys = queries + WARPS * R * padded, *values = keys + LANES * stride;
    float* weights = values + LANES * stride + warp * R * LANES;
    bring(queries, padded, q, tile.row, tile.rows, shape.heads, head, size, WARPS * R);

    float sums[R][C], largest[R], total[R], scores[R];
    for (u32 r = 0; r < R; r++) {
        largest[r] = -INFINITY;
        total[r] = 0.0f;
        for (u32 c = 0; c < C; c++) sums[r][c] = 0.0f;
    }
    u32 start, end;
    keys_of(tile, window, &start, &end);
    for (u32 first = start; first < end; first += LANES) {
        u32 count = end - first < LANES ? end - first : LANES;
        next_rows(keys, k, values, v, stride, tile.other + first, count, shape.key_heads, key_head, size);
        products<R>(scores, queries + warp * R * padded, keys + lane * stride, padded);
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            u32 row = warp * R + r;
            bool seen = row < tile.rows && lane < count && sees(tile.first + row, first + lane, tile, window);
            float score = seen ? capped(scores[r] * scale, softcap) : -INFINITY;
            float now = over_warp(fmaxf(score, largest[r]), Largest());
            float kept = largest[r] == -INFINITY ? 0.0f : expf(largest[r] - now);
            float weight = seen ? expf(score - now) : 0.0f;
            total[r] = total[r] * kept + over_warp(weight, Sum());
            largest[r] = now;
            for (u32 c = 0; c < C; c++) sums[r][c] *= kept;
            weights[r * LANES + lane] = weight;
        }
        __syncwarp();
        weighted<R, C>(sums, weights, values, stride, size);
    }
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        u32 row = warp * R + r;
        for (u32 c = 0; c < C; c++) sums[r][c] /= total[r];
        if (row >= tile.rows || lane != 0) continue;
        log_sums[((u64)tile.row + row) * shape.heads + head] = largest[r] + logf(total[r]);
    }
    write_rows<T, R, C>(out, sums, 1.0f, tile, shape.heads, head, size);
}

// Σ over keys of p·dp of every row of scores, which equals the inner product of the output and its gradient.
// A warp takes a row of one head.
template <class T>
static __device__ void means(const T* out, const T* grad, float* means, u64 rows, u32 size) {
    u64 row = position() / LANES;
    if (row >= rows) return;
    u32 lane = threadIdx.x % LANES;
    float sum = 0.0f;
    for (u32 i = lane; i < size; i += LANES) sum += load(out + row * size + i) * load(grad + row * size + i);
    sum = over_warp(sum, Sum());
    if (lane == 0) means[row] = sum;
}

template <class T, u32 R, u32 C>
static __device__ void query_gradient(const T* q, const T* k, const T* v, const T* grad, const float* log_sums,
                                      const float* means, const u32* tiles, T* grad_q, Shape shape, float scale,
                                      u32 window, float softcap) {
    DYNAMIC_SHARED(float, shared);
    Tile tile = tile_of(tiles);
    u32 size = shape.size, padded = (size + 3) / 4 * 4, stride = padded + 1;
    u32 head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
    u32 lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    float *queries = shared, *grads = queries + WARPS * R * padded, *keys = grads + WARPS * R * padded;
    float *values = keys + LANES * stride, *weights = values + LANES * stride + warp * R * LANES;
    bring(queries, padded, q, tile.row, tile.rows, shape.heads, head, size, WARPS * R);
    bring(grads, padded, grad, tile.row, tile.rows, shape.heads, head, size, WARPS * R);

    float sums[R][C], scores[R], slopes[R], log_sum[R], mean[R];
    for (u32 r = 0; r < R; r++) {
        u32 row = warp * R + r;
        u64 place = ((u64)tile.row + row) * shape.heads + head;
        log_sum[r] = row < tile.rows ? log_sums[place] : 0.0f;
        mean[r] = row < tile.rows ? means[place] : 0.0f;
        for (u32 c = 0; c < C; c++) sums[r][c] = 0.0f;
    }
    u32 start, end;
    keys_of(tile, window, &start, &end);
    for (u32 first = start; first < end; first += LANES) {
        u32 count = end - first < LANES ? end - first : LANES;
        next_rows(keys, k, values, v, stride, tile.other + first, count, shape.key_heads, key_head, size);
        products<R>(scores, queries + warp * R * padded, keys + lane * stride, padded);
        products<R>(slopes, grads + warp * R * padded, values + lane * stride, padded);
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            u32 row = warp * R + r;
            bool seen = row < tile.rows && lane < count && sees(tile.first + row, first + lane, tile, window);
            float score = capped(scores[r] * scale, softcap);
            float weight = seen ? expf(score - log_sum[r]) : 0.0f;
            weights[r * LANES + lane] = seen ? weight * (slopes[r] - mean[r]) * slope_of_cap(score, softcap) : 0.0f;
        }
        __syncwarp();
        weighted<R, C>(sums, weights, keys, stride, size);
    }
    write_rows<T, R, C>(grad_q, sums, scale, tile, shape.heads, head, size);
}

// The gradients of keys and values; the heads of a group add up in their order.
template <class T, u32 R, u32 C>
static __device__ void key_gradients(const T* q, const T* k, const T* v, const T* grad, const float* log_sums,
                                     const float* means, const u32* tiles, T* grad_k, T* grad_v, Shape shape,
                                     float scale, u32 window, float softcap) {
    DYNAMIC_SHARED(float, shared);
    Tile tile = tile_of(tiles);
    u32 size = shape.size, padded = (size + 3) / 4 * 4, stride = padded + 1;
    u32 key_head = blockIdx.y, group = shape.heads / shape.key_heads;
    u32 lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    float *keys = shared, *values = keys + WARPS * R * padded, *queries = values + WARPS * R * padded;
    float *grads = queries + LANES * stride, *weights = grads + LANES * stride + warp * 2 * R * LANES;
    float* slopes_of = weights + R * LANES;
    bring(keys, padded, k, tile.row, tile.rows, shape.key_heads, key_head, size, WARPS * R);
    bring(values, padded, v, tile.row, tile.rows, shape.key_heads, key_head, size, WARPS * R);

    float sums_k[R][C], sums_v[R][C], scores[R], slopes[R];
    for (u32 r = 0; r < R; r++)
        for (u32 c = 0; c < C; c++) sums_k[r][c] = sums_v[r][c] = 0.0f;
    // The queries that see any key of the tile.
    u32 start = tile.timeless || tile.first < tile.ahead ? 0 : tile.first - tile.ahead, end = tile.others;
    if (!tile.timeless && window > 0) {
        u32 past = tile.first + tile.rows - 1 + window;
        past = past > tile.ahead ? past - tile.ahead : 0;
        end = past < end ? past : end;
    }
    for (u32 head = key_head * group; head < (key_head + 1) * group; head++) {
        for (u32 first = start; first < end; first += LANES) {
            u32 count = end - first < LANES ? end - first : LANES;
            next_rows(queries, q, grads, grad, stride, tile.other + first, count, shape.heads, head, size);
            u64 place = ((u64)tile.other + first + lane) * shape.heads + head;
            float log_sum = lane < count ? log_sums[place] : 0.0f, mean = lane < count ? means[place] : 0.0f;
            products<R>(scores, keys + warp * R * padded, queries + lane * stride, padded);
            products<R>(slopes, values + warp * R * padded, grads + lane * stride, padded);
#pragma unroll
            for (u32 r = 0; r < R; r++) {
                u32 row = warp * R + r;
                bool seen = row < tile.rows && lane < count && sees(first + lane, tile.first + row, tile, window);
                float score = capped(scores[r] * scale, softcap);
                float weight = seen ? expf(score - log_sum) : 0.0f;
                weights[r * LANES + lane] = weight;
                slopes_of[r * LANES + lane] =
                    seen ? weight * (slopes[r] - mean) * slope_of_cap(score, softcap) : 0.0f;
            }
            __syncwarp();
            weighted<R, C>(sums_v, weights, grads, stride, size);
            weighted<R, C>(sums_k, slopes_of, queries, stride, size);
        }
    }
    write_rows<T, R, C>(grad_k, sums_k, scale, tile, shape.key_heads, key_head, size);
    write_rows<T, R, C>(grad_v, sums_v, 1.0f, tile, shape.key_heads, key_head, size);
}

// For heads of up to D = 32·C values.
#define ATTENTION(S, T, D, R, C)                                                                                   \
    KERNEL attention_forward_##D##_##S(const T* q, const T* k, const T* v, const u32* tiles, T* out,               \
                                       float* log_sums, u32 heads, u32 key_heads, u32 size, float scale,           \
                                       u32 window, float softcap) {                                                \
        forward<T, R, C>(q, k, v, tiles, out, log_sums, {heads, key_heads, size}, scale, window, softcap);         \
    }                                                                                                              \
    ENTRY(attention_forward_##D##_##S)                                                                             \
    KERNEL attention_query_gradient_##D##_##S(const T* q, const T* k, const T* v, const T* grad,                   \
                                              const float* log_sums, const float* means, const u32* tiles,         \
                                              T* grad_q, u32 heads, u32 key_heads, u32 size, float scale,          \
                                              u32 window, float softcap) {                                         \
        query_gradient<T, R, C>(q, k, v, grad, log_sums, means, tiles, grad_q, {heads, key_heads, size}, scale,    \
                                window, softcap);                                                                  \
    }                                                                                                              \
    ENTRY(attention_query_gradient_##D##_##S)                                                                      \
    KERNEL attention_key_gradients_##D##_##S(const T* q, const T* k, const T* v, const T* grad,                    \
                                             const float* log_sums, const float* means, const u32* tiles,          \
                                             T* grad_k, T* grad_v, u32 heads, u32 key_heads, u32 size,             \
                                             float scale, u32 window, float softcap) {                             \
        key_gradients<T, R, C>(q, k, v, grad, log_sums, means, tiles, grad_k, grad_v, {heads, key_heads, size},    \
                               scale, window, softcap);                                                            \
    }                                                                                                              \
    ENTRY(attention_key_gradients_##D##_##S)

#define ATTENTIONS(S, T)                                                                                       \
    ATTENTION(S, T, 32, 8, 1)                                                                                  \
    ATTENTION(S, T, 64, 8, 2)                                                                                  \
    ATTENTION(S, T, 128, 8, 4)                                                                                 \
    ATTENTION(S, T, 256, 4, 8)                                                                                 \
    KERNEL attention_means_##S(const T* out, const T* grad, float* sums, u64 rows, u32 size) {                 \
        means(out, grad, sums, rows, size);                                                                    \
    }                                                                                                          \
    ENTRY(attention_means_##S)

ATTENTIONS(f32, float)
ATTENTIONS(bf16, bf16)
