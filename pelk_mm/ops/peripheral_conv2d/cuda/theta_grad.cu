// Gradient of theta for maps of up to 64 columns:
//   dtheta[a, b] = sum over images, r and k - j in cell b of B_{w_a}[r + s_a, k] dy[r, j]
// A product over rows: its 8 x 8 blocks (chunk of k, chunk of j) with the same difference d are added up in the same
// accumulators, tile i holding d = i - DM - 1 in its upper and d + 1 in its lower half. A block of threads takes a
// share of a channel's images and up to 8 * CELLS of its row cells, CELLS a warp. Its sums are added to others' in a
// fixed order.
#include "device.h"
#include "plan.h"
#include "numbers.h"
#include "maps.h"

constexpr int TILES = 2 * DM + 2;

// Rows of dy, split as the maps are: [part][chunk][row of all planes][8 columns], zero up to a multiple of 16 rows.
struct Rows {
    u32 first;
    int padded, chunk, part;
};
INLINE Rows rows_of(const Plan& plan) {
    const int padded = (plan.planes * plan.H + 15) / 16 * 16;
    return {(u32)plan.table, padded, padded * 16 + 16, KC * (padded * 16 + 16)};
}

// Returns the largest magnitude of dy's planes; stores them if STORE.
template <bool STORE>
INLINE u32 pass_grad(const Tensor& dy, int n0, int c, float scale, const Rows& rows, const Plan& plan) {
    u32 most = 0;
    for (int i = thread(); i < rows.padded * COLUMN_PAIRS; i += threads()) {
        const int row = i / COLUMN_PAIRS, column = i % COLUMN_PAIRS * 2;
        const int plane = row / plan.H, y = row - plane * plan.H;
        float pair[2] = {0.f, 0.f};
        if (plane < plan.planes && n0 + plane < plan.N && column < plan.W) {
            const i64 at = (n0 + plane) * dy.n + c * dy.c + y * dy.h + column;
            if (dy.paired) load_two<true>(pair, dy.data, at, true);
            else load_two<false>(pair, dy.data, at, column + 1 < plan.W);
        }
        if (STORE && column < KC * 8)
            store_parts(rows.first + column / 8 * rows.chunk + row * 16 + column % 8 * 2, rows.part, pair[0] * scale,
                        pair[1] * scale);
        most = larger_bits(most, larger_bits(finite_bits(pair[0]), finite_bits(pair[1])));
    }
    return most;
}

// Two chunks of dy, 16 rows each; the second one is not there for the last of an odd number.
template <int JG> INLINE void load_grad(u32 (&part)[KC + 1][2], u32 at, int chunk) {
    if constexpr (JG < KC) {
        u32 m[4];
        load_transposed(m, at + JG * chunk + (JG + 1 < KC ? thread() % 32 / 16 * chunk : 0));
        part[JG][0] = m[0];
        part[JG][1] = m[1];
        part[JG + 1][0] = m[2];
        part[JG + 1][1] = m[3];
        load_grad<JG + 2>(part, at, chunk);
    }
}

template <int KG>
INLINE void multiply_maps(float (&sum)[TILES][4], u32 at, const u32 (&grad_high)[KC + 1][2],
                          const u32 (&grad_low)[KC + 1][2], const Plan& plan) {
    if constexpr (KG < KC) {
        constexpr bool both = KG + 1 < KC;
        const u32 chunks = at + (both ? thread() % 16 / 8 * plan.chunk : 0);
        u32 high[4], low[4];
        load_transposed(high, chunks);
        if (PARTS == 2) load_transposed(low, chunks + plan.part);
        if (!both) high[1] = high[3] = low[1] = low[3] = 0;
#pragma unroll
        for (int jg = 0; jg < KC; ++jg) {
            const int tile = KG - jg + DM + 1;
            if (tile < 0 || tile >= TILES) continue;
            if (PARTS == 2) {
                multiply(sum[tile], low, grad_high[jg][0], grad_high[jg][1]);
                multiply(sum[tile], high, grad_low[jg][0], grad_low[jg][1]);
            }
            multiply(sum[tile], high, grad_high[jg][0], grad_high[jg][1]);
        }
        multiply_maps<KG + 2>(sum, at + 2 * plan.chunk, grad_high, grad_low, plan);
    }
}

// sum += cell a of all rows of the planes, times both factors.
INLINE void multiply_planes(float (&sum)[TILES][4], int a, const Rows& rows, Pair back, const Plan& plan) {
    const int lane = thread() % 32, last = plan.planes * plan.H - 1;
    float set[TILES][4] = {};
#pragma unroll 1
    for (int row = 0; row < rows.padded; row += 16) {
        // Matrices: rows 0-7 of two chunks, rows 8-15 of the same. Rows beyond the last meet zeros of dy.
        const int own = row + lane % 8 + lane / 16 * 8, mine = own < last ? own : last;
        const int plane = mine / plan.H, y = mine - plane * plan.H;
        if (!warp_any(y >= plan.first_y[a] && y < plan.end_y[a])) continue;
        u32 grad_high[KC + 1][2], grad_low[KC + 1][2];
        const u32 at = rows.first + (row + lane % 16) * 16;
        load_grad<0>(grad_high, at, rows.chunk);
        if (PARTS == 2) load_grad<0>(grad_low, at + rows.part, rows.chunk);
        multiply_maps<0>(set, plan.lead + plane * plan.plane + y * 16 + plan.cell_row[a], grad_high, grad_low, plan);
    }
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[i][k] += set[i][k] * back.a * back.b;
}

INLINE void store_cell(const float (&sum)[TILES][4], float* partial, i64 row, const Plan& plan) {
    const int lane = thread() % 32;
    for (int b = 0; b < plan.cells; ++b) {
        float total = 0.f;
#pragma unroll
        for (int i = 0; i < TILES; ++i)
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int tap = 8 * (i - DM - 1) + lane / 4 + k / 2 * 8 - lane % 4 * 2 - k % 2 + plan.reach;
                if (tap >= 0 && tap <= 2 * plan.reach && plan.cell_of[tap] == b) total += sum[i][k];
            }
        total = warp_sum(total);
        if (lane == 0) write(partial, (row + b) * 4, total);
    }
}

// Blocks: (channel and share of the cells, share of the images).
KERNEL(256, 1)
theta_grad(PARAMETER Tensor x, PARAMETER Tensor dy, float* partial, int cell_shares, PARAMETER Plan plan) {
    const int lane = thread() % 32, warp = uniform(thread() / 32);
    const int c = block_x() / cell_shares, share = block_x() % cell_shares;
    const int first = plan.used * share / cell_shares, end = plan.used * (share + 1) / cell_shares;
    const Rows rows = rows_of(plan);
    const int items = count_items(plan), sets = (plan.N + plan.planes - 1) / plan.planes;
    for (int at = thread() * 4; at < plan.scratch; at += 1024) store_shared(at, 0);
    float sum[CELLS][TILES][4] = {};
    for (int set = block_y(); set < sets; set += blocks_y()) {
        const int n0 = set * plan.planes;
        float values[READ][2];
        u32 most = 0;
#pragma unroll 1
        for (int i = thread(); i < items; i += 256) {
            load_rows(values, x, n0, c, item_at(i, plan), plan);
            most = larger_bits(most, magnitude_of_rows(values));
        }
        most = warp_max(most);
        const u32 most_grad = warp_max(pass_grad<false>(dy, n0, c, 1.f, rows, plan));
        if (lane == 0) store_shared(plan.scratch + warp * 8, most);
        if (lane == 0) store_shared(plan.scratch + warp * 8 + 4, most_grad);
        // From here on no thread reads the maps and rows of the set before.
        block_barrier();
        u32 all = 0, all_grad = 0;
        for (int w = 0; w < 8; ++w) {
            all = larger_bits(all, load_shared(plan.scratch + w * 8));
            all_grad = larger_bits(all_grad, load_shared(plan.scratch + w * 8 + 4));
        }
        const int scale = scale_for(all, 15 - GROWTH), scale_grad = scale_for(all_grad, 15);
#pragma unroll 1
        for (int i = thread(); i < items; i += 256) {
            const Item item = item_at(i, plan);
            if (items > 256) load_rows(values, x, n0, c, item, plan);
            store_maps(0, item, values, power(scale), plan);
        }
        pass_grad<true>(dy, n0, c, power(scale_grad), rows, plan);
        block_barrier();
#pragma unroll
        for (int i = 0; i < CELLS; ++i)
            if (first + i * 8 + warp < end)
                multiply_planes(sum[i], first + i * 8 + warp, rows, two_powers(-scale - scale_grad), plan);
    }
#pragma unroll
    for (int i = 0; i < CELLS; ++i) {
        const int a = first + i * 8 + warp;
        const i64 row = ((i64)block_y() * plan.C + c) * plan.cells + plan.theta_row[a < end ? a : first];
        if (a < end) store_cell(sum[i], partial, row * plan.cells, plan);
    }
}
