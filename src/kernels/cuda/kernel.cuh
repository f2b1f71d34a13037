// What every kernel of this folder begins with: the types of memory, and sums over a warp and a block.
// Arithmetic is in f32 whatever the storage; a sum has one fixed order, so equal operands give equal bits.

#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#define KERNEL extern "C" __global__ void
#define ENTRY(kernel)
#define DYNAMIC_SHARED(type, name)                          \
    extern __shared__ __align__(16) unsigned char memory[]; \
    type* name = reinterpret_cast<type*>(memory)
#else
#include "emulator.h"
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef __nv_bfloat16 bf16;

#define ALL_LANES 0xffffffffu

static __device__ __forceinline__ float load(const float* at) { return *at; }
static __device__ __forceinline__ float load(const bf16* at) { return __bfloat162float(*at); }
static __device__ __forceinline__ void store(float* at, float value) { *at = value; }
static __device__ __forceinline__ void store(bf16* at, float value) { *at = __float2bfloat16(value); }

// The number of this thread among all of the grid's first dimension.
static __device__ __forceinline__ u64 position() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

template <class F> static __device__ __forceinline__ float over_warp(float value, F join) {
    for (int lane = 16; lane > 0; lane /= 2) value = join(value, __shfl_xor_sync(ALL_LANES, value, lane));
    return value;
}

struct Sum {
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

struct Largest {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Joins a value of every thread of a block of whole warps; every thread gets the result.
template <class F> static __device__ __forceinline__ float over_block(float value, F join, float nothing) {
    __shared__ float of_warps[32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = over_warp(value, join);
    __syncthreads();  // the last result was read
    if (lane == 0) of_warps[warp] = value;
    __syncthreads();
    return over_warp(lane < warps ? of_warps[lane] : nothing, join);
}

static __device__ __forceinline__ float sum_over_block(float value) { return over_block(value, Sum(), 0.0f); }
