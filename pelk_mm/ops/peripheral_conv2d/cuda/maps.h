// Box maps of planes in shared memory: B_w[y, k] = x[y, k] + ... + x[y + w - 1, k], scaled and in fp16 parts.
//
// WIDTHS are the w, widest first; KC is the number of chunks of 8 columns; a thread makes SEGMENT rows of two columns.
// Layout: [part][plane][chunk][row][8 columns], 16 bytes a row. A chunk's rows are the maps under each other, with zero
// rows between them, so that row cell a of output row y is row cell_row[a] + y, and a shift by rows is an address.
constexpr int width_at(int i) {
    constexpr int widths[] = {WIDTHS};
    return i < (int)(sizeof(widths) / sizeof(int)) ? widths[i] : 0;
}
constexpr int count_widths() {
    int count = 0;
    while (width_at(count)) ++count;
    return count;
}
constexpr int slot_of(int width) {
    for (int i = 0; i < count_widths(); ++i)
        if (width_at(i) == width) return i;
    return -1;
}
constexpr int bits_of(int number) { return number ? 1 + bits_of(number / 2) : 0; }
constexpr int WIDEST = width_at(0), LEVELS = bits_of(WIDEST), READ = SEGMENT + WIDEST - 1;
// Sums of WIDEST numbers below 2**(15 - GROWTH) are below 2**15.
constexpr int GROWTH = bits_of(WIDEST - 1);
// Pairs of columns that neighbouring threads take, a power of two.
constexpr int COLUMN_PAIRS = KC == 1 ? 4 : KC == 2 ? 8 : KC <= 4 ? 16 : 32;

struct Item {
    // Plane of the set, first row of the widest map, first column.
    int plane, y, column;
    bool live;
};
INLINE int count_items(const Plan& plan) { return plan.planes * plan.segments * COLUMN_PAIRS; }
INLINE Item item_at(int i, const Plan& plan) {
    const int rows = i / COLUMN_PAIRS, column = i % COLUMN_PAIRS * 2, plane = rows / plan.segments;
    const int y = (rows - plane * plan.segments) * SEGMENT - (WIDEST - 1);
    return {plane, y, column, plane < plan.planes && column < KC * 8};
}

// Rows y ... of the plane n0 + item.plane, zero outside of the map and beyond the last image.
template <bool PAIRED>
INLINE void load_rows(float (&rows)[READ][2], const char* row, i64 step, int y, u32 height, bool second) {
#pragma unroll
    for (int r = 0; r < READ; ++r, row += step) {
        rows[r][0] = rows[r][1] = 0.f;
        if ((u32)(y + r) < height) load_two<PAIRED>(rows[r], row, 0, second);
    }
}
INLINE void load_rows(float (&rows)[READ][2], const Tensor& x, int n0, int c, const Item& item, const Plan& plan) {
    const bool inside = item.live && n0 + item.plane < plan.N && item.column < plan.W;
    const char* row = (const char*)x.data + ((n0 + item.plane) * x.n + c * x.c + item.y * x.h + item.column) * ITEM;
    if (x.paired) load_rows<true>(rows, row, x.h * ITEM, item.y, inside ? plan.H : 0, true);
    else load_rows<false>(rows, row, x.h * ITEM, item.y, inside ? plan.H : 0, item.column + 1 < plan.W);
}

// Every row of a plane is among the first SEGMENT rows of one item.
INLINE u32 magnitude_of_rows(const float (&rows)[READ][2]) {
    float most = 0.f;
#pragma unroll
    for (int r = 0; r < SEGMENT; ++r) most = larger(larger(most, magnitude_of(rows[r][0])), magnitude_of(rows[r][1]));
    u32 bits = finite_bits(most);
    if (bits != float_bits(most)) {
#pragma unroll
        for (int r = 0; r < SEGMENT; ++r)
            bits = larger_bits(bits, larger_bits(finite_bits(rows[r][0]), finite_bits(rows[r][1])));
    }
    return bits;
}

// Composite widths, those that are no powers of two, take their pieces in rising order: below piece n lie w % n rows.
template <int SLOT, int LEVEL>
INLINE void add_pieces(float (&sums)[count_widths()][SEGMENT][2], const float (&rows)[READ][2]) {
    constexpr int w = width_at(SLOT), n = 1 << LEVEL;
    if constexpr ((w & (w - 1)) && (w & n)) {
#pragma unroll
        for (int r = 0; r < SEGMENT; ++r)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const float piece = rows[r + w % n][k];
                sums[SLOT][r][k] = w % n ? sums[SLOT][r][k] + piece : piece;
            }
    }
    if constexpr (SLOT + 1 < count_widths()) add_pieces<SLOT + 1, LEVEL>(sums, rows);
}

// ``rows`` hold boxes of 2**LEVEL rows.
template <int LEVEL>
INLINE void store_levels(u32 at, float (&rows)[READ][2], float (&sums)[count_widths()][SEGMENT][2], const Plan& plan) {
    constexpr int n = 1 << LEVEL;
    if constexpr (slot_of(n) >= 0) {
        const u32 map = at + plan.map_row[slot_of(n)];
#pragma unroll
        for (int r = 0; r < SEGMENT; ++r) store_parts(map + r * 16, plan.part, rows[r][0], rows[r][1]);
    }
    add_pieces<0, LEVEL>(sums, rows);
    if constexpr (LEVEL + 1 < LEVELS) {
#pragma unroll
        for (int r = 0; r < READ - n; ++r) {
            rows[r][0] += rows[r + n][0];
            rows[r][1] += rows[r + n][1];
        }
        store_levels<LEVEL + 1>(at, rows, sums, plan);
    }
}

// Store all maps of an item. Rows below a map's last, and above the first of a narrower one, are zero and lie in the
// gaps between the maps, which plan.py makes long enough.
INLINE void store_maps(u32 maps, const Item& item, float (&rows)[READ][2], float scale, const Plan& plan) {
    if (!item.live) return;
    const u32 chunk = maps + plan.lead + item.plane * plan.plane + item.column / 8 * plan.chunk;
    const u32 at = chunk + item.column % 8 * 2 + item.y * 16;
#pragma unroll
    for (int r = 0; r < READ; ++r) {
        rows[r][0] *= scale;
        rows[r][1] *= scale;
    }
    float sums[count_widths()][SEGMENT][2];
    store_levels<0>(at, rows, sums, plan);
#pragma unroll
    for (int slot = 0; slot < count_widths(); ++slot) {
        if ((width_at(slot) & (width_at(slot) - 1)) == 0) continue;
        const u32 map = at + plan.map_row[slot];
#pragma unroll
        for (int r = 0; r < SEGMENT; ++r) store_parts(map + r * 16, plan.part, sums[slot][r][0], sums[slot][r][1]);
    }
}
