// The gradient of the stored kernel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "boxes.h"
#include "dispatch.h"
#include "image.h"
#include "parallel.h"
#include "plan.h"

// Register tiles: GRAD_TILE**2 entries of dtheta.
constexpr int GRAD_TILE = REGISTERS == 32 ? 5 : 3;

// acc[a][b] += sum over v of r_a(v) * d_b(v) for an NA x NB tile.
template <class T, int NA, int NB>
static inline void outer(const T* const* r, const T* const* d, const int64_t* position, int64_t vectors, T* acc,
                         int64_t ld_acc) {
    constexpr int L = Simd<T>::size;
    V<T> sum[NA][NB] = {};
    for (int64_t v = 0; v < vectors; ++v) {
        V<T> rv[NA];
#pragma GCC unroll 8
        for (int i = 0; i < NA; ++i) rv[i] = load(r[i] + v * L);
#pragma GCC unroll 8
        for (int j = 0; j < NB; ++j) {
            const V<T> dv = load(d[j] + position[v]);
#pragma GCC unroll 8
            for (int i = 0; i < NA; ++i) sum[i][j] += rv[i] * dv;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < NA; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < NB; ++j) {
            T* p = acc + i * ld_acc + j * L;
            store(p, load(p) + sum[i][j]);
        }
}

template <class T> struct ThetaGrad {
    static constexpr int L = Simd<T>::size;
    const Shape& s;
    const Axis &rows, &cols;
    const Plan<T>& plan;
    int64_t pad, d_row, d_plane;
    Boxes<T> boxes;
    Buffer<T> d, acc;
    std::vector<int64_t> position;
    std::vector<const T*> row_pointers, d_pointers;
    std::vector<int64_t> active;

    ThetaGrad(const Shape& s, const Axis& rows, const Axis& cols, const Plan<T>& plan)
        : s(s), rows(rows), cols(cols), plan(plan), pad(left_pad(cols)), d_row(row_length(cols, plan.row_size)),
          d_plane(plan.chunk * d_row), boxes(rows, s.H, plan.row_size, plan.band),
          d(int64_t(cols.widths.size()) * d_plane + L), acc(rows.cells() * cols.cells() * L),
          position(plan.chunk * (plan.row_size / L)), row_pointers(rows.cells()), d_pointers(cols.cells()),
          active(rows.cells()) {
        const int64_t vectors = plan.row_size / L;
        for (size_t v = 0; v < position.size(); ++v) position[v] = int64_t(v) / vectors * d_row + int64_t(v) % vectors * L;
    }
    static int64_t left_pad(const Axis& cols) { return round_up(std::max<int64_t>(0, cols.end(cols.cells() - 1) - 1), L); }
    static int64_t row_length(const Axis& cols, int64_t row_size) {
        const int64_t widest = *std::max_element(cols.width.begin(), cols.width.end());
        return left_pad(cols) + row_size + round_up(std::max<int64_t>(0, -cols.first()) + widest, L) + L;
    }

    // Adds rows [y0, y1) of one plane to `total` (rows x cols, double). x as `source` of Boxes::build, dy from row y0 on.
    void run(const T* source, int64_t source_first, const T* dy, int64_t y0, int64_t y1, double* total) {
        boxes.build(source, source_first, y0, y1);
        std::fill(acc.data, acc.data + rows.cells() * cols.cells() * L, T(0));
        for (int64_t y = y0; y < y1; y += plan.chunk) {
            const int64_t count = std::min(plan.chunk, y1 - y);
            for (int64_t i = 0; i < count; ++i) box_row(dy + (y - y0 + i) * plan.row_size, i);
            accumulate(y, count);
        }
        for (int64_t i = 0; i < rows.cells() * cols.cells(); ++i)
            for (int l = 0; l < L; ++l) total[i] += double(acc.data[i * L + l]);
    }

  private:
    // Horizontal boxes of one row of dY: B_w(x) = dY(x) + ... + dY(x + w - 1), shifted right by `pad`.
    void box_row(const T* dy, int64_t i) {
        for (size_t slot = 0; slot < cols.widths.size(); ++slot) {
            const int64_t w = cols.widths[slot];
            T* out = d.data + slot * d_plane + i * d_row;
            if (w == 1) {
                std::fill(out, out + pad, T(0));
                std::memcpy(out + pad, dy, s.W * sizeof(T));
                std::fill(out + pad + s.W, out + d_row, T(0));
                continue;
            }
            if ((w & (w - 1)) == 0) {
                add_shifted(out, out - d_plane, out - d_plane, w / 2);
                continue;
            }
            int64_t offset = 0;
            for (int level = cols.levels; level >= 0; --level)
                if (w >> level & 1) {
                    const T* box = d.data + level * d_plane + i * d_row;
                    if (offset == 0) std::memcpy(out, box, d_row * sizeof(T));
                    else add_shifted(out, out, box, offset);
                    offset += int64_t(1) << level;
                }
        }
    }
    // out(x) = a(x) + b(x + shift); beyond the row b is zero.
    void add_shifted(T* out, const T* a, const T* b, int64_t shift) {
        int64_t x = 0;
        for (; x + L + shift <= d_row; x += L) store(out + x, load(a + x) + load(b + x + shift));
        for (; x < d_row; ++x) out[x] = a[x] + (x + shift < d_row ? b[x + shift] : T(0));
    }

    void accumulate(int64_t y, int64_t count) {
        int64_t used = 0;
        for (int64_t a = 0; a < rows.cells(); ++a) {
            if (y + count - 1 + rows.end(a) <= 0 || y + rows.start[a] >= s.H) continue;
            row_pointers[used] = boxes.row(rows.slot[a], y + rows.start[a]);
            active[used++] = a;
        }
        for (int64_t b = 0; b < cols.cells(); ++b)
            d_pointers[b] = d.data + cols.slot[b] * d_plane + pad - (cols.end(b) - 1);
        const int64_t vectors = count * (plan.row_size / L), ld = cols.cells() * L;
        for (int64_t a = 0; a < used;) {
            // The active cells are consecutive.
            const int64_t na = std::min<int64_t>(GRAD_TILE, used - a);
            for (int64_t b = 0; b < cols.cells(); b += GRAD_TILE) {
                const int64_t nb = std::min<int64_t>(GRAD_TILE, cols.cells() - b);
                T* target = acc.data + active[a] * ld + b * L;
                const T* const* r = &row_pointers[a];
                const T* const* e = &d_pointers[b];
                with_constant<GRAD_TILE>(na, [&](auto a_tile) {
                    with_constant<GRAD_TILE>(nb, [&](auto b_tile) {
                        outer<T, a_tile, b_tile>(r, e, position.data(), vectors, target, ld);
                    });
                });
            }
            a += na;
        }
    }
};

// Images are summed in a fixed number of partial sums, so that the result does not depend on the number of threads.
constexpr int64_t PARTIAL_SUMS = 16;

template <class IO>
static void theta_grad(const IO* x_data, const int64_t* x_stride, const IO* dy_data, const int64_t* dy_stride, double* out,
                       const Shape& s, int64_t cells, const int64_t* widths, int threads) {
    using T = Compute<IO>;
    const Image<const IO> x{x_data, x_stride}, dy{dy_data, dy_stride};
    const Axis rows(widths, cells, s.H), cols(widths, cells, s.W);
    const int64_t row_bytes =
        int64_t(cols.widths.size()) * ThetaGrad<T>::row_length(cols, round_up(s.W, Simd<T>::size)) * sizeof(T);
    const int64_t parts = std::min(s.N, PARTIAL_SUMS);
    const Shape split{parts, s.C, s.H, s.W};
    const Plan<T> plan(split, rows, row_bytes, !x.planar() || !dy.planar(), threads);
    const int64_t entries = rows.cells() * cols.cells();
    std::vector<double> partial(parts * s.C * entries, 0.0);
    share_tasks(parts * plan.groups, threads, [&](int64_t begin, int64_t end) {
        ThetaGrad<T> worker(s, rows, cols, plan);
        Buffer<T> input(plan.group * plan.in_plane), grad(plan.group * plan.out_plane);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t part = task / plan.groups, c = task % plan.groups * plan.group;
            const int64_t count = std::min(plan.group, s.C - c);
            for (int64_t n = part; n < s.N; n += parts)
                for (int64_t y0 = 0; y0 < s.H; y0 += plan.band) {
                    const int64_t y1 = std::min(s.H, y0 + plan.band), from = std::max<int64_t>(0, y0 + rows.first());
                    const int64_t to = std::min(s.H, y1 - 1 + rows.end(rows.cells() - 1));
                    for (int64_t i = from; i < to; ++i)
                        read_row<IO, T>(x, n, c, count, i, s.W, input.data + (i - from) * plan.row_size, plan.in_plane,
                                        plan.row_size);
                    for (int64_t i = y0; i < y1; ++i)
                        read_row<IO, T>(dy, n, c, count, i, s.W, grad.data + (i - y0) * plan.row_size, plan.out_plane,
                                        plan.row_size);
                    for (int64_t k = 0; k < count; ++k)
                        worker.run(input.data + k * plan.in_plane, from, grad.data + k * plan.out_plane, y0, y1,
                                   partial.data() + (part * s.C + c + k) * entries);
                }
        }
    });
    std::fill(out, out + s.C * cells * cells, 0.0);
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t c = 0; c < s.C; ++c)
            for (int64_t a = 0; a < rows.cells(); ++a)
                for (int64_t b = 0; b < cols.cells(); ++b)
                    out[(c * cells + rows.index[a]) * cells + cols.index[b]] +=
                        partial[((part * s.C + c) * rows.cells() + a) * cols.cells() + b];
}
