// Forward for maps of up to 16 x 16: a plane as one vector.
//   y[n, (jr, j)] = bias + sum over kr, k of x[n, (kr, k)] E_{kr - jr}[k, j],
//   E_r[k, j] = theta[cell of r, cell of k - j]
// 64 images of a channel are the rows of the left operand, [part][row and chunk of 8 columns][image][8 columns], 16
// bytes an image. The right one is kept as its distinct 8 x 8 blocks, by kr - jr and by chunk of k less chunk of j,
// with words as in forward_maps.cu. Warps 0 and 1 make the first HALF = (H + 1) / 2 output rows of 32 images each, 2
// and 3 the others.
#include "device.h"
#include "plan.h"
#include "numbers.h"

constexpr int IMAGES = 64, PITCH = IMAGES * 16 + 16, ACROSS = 2 * KC - 1, DOWN = 4 * HALF - 1, COLUMNS = KC * 8;

INLINE int build_table(const void* theta, int c, const Plan& plan) {
    const i64 first = (i64)c * plan.cells * plan.cells;
    const int scale = scale_for(theta_magnitude(theta, first, plan.cells * plan.cells, plan.scratch), 14);
    for (int i = thread(); i < DOWN * ACROSS * 32; i += 128) {
        const int row = i / (ACROSS * 32) - (2 * HALF - 1) + plan.reach;
        const int d = i / 32 % ACROSS - (KC - 1), g = i % 32 / 4, k = i % 4 * 2;
        const bool inside = row >= 0 && row <= 2 * plan.reach;
        const i64 cells = first + plan.cell_of[inside ? row : 0] * plan.cells;
        store_taps(plan.table + i / 32 * PARTS * 128 + i % 32 * 4, 128, theta, cells, 8 * d + k - g,
                   inside ? power(scale) : 0.f, plan);
    }
    return scale;
}

// One row of an image a thread and step, HALF steps for 64 images.
INLINE void load_planes(float (&rows)[HALF][COLUMNS], const Tensor& x, int n0, int c, const Plan& plan) {
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
        const int at = i * 128 + thread(), image = at / plan.H, y = at - image * plan.H;
        const bool inside = image < IMAGES && n0 + image < plan.N;
        const char* row = (const char*)x.data + ((n0 + image) * x.n + c * x.c + y * x.h) * ITEM;
        float most = 0.f;
#pragma unroll
        for (int k = 0; k < COLUMNS; k += 2) {
            float pair[2] = {0.f, 0.f};
            if (inside && k < plan.W) {
                if (x.paired) load_two<true>(pair, row, k, true);
                else load_two<false>(pair, row, k, k + 1 < plan.W);
            }
            rows[i][k] = pair[0];
            rows[i][k + 1] = pair[1];
            most = larger(larger(most, magnitude_of(pair[0])), magnitude_of(pair[1]));
        }
        u32 bits = finite_bits(most);
        if (bits != float_bits(most)) {
#pragma unroll
            for (int k = 0; k < COLUMNS; ++k) bits = larger_bits(bits, finite_bits(rows[i][k]));
        }
        if (image < IMAGES) raise_shared(plan.scratch + 64 + image * 4, bits);
    }
}

INLINE void store_planes(const float (&rows)[HALF][COLUMNS], const Plan& plan) {
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
        const int at = i * 128 + thread(), image = at / plan.H, y = at - image * plan.H;
        if (image >= IMAGES) continue;
        const float scale = power(scale_for(load_shared(plan.scratch + 64 + image * 4), 15));
#pragma unroll
        for (int kc = 0; kc < KC; ++kc) {
            u32 high[4], low[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const float a = rows[i][kc * 8 + 2 * k] * scale, b = rows[i][kc * 8 + 2 * k + 1] * scale;
                high[k] = pack_half(a, b);
                low[k] = low_parts(high[k], a, b);
            }
            store_shared((y * KC + kc) * PITCH + image * 16, high);
            if (PARTS == 2) store_shared((y * KC + kc) * PITCH + image * 16 + plan.part, low);
        }
    }
}

// sum[i][jr * KC + jc] += x of images 16 i ... times E, two chunks of x at a time: products with low parts, or without.
// Tensor cores truncate at every step, by more the larger the sum has become.
template <bool SMALL> INLINE void multiply_planes(float (&sum)[2][HALF * KC][4], int image, int jr0, const Plan& plan) {
    const int lane = thread() % 32;
    const u32 left = lane / 16 * PITCH + (image + lane % 16) * 16;
    const u32 right = plan.table + (2 * HALF - 1 - jr0) * ACROSS * PARTS * 128 + lane * 4;
    // Chunks of one row, or of two. Blocks: of chunks' distance -1, 0 and 1; or of rows kr - jr and kr - jr + 1.
    constexpr int ROWS = KC == 2 ? 1 : 2, USED = KC == 2 ? 3 : 2;
#pragma unroll 1
    for (int kr = 0; kr < plan.H; kr += ROWS) {
        u32 high[2][4], low[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            load_matrices(high[i], left + kr * KC * PITCH + i * 256);
            if (SMALL) load_matrices(low[i], left + kr * KC * PITCH + i * 256 + plan.part);
        }
#pragma unroll
        for (int jr = 0; jr < HALF; ++jr) {
            u32 block_high[USED], block_low[USED];
#pragma unroll
            for (int b = 0; b < USED; ++b) {
                const u32 at = right + ((kr - jr) * ACROSS + b) * PARTS * 128;
                block_high[b] = load_shared(at);
                if (SMALL) block_low[b] = load_shared(at + 128);
            }
#pragma unroll
            for (int jc = 0; jc < KC; ++jc)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float(&to)[4] = sum[i][jr * KC + jc];
                    if (SMALL) {
                        multiply(to, low[i], block_high[KC - 1 - jc], block_high[KC - jc]);
                        multiply(to, high[i], block_low[KC - 1 - jc], block_low[KC - jc]);
                    } else {
                        multiply(to, high[i], block_high[KC - 1 - jc], block_high[KC - jc]);
                    }
                }
        }
    }
}

KERNEL(128, 2)
forward_planes(PARAMETER Tensor x, const void* theta, const void* bias, PARAMETER Tensor out, PARAMETER Plan plan) {
    const int t = thread(), lane = t % 32, warp = uniform(t / 32), image = warp % 2 * 32, jr0 = warp / 2 * HALF;
    const int sets = (plan.N + IMAGES - 1) / IMAGES;
    const i64 units = (i64)sets * plan.C;
    const int first = units * block_x() / blocks_x(), end = units * (block_x() + 1) / blocks_x();
    int channel = -1, theta_scale = 0;
    // With an odd number of chunks a chunk of zeros follows the last.
    for (int at = t * 4; at < plan.table; at += 512) store_shared(at, 0);
    for (int unit = first; unit < end; ++unit) {
        const int c = unit / sets, n0 = (unit - c * sets) * IMAGES;
        block_barrier();
        if (t < IMAGES) store_shared(plan.scratch + 64 + t * 4, 0);
        if (c != channel) theta_scale = build_table(theta, c, plan);
        channel = c;
        block_barrier();
        float rows[HALF][COLUMNS];
        load_planes(rows, x, n0, c, plan);
        block_barrier();
        store_planes(rows, plan);
        block_barrier();
        float sum[2][HALF * KC][4] = {};
        if constexpr (PARTS == 2) multiply_planes<true>(sum, image, jr0, plan);
        multiply_planes<false>(sum, image, jr0, plan);
        const float add = bias ? load_one(bias, c) : 0.f;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int m = image + i * 8 + lane / 4;
            if (n0 + m >= plan.N) continue;
            const Pair back = two_powers(-theta_scale - scale_for(load_shared(plan.scratch + 64 + m * 4), 15));
            const i64 at = (n0 + m) * out.n + c * out.c;
#pragma unroll
            for (int g = 0; g < HALF * KC; ++g) {
                const int y = jr0 + g / KC, j = g % KC * 8 + lane % 4 * 2;
                if (y >= plan.H || j >= plan.W) continue;
                const float(&pair)[4] = sum[i / 2][g];
                const float a = pair[i % 2 * 2] * back.a * back.b, b = pair[i % 2 * 2 + 1] * back.a * back.b;
                store_two(out.data, at + y * out.h + j, a + add, b + add, out.paired, j + 1 < plan.W);
            }
        }
    }
}
