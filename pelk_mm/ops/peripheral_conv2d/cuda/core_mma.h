// The products of forward_maps by mma.sync (compute capability 8.0 or newer): a warp multiplies 16 rows of the planes
// with the blocks of a cell, which it holds in registers. Blocks of zeros and cells out of the rows' reach are skipped.

// A row of zero blocks on either side, which are constants in registers.
constexpr int PADDED = BLOCKS + 2;

// cell += the rows of one or two chunks from KG on times H_a; the small products come first.
template <int KG, int COUNT>
INLINE void multiply_chunks(float (&cell)[KC][4], const u32 (&high)[COUNT], const u32 (&low)[COUNT],
                            const u32 (&block_high)[PADDED], const u32 (&block_low)[PADDED]) {
#pragma unroll
    for (int product = 3 - (PARTS == 2 ? 3 : 1); product < 3; ++product)
#pragma unroll
        for (int jg = 0; jg < KC; ++jg) {
            constexpr int LAST = COUNT / 2 - 1;
            const int d = KG - jg, at = d + DM + 1;
            if (d > DM || d + LAST < -DM) continue;
            const u32(&left)[COUNT] = product == 0 ? low : high;
            const u32(&right)[PADDED] = product == 1 ? block_low : block_high;
            if constexpr (COUNT == 4) multiply(cell[jg], left, right[at], right[at + 1]);
            else multiply(cell[jg], left, right[at]);
        }
}

template <int KG>
INLINE void multiply_cell(float (&cell)[KC][4], u32 at, const u32 (&block_high)[PADDED], const u32 (&block_low)[PADDED],
                          const Plan& plan) {
    if constexpr (KG < KC) {
        u32 high[KG + 1 < KC ? 4 : 2], low[KG + 1 < KC ? 4 : 2];
        load_matrices(high, at);
        if (PARTS == 2) load_matrices(low, at + plan.part);
        multiply_chunks<KG>(cell, high, low, block_high, block_low);
        multiply_cell<KG + 2>(cell, at + 2 * plan.chunk, block_high, block_low, plan);
    }
}

// sum += all cells of 16 rows of the planes from ``row`` on. Tensor cores truncate: each cell starts from zero.
INLINE void multiply_rows(float (&sum)[KC][4], u32 maps, int row, const Plan& plan) {
    const int lane = thread() % 32, rows = plan.planes * plan.H;
    if (row >= rows) return;
    const int mine = row + lane % 16 < rows ? row + lane % 16 : rows - 1;
    const int plane = mine / plan.H, y = mine - plane * plan.H;
    // Lanes 16 ... 31 address the second chunk, if there is one.
    const u32 first = maps + plan.lead + plane * plan.plane + y * 16 + (KC > 1 ? lane / 16 * plan.chunk : 0);
#pragma unroll 1
    for (int a = 0; a < plan.used; ++a) {
        if (!warp_any(y >= plan.first_y[a] && y < plan.end_y[a])) continue;
        u32 high[PADDED], low[PADDED];
        high[0] = high[PADDED - 1] = low[0] = low[PADDED - 1] = 0;
        const u32 blocks = plan.table + a * BLOCKS * PARTS * 128 + lane * 4;
#pragma unroll
        for (int i = 0; i < BLOCKS; ++i) {
            high[i + 1] = load_shared(blocks + i * PARTS * 128);
            if (PARTS == 2) low[i + 1] = load_shared(blocks + i * PARTS * 128 + 128);
        }
        float cell[KC][4] = {};
        multiply_cell<0>(cell, first + plan.cell_row[a], high, low, plan);
#pragma unroll
        for (int jg = 0; jg < KC; ++jg)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[jg][i] += cell[jg][i];
    }
}
