// Forward for maps of up to 64 columns: "Toeplitz by cell".
//   y[r, j] = bias + sum_a sum_k B_{w_a}[r + s_a, k] H_a[k, j],   H_a[k, j] = theta[a, cell of tap k - j]
// H_a is kept as its distinct 8 x 8 blocks T_d, d = k / 8 - j / 8: word 4 g + i holds rows 2 i and 2 i + 1 of column g,
// as the right operand of a tensor-core product wants it. Blocks beyond |d| = DM are zero.
//
// A block of threads takes neighbouring (channel, planes), one channel after the other. A group of 128 threads makes
// the box maps of its planes, then multiplies 64 rows of them at a time, 16 a warp. The core does that: the lanes of a
// warp get the sums of its rows as mma.sync and wgmma both return them, lane l those of rows l / 4 and l / 4 + 8.
#include "device.h"
#include "plan.h"
#include "wgmma.h"
#include "numbers.h"
#include "maps.h"

constexpr int BLOCKS = 2 * DM + 1;
#if WGMMA
#include "core_wgmma.h"
#else
#include "core_mma.h"
#endif

INLINE int build_table(const void* theta, int c, const Plan& plan) {
    const i64 first = (i64)c * plan.cells * plan.cells;
    const int scale = scale_for(theta_magnitude(theta, first, plan.cells * plan.cells, plan.scratch), 14);
    for (int i = thread(); i < plan.used * BLOCKS * 32; i += threads()) {
        const int a = i / (BLOCKS * 32), d = i / 32 % BLOCKS - DM, g = i % 32 / 4, k = i % 4 * 2;
        store_taps(plan.table + i / 32 * PARTS * 128 + i % 32 * 4, 128, theta, first + plan.theta_row[a] * plan.cells,
                   8 * d + k - g, power(scale), plan);
    }
    return scale;
}

INLINE void store_rows(const float (&sum)[KC][4], const Tensor& out, const void* bias, int c, int n0, int row,
                       u32 magnitudes, int theta_scale, const Plan& plan) {
    const int lane = thread() % 32;
    const float add = bias ? load_one(bias, c) : 0.f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int mine = row + half * 8 + lane / 4, plane = mine / plan.H, y = mine - plane * plan.H;
        if (plane >= plan.planes || n0 + plane >= plan.N) continue;
        const Pair back = two_powers(-theta_scale - scale_for(load_shared(magnitudes + plane * 4), 15 - GROWTH));
        const i64 at = (n0 + plane) * out.n + c * out.c + y * out.h;
#pragma unroll
        for (int jg = 0; jg < KC; ++jg) {
            const int j = jg * 8 + lane % 4 * 2;
            if (j >= plan.W) continue;
            const float first = sum[jg][2 * half] * back.a * back.b, second = sum[jg][2 * half + 1] * back.a * back.b;
            store_two(out.data, at + j, first + add, second + add, out.paired, j + 1 < plan.W);
        }
    }
}

KERNEL(THREADS, 1)
forward_maps(PARAMETER Tensor x, const void* theta, const void* bias, PARAMETER Tensor out, PARAMETER Plan plan) {
    const int t = thread() % 128, group = uniform(thread() / 128), groups = threads() / 128, warp = uniform(t / 32);
    const int sets = (plan.N + plan.planes - 1) / plan.planes;
    const i64 units = (i64)sets * plan.C;
    const int first = units * block_x() / blocks_x(), end = units * (block_x() + 1) / blocks_x();
    const u32 maps = group * plan.group;
    // Magnitudes of this set's planes and of the next one's.
    u32 now = plan.scratch + 64 + group * plan.planes * 8, next = now + plan.planes * 4;
    const int items = count_items(plan), words = plan.scratch / 4 + 16 + groups * plan.planes * 2;
    for (int i = thread(); i < words; i += threads()) store_shared(i * 4, 0);
    for (int unit = first; unit < end;) {
        const int c = unit / sets;
        const int channel_end = end - c * sets < sets ? end : (c + 1) * sets;
        block_barrier();
        const int theta_scale = build_table(theta, c, plan);
        if (WGMMA) publish_shared();
        block_barrier();
        for (int set = unit + group; set < channel_end; set += groups) {
            const int n0 = (set - c * sets) * plan.planes;
            float rows[READ][2];
#pragma unroll 1
            for (int i = t; i < items; i += 128) {
                const Item item = item_at(i, plan);
                load_rows(rows, x, n0, c, item, plan);
                raise_shared(now + item.plane * 4, magnitude_of_rows(rows));
            }
            // From here on no thread of the group reads the maps and magnitudes of the set before.
            group_barrier(group);
            for (int p = t; p < plan.planes; p += 128) store_shared(next + p * 4, 0);
#pragma unroll 1
            for (int i = t; i < items; i += 128) {
                const Item item = item_at(i, plan);
                if (items > 128) load_rows(rows, x, n0, c, item, plan);
                store_maps(maps, item, rows, power(scale_for(load_shared(now + item.plane * 4), 15 - GROWTH)), plan);
            }
            if (WGMMA) publish_shared();
            group_barrier(group);
            for (int tile = 0; tile < plan.planes * plan.H; tile += 64) {
                const int row = tile + warp * 16;
                float sum[KC][4] = {};
                multiply_rows(sum, maps, row, plan);
                store_rows(sum, out, bias, c, n0, row, now, theta_scale, plan);
            }
            const u32 last = now;
            now = next;
            next = last;
        }
        unit = channel_end;
    }
}
