// Steps 2 and 3 with channels in the lanes of a vector.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "boxes.h"
#include "dispatch.h"
#include "lanes.h"
#include "parallel.h"
#include "plan.h"

// For NB columns b of theta and NX pixels: t_b = sum over a of theta[a][b] * rows[a], added to each of sums + targets[b][...].
template <class T, int NB, int NX>
static inline void mix_lanes(const T* const* rows, int64_t count, int64_t first, const T* theta, int64_t theta_row, T* sums,
                             const std::vector<int64_t>* targets) {
    constexpr int L = Simd<T>::size;
    V<T> acc[NB][NX] = {};
    for (int64_t a = 0; a < count; ++a, theta += theta_row) {
        V<T> r[NX];
#pragma GCC unroll 8
        for (int j = 0; j < NX; ++j) r[j] = load(rows[a] + first + j * L);
#pragma GCC unroll 8
        for (int i = 0; i < NB; ++i) {
            const V<T> weight = load(theta + i * L);
#pragma GCC unroll 8
            for (int j = 0; j < NX; ++j) acc[i][j] += r[j] * weight;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < NB; ++i)
        for (const int64_t target : targets[i]) {
            T* sum = sums + target + first;
#pragma GCC unroll 8
            for (int j = 0; j < NX; ++j) store(sum + j * L, load(sum + j * L) + acc[i][j]);
        }
}

template <class T> struct ForwardLanes {
    static constexpr int L = Simd<T>::size;
    struct Tile { int64_t x, size, b0, b1; };   // `size` pixels from x on, at which t_b is needed for b in [b0, b1)

    const Shape& s;
    const Axis &rows, &cols;
    const int64_t cells, margin, sum_row;   // pixels before a row of sums, from one row of sums to the next
    Boxes<T> boxes;
    Buffer<T> sums;                         // u_j, one row for each level j
    std::vector<std::vector<int64_t>> targets;
    std::vector<Tile> tiles;
    std::vector<const T*> row_pointers;

    ForwardLanes(const Shape& s, const Axis& rows, const Axis& cols, const Plan<T>& plan, int64_t cells)
        : s(s), rows(rows), cols(cols), cells(cells),
          margin(*std::max_element(cols.width.begin(), cols.width.end()) + MIX_X), sum_row((s.W + 2 * margin) * L),
          boxes(rows, s.H, plan.row_size, plan.band, STEP), sums((cols.levels + 1) * sum_row), targets(cols.cells()),
          row_pointers(rows.cells()) {
        // Each row leaves them zero; what falls into the margins is never read, but must not become slow numbers.
        std::fill(sums.data, sums.data + (cols.levels + 1) * sum_row, T(0));
        for (const Piece& piece : cols.pieces)
            targets[piece.cell].push_back(piece.level * sum_row + (margin - piece.offset) * L);
        for (int64_t x = 0; x < s.W; x += tiles.back().size) {
            int64_t size = MIX_X, b0 = 0, b1 = cols.cells();
            while (size > s.W - x) size /= 2;
            needed_columns(cols, s.W, x, size, b0, b1);
            tiles.push_back({x, size, b0, b1});
        }
    }

    // Row y of a group of channels, after boxes.advance(y, ...). theta (cells, cells, L).
    void run(const T* theta, V<T> bias, int64_t y, T* out) {
        mix_row(theta, y);
        sum_levels(bias, out);
    }

  private:
    T* level_row(int level) const { return sums.data + level * sum_row + margin * L; }
    int64_t width(int level) const { return s.W + (int64_t(1) << level) - 1; }

    void mix_row(const T* theta, int64_t y) {
        int64_t a0 = 0, a1 = rows.cells();
        while (y + rows.end(a0) <= 0) ++a0;
        while (y + rows.start[a1 - 1] >= s.H) --a1;
        for (int64_t a = a0; a < a1; ++a) row_pointers[a - a0] = boxes.row(rows.slot[a], y + rows.start[a]);
        for (const Tile& tile : tiles) {
            const int64_t parts = (tile.b1 - tile.b0 + MIX_B - 1) / MIX_B;
            for (int64_t part = 0, b = tile.b0; part < parts; ++part) {
                const int64_t n = (tile.b1 - b + parts - part - 1) / (parts - part);
                const T* weights = theta + (rows.index[a0] * cells + cols.index[b]) * L;
                with_constant<MIX_B>(n, [&](auto nb) {
                    const auto mix = [&](auto nx) {
                        mix_lanes<T, nb, nx>(row_pointers.data(), a1 - a0, tile.x * L, weights, cells * L, sums.data,
                                             &targets[b]);
                    };
                    if (tile.size == MIX_X) mix(std::integral_constant<int, MIX_X>{});
                    else if (tile.size == 2) mix(std::integral_constant<int, 2>{});
                    else mix(std::integral_constant<int, 1>{});
                });
                b += n;
            }
        }
    }

    // out(x) = u_0 + B_1(u_1 + B_2(u_2 + B_4(...))) with (B_n v)(x) = v(x) + v(x + n).
    void sum_levels(V<T> bias, T* out) {
        for (int level = cols.levels - 1; level >= 0; --level) {
            T *own = level_row(level), *above = level_row(level + 1);
            const int64_t end = width(level) * L, shift = L << level;
            for (int64_t i = 0; i < end; i += L) {
                store(own + i, load(own + i) + load(above + i) + load(above + i + shift));
                store(above + i, V<T>{});
            }
            std::fill(above + end, above + end + shift, T(0));
        }
        for (int64_t i = 0; i < s.W * L; i += L) {
            store(out + i, load(level_row(0) + i) + bias);
            store(level_row(0) + i, V<T>{});
        }
    }
};

template <class IO>
static void forward_lanes(const Image<const IO>& x, const Compute<IO>* theta, const Compute<IO>* bias, const Image<IO>& y,
                          const Shape& s, const Axis& rows, const Axis& cols, int64_t cells, int threads) {
    using T = Compute<IO>;
    constexpr int64_t L = Simd<T>::size;
    const Plan<T> plan = lanes_plan<T>(s, 2 * threads);
    const int64_t entries = cells * cells;
    Buffer<T> weights(plan.groups * entries * L);
    share_tasks(plan.groups, threads, [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g)
            read_lanes_of_planes(theta + g * L * entries, entries, s.C - g * L, entries, weights.data + g * entries * L);
    });
    share_tasks(s.N * plan.groups * plan.bands, threads, [&](int64_t begin, int64_t end) {
        ForwardLanes<T> worker(s, rows, cols, plan, cells);
        Buffer<T> output(STEP * plan.row_size);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t n = task / (plan.groups * plan.bands), g = task / plan.bands % plan.groups;
            const int64_t count = std::min(L, s.C - g * L);
            const int64_t y0 = task % plan.bands * plan.band, y1 = std::min(s.H, y0 + plan.band);
            V<T> start{};
            for (int64_t k = 0; bias && k < count; ++k) start[k] = bias[g * L + k];
            worker.boxes.start(y0, y1);
            for (int64_t i = y0; i < y1; ++i) {
                worker.boxes.advance(i, [&](int64_t from, int64_t to, T* first) {
                    read_lanes<IO, T>(x, n, g * L, count, from, to, s.W, first, plan.row_size);
                });
                const int64_t step = (i - y0) % STEP;
                worker.run(weights.data + g * entries * L, start, i, output.data + step * plan.row_size);
                if (step == STEP - 1 || i == y1 - 1)
                    write_lanes<IO, T>(y, n, g * L, count, i - step, i + 1, s.W, output.data, plan.row_size);
            }
        }
    });
}
