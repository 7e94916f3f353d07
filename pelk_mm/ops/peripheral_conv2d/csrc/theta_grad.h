// The gradient of the stored kernel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "boxes.h"
#include "dispatch.h"
#include "image.h"
#include "lanes.h"
#include "parallel.h"
#include "plan.h"

// acc[a][b] += sum over v in [v0, v1) of r_a(v) * d_b(v) for an NA x NB tile.
template <class T, int NA, int NB>
static inline void outer(const T* const* r, const T* const* d, const int64_t* position, int64_t v0, int64_t v1, T* acc,
                         int64_t ld_acc) {
    constexpr int L = Simd<T>::size;
    V<T> sum[NA][NB] = {};
    for (int64_t v = v0; v < v1; ++v) {
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
    const int64_t pixel, pad, d_row, d_plane, entries;
    Boxes<T> boxes;
    Buffer<T> input, grad, d, acc;
    std::vector<int64_t> position;
    std::vector<const T*> row_pointers, d_pointers;

    ThetaGrad(const Shape& s, const Axis& rows, const Axis& cols, const Plan<T>& plan)
        : s(s), rows(rows), cols(cols), plan(plan), pixel(plan.pixel()), pad(left_pad(cols, pixel)),
          d_row(row_length(cols, plan.row_size, pixel)), d_plane(plan.chunk * d_row), entries(rows.cells() * cols.cells()),
          boxes(rows, s.H, plan.row_size, plan.band, plan.lanes ? STEP : 0),
          input(plan.lanes ? L : plan.group * plan.in_plane),
          grad(plan.lanes ? STEP * plan.row_size : plan.group * plan.out_plane),
          d(int64_t(cols.widths.size()) * d_plane + L), acc(entries * L), position(plan.chunk * (plan.row_size / L)),
          row_pointers(rows.cells()), d_pointers(cols.cells()) {
        // Only the margins are never written again.
        std::fill(d.data, d.data + int64_t(cols.widths.size()) * d_plane + L, T(0));
        const int64_t vectors = plan.row_size / L;
        for (size_t v = 0; v < position.size(); ++v) position[v] = int64_t(v) / vectors * d_row + int64_t(v) % vectors * L;
        for (int64_t b = 0; b < cols.cells(); ++b)
            d_pointers[b] = d.data + cols.slot[b] * d_plane + pad - (cols.end(b) - 1) * pixel;
    }
    static int64_t left_pad(const Axis& cols, int64_t pixel) {
        return round_up(std::max<int64_t>(0, cols.end(cols.cells() - 1) - 1) * pixel, L);
    }
    static int64_t row_length(const Axis& cols, int64_t row_size, int64_t pixel) {
        const int64_t widest = *std::max_element(cols.width.begin(), cols.width.end());
        return left_pad(cols, pixel) + row_size + round_up((std::max<int64_t>(0, -cols.first()) + widest) * pixel, L) + L;
    }

    // Adds rows [y0, y1) of the channels of a group from c on of image n to `total`: of planes (channels, rows, cols), of lanes
    // (rows, cols, L).
    template <class IO>
    void add(const Image<const IO>& x, const Image<const IO>& dy, int64_t n, int64_t c, int64_t y0, int64_t y1, double* total) {
        boxes.start(y0, y1);
        plan.lanes ? add_lanes(x, dy, n, c, y0, y1, total) : add_planes(x, dy, n, c, y0, y1, total);
    }

  private:
    template <class IO>
    void add_lanes(const Image<const IO>& x, const Image<const IO>& dy, int64_t n, int64_t c, int64_t y0, int64_t y1,
                   double* total) {
        const int64_t count = std::min(plan.group, s.C - c);
        std::fill(acc.data, acc.data + entries * L, T(0));
        for (int64_t y = y0; y < y1; ++y) {
            const int64_t step = (y - y0) % STEP;
            if (step == 0)
                read_lanes<IO, T>(dy, n, c, count, y, std::min(y1, y + STEP), s.W, grad.data, plan.row_size);
            boxes.advance(y, [&](int64_t from, int64_t to, T* first) {
                read_lanes<IO, T>(x, n, c, count, from, to, s.W, first, plan.row_size);
            });
            box_row(grad.data + step * plan.row_size, 0);
            accumulate(y, 1);
        }
        for (int64_t i = 0; i < entries * L; ++i) total[i] += double(acc.data[i]);
    }

    template <class IO>
    void add_planes(const Image<const IO>& x, const Image<const IO>& dy, int64_t n, int64_t c, int64_t y0, int64_t y1,
                    double* total) {
        const int64_t count = std::min(plan.group, s.C - c), low = boxes.low();
        for (int64_t i = low; i < boxes.high; ++i)
            read_row<IO, T>(x, n, c, count, i, s.W, input.data + (i - low) * plan.row_size, plan.in_plane, plan.row_size);
        for (int64_t i = y0; i < y1; ++i)
            read_row<IO, T>(dy, n, c, count, i, s.W, grad.data + (i - y0) * plan.row_size, plan.out_plane, plan.row_size);
        for (int64_t k = 0; k < count; ++k) {
            boxes.start(y0, y1);
            boxes.advance(y1 - 1, [&](int64_t from, int64_t to, T* first) {
                std::memcpy(first, input.data + k * plan.in_plane, (to - from) * plan.row_size * sizeof(T));
            });
            run_plane(grad.data + k * plan.out_plane, y0, y1, total + k * entries);
        }
    }
    void run_plane(const T* dy, int64_t y0, int64_t y1, double* total) {
        std::fill(acc.data, acc.data + entries * L, T(0));
        for (int64_t y = y0; y < y1; y += plan.chunk) {
            const int64_t count = std::min(plan.chunk, y1 - y);
            for (int64_t i = 0; i < count; ++i) box_row(dy + (y - y0 + i) * plan.row_size, i);
            accumulate(y, count);
        }
        for (int64_t i = 0; i < entries; ++i)
            for (int l = 0; l < L; ++l) total[i] += double(acc.data[i * L + l]);
    }

    // Horizontal boxes of one row of dY: B_w(x) = dY(x) + ... + dY(x + w - 1), shifted right by `pad`.
    void box_row(const T* dy, int64_t i) {
        for (size_t slot = 0; slot < cols.widths.size(); ++slot) {
            const int64_t w = cols.widths[slot], from = (pad - (w - 1) * pixel) / L * L;
            T* out = d.data + slot * d_plane + i * d_row;
            if (w == 1) std::memcpy(out + pad, dy, s.W * pixel * sizeof(T));
            const T* sum = nullptr;
            for (const Sum::Part& part : cols.sums[slot].parts) {
                const T* box = d.data + part.slot * d_plane + i * d_row;
                if (sum) add_shifted(out, sum, box, part.offset * pixel, from);
                sum = sum ? out : box;
            }
        }
    }
    // out(x) = a(x) + b(x + shift) from x = `from` to the end of the map.
    void add_shifted(T* out, const T* a, const T* b, int64_t shift, int64_t from) {
        for (int64_t x = from; x < pad + s.W * pixel; x += L) store(out + x, load(a + x) + load(b + x + shift));
    }

    void accumulate(int64_t y, int64_t count) {
        int64_t a0 = 0, a1 = rows.cells();
        while (y + count - 1 + rows.end(a0) <= 0) ++a0;
        while (y + rows.start[a1 - 1] >= s.H) --a1;
        for (int64_t a = a0; a < a1; ++a) row_pointers[a] = boxes.row(rows.slot[a], y + rows.start[a]);
        const int64_t vectors = count * (plan.row_size / L), ld = cols.cells() * L;
        for (int64_t a = a0, na; a < a1; a += na) {
            na = std::min<int64_t>(GRAD_TILE, a1 - a);
            for (int64_t b = 0, nb; b < cols.cells(); b += nb) {
                nb = std::min<int64_t>(GRAD_TILE, cols.cells() - b);
                // Of lanes, the pixels at which one of the d_b is not zero.
                const int64_t v0 = plan.lanes ? std::max<int64_t>(0, cols.start[b]) : 0;
                const int64_t v1 = plan.lanes ? std::min(s.W, s.W - 1 + cols.end(b + nb - 1)) : vectors;
                T* target = acc.data + a * ld + b * L;
                const T* const* r = &row_pointers[a];
                const T* const* e = &d_pointers[b];
                with_constant<GRAD_TILE>(na, [&](auto a_tile) {
                    with_constant<GRAD_TILE>(nb, [&](auto b_tile) {
                        outer<T, a_tile, b_tile>(r, e, position.data(), v0, v1, target, ld);
                    });
                });
            }
        }
    }
};

// Images, and bands of few images, are summed in a fixed number of partial sums, so that the result does not depend on the
// number of threads.
constexpr int64_t PARTIAL_SUMS = 16, LEAST_TASKS = 4;

template <class IO>
static void theta_grad(const IO* x_data, const int64_t* x_stride, const IO* dy_data, const int64_t* dy_stride, double* out,
                       const Shape& s, int64_t cells, const int64_t* widths, int threads) {
    using T = Compute<IO>;
    const Image<const IO> x{x_data, x_stride}, dy{dy_data, dy_stride};
    const Axis rows(widths, cells, s.H), cols(widths, cells, s.W);
    const int64_t row_bytes =
        int64_t(cols.widths.size()) * ThetaGrad<T>::row_length(cols, round_up(s.W, Simd<T>::size), 1) * sizeof(T);
    const int64_t images = std::min(s.N, PARTIAL_SUMS);
    const Shape split{images, s.C, s.H, s.W};
    const Plan<T> plan = suits_lanes<T>(s, rows, cols) ? lanes_plan<T>(split, LEAST_TASKS)
                                                 : planes_plan<T>(split, rows, row_bytes, !x.planar() || !dy.planar(), threads);
    const int64_t slices = plan.lanes ? std::clamp<int64_t>(LEAST_TASKS / (images * plan.groups), 1, plan.bands) : 1;
    const int64_t parts = images * slices, entries = rows.cells() * cols.cells(), lanes = plan.pixel();
    const int64_t channels = round_up(s.C, lanes);
    std::vector<double> partial(parts * channels * entries, 0.0);
    share_tasks(parts * plan.groups, threads, [&](int64_t begin, int64_t end) {
        ThetaGrad<T> worker(s, rows, cols, plan);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t part = task / plan.groups, c = task % plan.groups * plan.group;
            for (int64_t n = part / slices; n < s.N; n += images)
                for (int64_t y0 = part % slices * plan.band; y0 < s.H; y0 += slices * plan.band)
                    worker.add(x, dy, n, c, y0, std::min(s.H, y0 + plan.band),
                               partial.data() + (part * channels + c) * entries);
        }
    });
    std::fill(out, out + s.C * cells * cells, 0.0);
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t c = 0; c < s.C; ++c) {
            const double* from = partial.data() + (part * channels + c / lanes * lanes) * entries + c % lanes;
            for (int64_t a = 0; a < rows.cells(); ++a)
                for (int64_t b = 0; b < cols.cells(); ++b)
                    out[(c * cells + rows.index[a]) * cells + cols.index[b]] += from[(a * cols.cells() + b) * lanes];
        }
}
