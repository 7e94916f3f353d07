// What the kernels need of a GPU: threads, barriers, shared memory by byte offsets, tensor cores. The tests' emulator
// supplies the same names on a CPU. Compute capability 8.0 or newer.
#pragma once
typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

#ifdef PELK_EMULATOR
#include "emulator.h"
#else
#define INLINE __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define PARAMETER const __grid_constant__

struct alignas(8) Pair {
    float a, b;
};

INLINE int thread() { return threadIdx.x; }
INLINE int threads() { return blockDim.x; }
INLINE int block_x() { return blockIdx.x; }
INLINE int block_y() { return blockIdx.y; }
INLINE int blocks_x() { return gridDim.x; }
INLINE int blocks_y() { return gridDim.y; }
// The same value in all lanes, so that the compiler keeps it once a warp.
INLINE int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }
INLINE u32 warp_max(u32 value) { return __reduce_max_sync(0xffffffffu, value); }
INLINE bool warp_any(bool value) { return __any_sync(0xffffffffu, value); }
INLINE float warp_sum(float value) {
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    return value;
}
INLINE void block_barrier() { __syncthreads(); }
// Of the 128 threads of a group.
INLINE void group_barrier(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }

INLINE u32 float_bits(float value) { return __float_as_uint(value); }
INLINE float bits_float(u32 bits) { return __uint_as_float(bits); }
INLINE float larger(float a, float b) { return fmaxf(a, b); }
INLINE float magnitude_of(float a) { return fabsf(a); }
// Two numbers in a word, the first in its low half.
INLINE u32 pack_half(float a, float b) {
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
    return word;
}
INLINE Pair unpack_half(u32 word) {
    Pair pair;
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
        : "=f"(pair.a), "=f"(pair.b) : "r"(word));
    return pair;
}
INLINE u32 pack_bf16(float a, float b) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
    return word;
}

template <class T> INLINE T read(const void* data, i64 bytes) { return *(const T*)((const char*)data + bytes); }
template <class T> INLINE void write(void* data, i64 bytes, T value) { *(T*)((char*)data + bytes) = value; }

extern __shared__ __align__(128) unsigned char shared_memory[];
INLINE u32 shared_address(u32 at) { return (u32)__cvta_generic_to_shared(shared_memory) + at; }
INLINE u32 load_shared(u32 at) { return *(const u32*)(shared_memory + at); }
INLINE void store_shared(u32 at, u32 word) { *(u32*)(shared_memory + at) = word; }
INLINE void store_shared(u32 at, const u32 (&w)[4]) {
    *(uint4*)(shared_memory + at) = make_uint4(w[0], w[1], w[2], w[3]);
}
INLINE void raise_shared(u32 at, u32 word) { atomicMax((u32*)(shared_memory + at), word); }

// Matrices of 8 rows of 16 bytes: lanes 8 i ... 8 i + 7 give the rows of matrix i, lane l gets word l % 4 of row l / 4
// of each; or of the transposed matrix.
INLINE void load_matrices(u32 (&m)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(shared_address(at)) : "memory");
}
INLINE void load_matrices(u32 (&m)[2], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(m[0]), "=r"(m[1]) : "r"(shared_address(at)) : "memory");
}
INLINE void load_transposed(u32 (&m)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(shared_address(at)) : "memory");
}
// sum += a b, of 16 x 16 and 16 x 8 (or 16 x 8 and 8 x 8) fp16 numbers, in fp32.
INLINE void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
INLINE void multiply(float (&sum)[4], const u32 (&a)[2], u32 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) : "r"(a[0]), "r"(a[1]), "r"(b));
}
#endif
