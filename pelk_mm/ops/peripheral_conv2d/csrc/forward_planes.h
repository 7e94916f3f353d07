// Steps 2 and 3 with neighbouring columns in a vector.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "boxes.h"
#include "dispatch.h"
#include "image.h"
#include "parallel.h"
#include "plan.h"

// out[i][position[j]] = sum over a of theta[a * ld + i] * rows[a][j] for NB columns i and NX vectors j.
template <class T, int NB, int NX>
static inline void mix(const T* const* rows, const T* const* theta, int64_t count, int64_t first, int64_t column, T* out,
                       int64_t ld_out, const int64_t* position) {
    constexpr int L = Simd<T>::size;
    V<T> acc[NB][NX] = {};
    for (int64_t a = 0; a < count; ++a) {
        V<T> r[NX];
#pragma GCC unroll 8
        for (int j = 0; j < NX; ++j) r[j] = load(rows[a] + first + j * L);
        const T* weights = theta[a] + column;
#pragma GCC unroll 8
        for (int i = 0; i < NB; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < NX; ++j) acc[i][j] += r[j] * weights[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < NB; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < NX; ++j) store(out + i * ld_out + position[j], acc[i][j]);
}

template <class T, int NX>
static inline void mix_columns(const T* const* rows, const T* const* theta, int64_t count, int64_t first, int64_t b0,
                               int64_t b1, T* out, int64_t ld_out, const int64_t* position) {
    const int64_t parts = (b1 - b0 + MIX_B - 1) / MIX_B;
    for (int64_t part = 0, b = b0; part < parts; ++part) {
        const int64_t n = (b1 - b) / (parts - part) + ((b1 - b) % (parts - part) != 0);
        T* o = out + b * ld_out;
        with_constant<MIX_B>(n, [&](auto nb) { mix<T, nb, NX>(rows, theta, count, first, b, o, ld_out, position); });
        b += n;
    }
}

template <class T> struct ForwardPlanes {
    static constexpr int L = Simd<T>::size;
    const Shape& s;
    const Axis &rows, &cols;
    const Plan<T>& plan;
    int64_t pad, t_row, t_plane;   // zero columns before a row of t, its full length, elements of one t_b
    Boxes<T> boxes;
    Buffer<T> t, levels;
    std::vector<int64_t> position, piece_offsets;
    std::vector<const T*> row_pointers, theta_rows;

    ForwardPlanes(const Shape& s, const Axis& rows, const Axis& cols, const Plan<T>& plan)
        : s(s), rows(rows), cols(cols), plan(plan), pad(left_pad(cols)), t_row(row_length(cols, plan.row_size)),
          t_plane(plan.chunk * t_row), boxes(rows, s.H, plan.row_size, plan.band, 0), t(cols.cells() * t_plane + L),
          levels(2 * plan.chunk * level_row()), position(plan.chunk * (plan.row_size / L)), row_pointers(rows.cells()),
          theta_rows(rows.cells()) {
        // Only the margins are never written again.
        for (int64_t b = 0; b < cols.cells(); ++b)
            for (int64_t y = 0; y < plan.chunk; ++y) {
                T* row = t.data + b * t_plane + y * t_row;
                std::fill(row, row + pad, T(0));
                std::fill(row + pad + plan.row_size, row + t_row, T(0));
            }
        std::fill(levels.data, levels.data + 2 * plan.chunk * level_row(), T(0));
        for (const Piece& piece : cols.pieces) piece_offsets.push_back(piece.cell * t_plane + pad + piece.offset);
        const int64_t vectors = plan.row_size / L;
        for (size_t v = 0; v < position.size(); ++v) position[v] = int64_t(v) / vectors * t_row + pad + int64_t(v) % vectors * L;
    }
    static int64_t left_pad(const Axis& cols) { return round_up(std::max<int64_t>(0, -cols.first()), L); }
    static int64_t row_length(const Axis& cols, int64_t row_size) {
        const int64_t reach = std::max<int64_t>(0, cols.end(cols.cells() - 1));
        return left_pad(cols) + row_size + round_up(reach + (int64_t(1) << cols.levels), L) + L;
    }
    int64_t level_row() const { return plan.row_size + round_up(int64_t(2) << cols.levels, L) + 2 * L; }

    // Rows [y0, y1) of one plane. `source` begins with the first row that reaches them, `out` with row y0, rows of row_size
    // elements.
    void run(const T* source, const T* theta, T bias, int64_t y0, int64_t y1, T* out) {
        boxes.start(y0, y1);
        boxes.advance(y1 - 1, [&](int64_t from, int64_t to, T* first) {
            std::memcpy(first, source, (to - from) * plan.row_size * sizeof(T));
        });
        for (int64_t y = y0; y < y1; y += plan.chunk) {
            const int64_t count = std::min(plan.chunk, y1 - y);
            mix_rows(theta, y, count);
            sum_rows(count, bias, out + (y - y0) * plan.row_size);
        }
    }

  private:
    void mix_rows(const T* theta, int64_t y, int64_t count) {
        int64_t active = 0;
        for (int64_t a = 0; a < rows.cells(); ++a) {
            if (y + count - 1 + rows.end(a) <= 0 || y + rows.start[a] >= s.H) continue;
            row_pointers[active] = boxes.row(rows.slot[a], y + rows.start[a]);
            theta_rows[active++] = theta + a * cols.cells();
        }
        const int64_t vectors = plan.row_size / L, total = count * vectors;
        int64_t v = 0;
        for (; v + MIX_X <= total; v += MIX_X) {
            int64_t b0 = 0, b1 = cols.cells();
            if (v / vectors == (v + MIX_X - 1) / vectors) needed_columns(cols, s.W, v % vectors * L, MIX_X * L, b0, b1);
            mix_columns<T, MIX_X>(row_pointers.data(), theta_rows.data(), active, v * L, b0, b1, t.data, t_plane, &position[v]);
        }
        for (; v < total; ++v)
            mix_columns<T, 1>(row_pointers.data(), theta_rows.data(), active, v * L, 0, cols.cells(), t.data, t_plane,
                              &position[v]);
    }

    // out(x) = u_0 + B_1(u_1 + B_2(u_2 + B_4(...))) with (B_n v)(x) = v(x) + v(x + n) and u_j the sum of t_b(x + offset) over
    // the pieces of 2**j taps, for all rows of a chunk.
    void sum_rows(int64_t count, T bias, T* out) {
        T* above = levels.data;
        T* current = levels.data + plan.chunk * level_row();
        size_t end = cols.pieces.size();
        for (int level = cols.levels; level >= 0; --level) {
            size_t begin = end;
            while (begin > 0 && cols.pieces[begin - 1].level == level) --begin;
            const int64_t vectors = (s.W + (int64_t(1) << level) - 1 + L - 1) / L, total = count * vectors;
            const T* upper = level < cols.levels ? above : nullptr;
            T* target = level == 0 ? out : current;
            const int64_t target_row = level == 0 ? plan.row_size : level_row();
            int64_t row = 0, vector = 0;
            for (int64_t v = 0; v < total;) {
                int64_t in_t[4], in_levels[4], in_target[4];
                const int n = total - v >= 4 ? 4 : 1;
                for (int j = 0; j < n; ++j) {
                    in_t[j] = row * t_row + vector * L;
                    in_levels[j] = row * level_row() + vector * L;
                    in_target[j] = row * target_row + vector * L;
                    if (++vector == vectors) vector = 0, ++row;
                }
                if (n == 4) sum_pieces<4>(begin, end, level, upper, in_t, in_levels, in_target, bias, target);
                else sum_pieces<1>(begin, end, level, upper, in_t, in_levels, in_target, bias, target);
                v += n;
            }
            std::swap(above, current);
            end = begin;
        }
    }

    template <int NX>
    inline void sum_pieces(size_t begin, size_t end, int level, const T* upper, const int64_t* in_t, const int64_t* in_levels,
                           const int64_t* in_target, T bias, T* target) {
        V<T> acc[NX];
        for (int j = 0; j < NX; ++j) acc[j] = V<T>{} + (level == 0 ? bias : T(0));
        if (upper)
            for (int j = 0; j < NX; ++j)
                acc[j] += load(upper + in_levels[j]) + load(upper + in_levels[j] + (int64_t(1) << level));
        for (size_t p = begin; p < end; ++p) {
            const T* from = t.data + piece_offsets[p];
            for (int j = 0; j < NX; ++j) acc[j] += load(from + in_t[j]);
        }
        for (int j = 0; j < NX; ++j) store(target + in_target[j], acc[j]);
    }
};

// theta of one channel, cut to the reachable cells, row-major.
template <class T> static void gather_theta(const T* theta, int64_t cells, const Axis& rows, const Axis& cols, T* out) {
    for (int64_t a : rows.index)
        for (int64_t b : cols.index) *out++ = theta[a * cells + b];
}

template <class IO>
static void forward_planes(const Image<const IO>& x, const Compute<IO>* theta, const Compute<IO>* bias, const Image<IO>& y,
                           const Shape& s, const Axis& rows, const Axis& cols, int64_t cells, int threads) {
    using T = Compute<IO>;
    const int64_t row_bytes = cols.cells() * ForwardPlanes<T>::row_length(cols, round_up(s.W, Simd<T>::size)) * sizeof(T);
    const Plan<T> plan = planes_plan<T>(s, rows, row_bytes, !x.planar() || !y.planar(), threads);
    share_tasks(s.N * plan.groups * plan.bands, threads, [&](int64_t begin, int64_t end) {
        ForwardPlanes<T> worker(s, rows, cols, plan);
        Buffer<T> input(plan.group * plan.in_plane), output(plan.group * plan.out_plane);
        Buffer<T> weights(rows.cells() * cols.cells());
        for (int64_t task = begin; task < end; ++task) {
            const int64_t n = task / (plan.groups * plan.bands), c = task / plan.bands % plan.groups * plan.group;
            const int64_t count = std::min(plan.group, s.C - c);
            const int64_t y0 = task % plan.bands * plan.band, y1 = std::min(s.H, y0 + plan.band);
            worker.boxes.start(y0, y1);
            const int64_t from = worker.boxes.low(), to = worker.boxes.high;
            for (int64_t i = from; i < to; ++i)
                read_row<IO, T>(x, n, c, count, i, s.W, input.data + (i - from) * plan.row_size, plan.in_plane, plan.row_size);
            for (int64_t k = 0; k < count; ++k) {
                gather_theta(theta + (c + k) * cells * cells, cells, rows, cols, weights.data);
                worker.run(input.data + k * plan.in_plane, weights.data, bias ? bias[c + k] : T(0), y0, y1,
                           output.data + k * plan.out_plane);
            }
            for (int64_t i = y0; i < y1; ++i)
                write_row<IO, T>(y, n, c, count, i, s.W, output.data + (i - y0) * plan.row_size, plan.out_plane);
        }
    });
}
