// Products of a group of 128 threads, from operands in shared memory: wgmma of compute capability 9.0, which exists
// only in code for sm_90a. They run asynchronously: registers of sums, and what they read of shared memory, are theirs
// from the call until wait_for_products. The tests' emulator supplies the same names.
#pragma once
#include "device.h"
typedef unsigned long long u64;

// An operand without swizzling: 8 x 8 blocks of 128 bytes, a row (of the left operand; a column of the right one) of 8
// numbers along k in 16 bytes. ``along_k`` is the distance in bytes from a block to the next along k, ``across`` to the
// next one across it. All are multiples of 16 below 2**18.
INLINE u64 operand(u32 at, u32 along_k, u32 across) {
    return shared_address(at) >> 4 | (u64)(along_k >> 4) << 16 | (u64)(across >> 4) << 32;
}

#ifdef PELK_EMULATOR
#include "products.h"
#else
// Let products behind the next barrier see what this thread has stored in shared memory.
INLINE void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Before the first product, and between other uses of the registers of sums and a product.
INLINE void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// End a group of products.
INLINE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// For all groups.
INLINE void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// Keep the compiler from moving uses of these sums before the wait.
template <int GROUPS> INLINE void pin(float (&sum)[GROUPS][4]) {
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sum[g][i])::"memory");
}

// The registers of G groups of 8 columns: their numbers, and what they are bound to.
#define NUMBERS5 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19"
#define NUMBERS6 NUMBERS5 ",%20,%21,%22,%23"
#define NUMBERS7 NUMBERS6 ",%24,%25,%26,%27"
#define NUMBERS8 NUMBERS7 ",%28,%29,%30,%31"
#define NUMBERS10 NUMBERS8 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define NUMBERS12 NUMBERS10 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define NUMBERS14 NUMBERS12 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define NUMBERS16 NUMBERS14 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define GROUP(g) "+f"(sum[g][0]), "+f"(sum[g][1]), "+f"(sum[g][2]), "+f"(sum[g][3])
#define SUMS5 GROUP(0), GROUP(1), GROUP(2), GROUP(3), GROUP(4)
#define SUMS6 SUMS5, GROUP(5)
#define SUMS7 SUMS6, GROUP(6)
#define SUMS8 SUMS7, GROUP(7)
#define SUMS10 SUMS8, GROUP(8), GROUP(9)
#define SUMS12 SUMS10, GROUP(10), GROUP(11)
#define SUMS14 SUMS12, GROUP(12), GROUP(13)
#define SUMS16 SUMS14, GROUP(14), GROUP(15)
#define PRODUCT(G, COLUMNS, A, B, ADD)                                                                          \
    if constexpr (GROUPS == G)                                                                                  \
        asm volatile("{.reg .pred add; setp.ne.b32 add, " ADD ", 0;\n"                                          \
                     "wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32.f16.f16 {" NUMBERS##G "}, " A ", " B  \
                     ", add, 1, 1, 0, 0;}"                                                                      \
                     : SUMS##G : "l"(a), "l"(b), "r"((int)add))

// sum = a b, or sum += a b with ``add``, of 64 x 16 and 16 x (8 * GROUPS) fp16 numbers, in fp32. Lane l of warp w has
// rows 16 w + l / 4 (in [0] and [1]) and 8 further (in [2] and [3]), and of each group columns l % 4 * 2 and the next.
template <int GROUPS> INLINE void multiply_async(float (&sum)[GROUPS][4], u64 a, u64 b, bool add) {
    PRODUCT(5, "40", "%20", "%21", "%22");
    PRODUCT(6, "48", "%24", "%25", "%26");
    PRODUCT(7, "56", "%28", "%29", "%30");
    PRODUCT(8, "64", "%32", "%33", "%34");
    PRODUCT(10, "80", "%40", "%41", "%42");
    PRODUCT(12, "96", "%48", "%49", "%50");
    PRODUCT(14, "112", "%56", "%57", "%58");
    PRODUCT(16, "128", "%64", "%65", "%66");
}
#undef PRODUCT
#undef GROUP
#endif
