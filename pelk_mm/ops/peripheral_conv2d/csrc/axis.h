// One axis of the sharing grid.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

// The sums over one width: the rows [y + first, y + last] are read for an output at y, by a cell or as `parts` of the newest
// row of a wider sum.
struct Sum {
    struct Part { int64_t slot, offset; };
    int64_t width, first = INT64_MAX, last = INT64_MIN;
    std::vector<Part> parts;

    void use(int64_t row) { first = std::min(first, row), last = std::max(last, row); }
    int64_t rows() const { return last - first + 1; }
};

struct Piece { int64_t offset; int level; int64_t cell; };   // 2**level taps from `offset`

// The cells that reach the map at all, in order, and their cut into boxes of powers of two.
struct Axis {
    std::vector<int64_t> start, width, index;   // per reachable cell; `index` is its place in the grid
    std::vector<Piece> pieces;                   // sorted by level
    std::vector<int64_t> widths;                 // distinct widths, powers of two first, ascending, without gaps
    std::vector<Sum> sums;                       // per distinct width
    std::vector<int> slot;                       // per cell: its width's place in `widths`
    int levels = 0;                              // highest level of a piece

    Axis(const int64_t* all_widths, int64_t cells, int64_t size) {
        int64_t tap = 0;
        for (int64_t i = 0; i < cells; ++i) tap += all_widths[i];
        tap = -(tap / 2);
        for (int64_t i = 0; i < cells; tap += all_widths[i++]) {
            if (tap >= size || tap + all_widths[i] - 1 <= -size) continue;
            int64_t offset = tap, rest = all_widths[i];
            for (int level = 62; level >= 0; --level)
                if (rest >> level & 1) {
                    pieces.push_back({offset, level, int64_t(start.size())});
                    offset += int64_t(1) << level;
                    levels = std::max(levels, level);
                }
            start.push_back(tap), width.push_back(all_widths[i]), index.push_back(i);
        }
        std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.level < b.level; });
        for (int level = 0; level <= levels; ++level) widths.push_back(int64_t(1) << level);
        for (int64_t w : width) {
            auto found = std::find(widths.begin(), widths.end(), w);
            slot.push_back(int(found - widths.begin()));
            if (found == widths.end()) widths.push_back(w);
        }
        for (int64_t w : widths) sums.push_back({w});
        for (size_t i = 0; i < start.size(); ++i) sums[slot[i]].use(start[i]);
        for (int64_t i = int64_t(sums.size()) - 1; i > 0; --i) cut(i);
    }
    // Makes a sum of two halves, or of powers of two.
    void cut(int64_t i) {
        const int64_t w = widths[i];
        if (i <= levels) sums[i].parts = {{i - 1, 0}, {i - 1, w / 2}};
        else
            for (int64_t level = levels, offset = 0; level >= 0; --level)
                if (w >> level & 1) {
                    sums[i].parts.push_back({level, offset});
                    offset += int64_t(1) << level;
                }
        for (const Sum::Part& part : sums[i].parts) sums[part.slot].use(sums[i].last + part.offset);
    }
    int64_t cells() const { return int64_t(start.size()); }
    int64_t first() const { return start.front(); }
    int64_t last() const { return start.back(); }
    int64_t end(int64_t cell) const { return start[cell] + width[cell]; }
    // Pairs of an output in [0, size) and a cell that reaches the map from there.
    int64_t pairs(int64_t size) const {
        int64_t count = 0;
        for (int64_t i = 0; i < cells(); ++i) count += size - std::max<int64_t>({0, start[i], 1 - end(i)});
        return count;
    }
};

// Leaves the cells b whose t_b is read at any of the columns [x, x + size) by an output inside the map of width W.
static void needed_columns(const Axis& cols, int64_t W, int64_t x, int64_t size, int64_t& b0, int64_t& b1) {
    while (b0 < b1 && x > W - 2 + cols.end(b0)) ++b0;
    while (b1 > b0 && cols.start[b1 - 1] > std::min(x + size, W) - 1) --b1;
}
