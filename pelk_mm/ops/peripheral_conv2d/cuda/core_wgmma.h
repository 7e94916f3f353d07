// The products of forward_maps by wgmma (compute capability 9.0): 64 rows of one plane with all blocks of a cell, as
// they lie in shared memory. Groups of 8 columns come in the order g = KC - 1 - jg: the block of (kg, g) is T_d with
// d = kg - (KC - 1) + g, which is number kg + g of the cell's blocks. So the right operand of the chunks kg and kg + 1
// begins at number kg, and the next block is the next one both along k and across. Blocks of zeros are in the table.
static_assert(DM == KC - 1, "wgmma needs all blocks");

// Bytes of a block with its low part behind it, and of a cell.
constexpr int BLOCK = PARTS * 128, CELL = BLOCKS * BLOCK;

// high += A_high [B_high | B_low], a group of each in turn, and low += A_low B_high, of 16 numbers along k: two chunks
// of maps ``left_step`` bytes apart and the blocks from ``right`` on.
INLINE void multiply_chunks(float (&high)[PARTS * KC][4], float (&low)[KC][4], u32 left, u32 left_step, u32 right,
                            u32 right_step, bool add, const Plan& plan) {
    multiply_async(high, operand(left, left_step, 128), operand(right, right_step, 128), add);
    if constexpr (PARTS == 2)
        multiply_async(low, operand(left + plan.part, left_step, 128), operand(right, right_step, BLOCK), add);
}

// An odd number of chunks leaves the last one.
template <int KG>
INLINE void multiply_cell(float (&high)[PARTS * KC][4], float (&low)[KC][4], u32 left, u32 right, bool add,
                          const Plan& plan) {
    if constexpr (KG + 1 < KC) {
        multiply_chunks(high, low, left + KG * plan.chunk, plan.chunk, right + KG * BLOCK, BLOCK, add, plan);
        multiply_cell<KG + 2>(high, low, left, right, true, plan);
    }
}

// Start the products of one or two cells from number ``a`` on: high and low are them, or with ``add`` += them. A branch
// instead of COUNT, between products, would have the compiler wait for each of them.
template <int COUNT>
INLINE void multiply_cells(float (&high)[PARTS * KC][4], float (&low)[KC][4], u32 maps, int a, bool add,
                           const Plan& plan) {
    const u32 left = maps + plan.lead + plan.cell_row[a], right = plan.table + a * CELL;
    const u32 to_next = plan.cell_row[a + 1] - plan.cell_row[a];
    fence_registers();
    multiply_cell<0>(high, low, left, right, add, plan);
    if constexpr (COUNT == 2) multiply_cell<0>(high, low, left + to_next, right + CELL, true, plan);
    // The last chunks of both cells; behind an odd number of cells plan.py puts one of zeros.
    if constexpr (KC % 2)
        multiply_chunks(high, low, left + (KC - 1) * plan.chunk, to_next, right + (KC - 1) * BLOCK, CELL, true, plan);
    commit_products();
}
INLINE void add_products(float (&sum)[KC][4], float (&high)[PARTS * KC][4], float (&low)[KC][4]) {
    wait_for_products();
    pin(high);
    if constexpr (PARTS == 2) pin(low);
#pragma unroll
    for (int g = 0; g < KC; ++g)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            sum[KC - 1 - g][i] += PARTS == 1 ? high[g][i] : high[2 * g][i] + (high[2 * g + 1][i] + low[g][i]);
}

// sum += all cells of the plane's rows; each warp has 16 of them. Tensor cores truncate: with two parts every two cells
// start from zero.
INLINE void multiply_rows(float (&sum)[KC][4], u32 maps, int, const Plan& plan) {
    float high[PARTS * KC][4], low[KC][4];
#pragma unroll 1
    for (int a = 0; a + 1 < plan.used; a += 2) {
        multiply_cells<2>(high, low, maps, a, PARTS == 1 && a > 0, plan);
        if (PARTS == 2) add_products(sum, high, low);
    }
    if (plan.used % 2) {
        multiply_cells<1>(high, low, maps, plan.used - 1, PARTS == 1 && plan.used > 1, plan);
        if (PARTS == 2) add_products(sum, high, low);
    }
    if (PARTS == 1) add_products(sum, high, low);
}
