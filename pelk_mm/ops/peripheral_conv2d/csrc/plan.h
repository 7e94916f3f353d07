// How a map is cut into tasks that fit the caches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "axis.h"
#include "simd.h"

// A thread's working set should stay in its share of the level-2 and level-1 caches.
constexpr int64_t PLANES_BYTES = 1 << 20, LANES_BYTES = 3 << 19, CHUNK_BYTES = 24 << 10, GROUP_BYTES = 3 << 19;
// Rows and planes whose distance is a large power of two would all fall into the same few lines of a cache.
constexpr int64_t CACHE_LINE_BYTES = 64, ALIAS_BYTES = 2048;
constexpr int64_t LEAST_BAND = 8;
// Rows that are read or written at a time where a vector holds channels.
constexpr int64_t STEP = 8;
// Register tiles: MIX_X vectors of pixels times at most MIX_B columns of theta, GRAD_TILE**2 entries of dtheta.
constexpr int MIX_X = REGISTERS == 32 ? 4 : 2, MIX_B = 6, GRAD_TILE = REGISTERS == 32 ? 5 : 3;

struct Shape { int64_t N, C, H, W; };

// How a thread cuts the map: groups of channels, bands of output rows, chunks of rows within a band. There are two forms:
//
//   planes  a vector holds neighbouring columns of one channel; rows are padded to full vectors
//   lanes   a vector holds the same pixel of L neighbouring channels. Nothing is padded along the map, columns are shifted
//           by full vectors, and cells that lie outside are skipped by the row and the pixel; but the boxes of a row take
//           L times the memory, so that wide maps do not fit the cache
template <class T> struct Plan {
    bool lanes;
    int64_t row_size, group, groups, band, bands, chunk;
    int64_t in_plane, out_plane;   // elements of a plane of a band of inputs, with the halo, and of outputs

    int64_t pixel() const { return lanes ? Simd<T>::size : 1; }   // elements between neighbouring columns
    int64_t plane_size(int64_t height) const { return height * row_size + CACHE_LINE_BYTES / int64_t(sizeof(T)); }
    void cut_rows(int64_t H, int64_t most) {
        bands = (H + most - 1) / most;
        band = (H + bands - 1) / bands;
    }
};

// Whether lanes fit the cache and have less to multiply than planes: lanes without a channel count, columns beyond the map and
// cells that lie outside do not.
template <class T> static bool suits_lanes(const Shape& s, const Axis& rows, const Axis& cols) {
    constexpr int64_t L = Simd<T>::size;
    int64_t height = STEP;
    for (const Sum& sum : rows.sums) height += std::min(s.H + sum.width, sum.rows());
    const double in_lanes = double(round_up(s.C, L)) * rows.pairs(s.H) * cols.pairs(s.W);
    const double in_planes = double(s.C) * s.H * rows.cells() * round_up(s.W, L) * cols.cells();
    return in_lanes <= in_planes && height * s.W * VECTOR_BYTES <= LANES_BYTES;
}

template <class T> static Plan<T> lanes_plan(const Shape& s, int64_t least_tasks) {
    constexpr int64_t L = Simd<T>::size;
    Plan<T> plan{};
    plan.lanes = true, plan.group = L, plan.groups = (s.C + L - 1) / L, plan.chunk = 1;
    plan.row_size = (s.W + (s.W * VECTOR_BYTES % ALIAS_BYTES == 0)) * L;
    plan.cut_rows(s.H, std::clamp(s.H * s.N * plan.groups / least_tasks, std::min(s.H, LEAST_BAND), s.H));
    return plan;
}

template <class T>
static Plan<T> planes_plan(const Shape& s, const Axis& rows, int64_t chunk_row_bytes, bool interleaved, int threads) {
    constexpr int64_t L = Simd<T>::size;
    Plan<T> plan{};
    plan.row_size = round_up(s.W, L);
    const int64_t row_bytes = plan.row_size * sizeof(T), halo = rows.end(rows.cells() - 1) - rows.first();
    const int64_t fit = PLANES_BYTES / (row_bytes * int64_t(rows.widths.size())) - halo;
    plan.cut_rows(s.H, std::min(s.H, std::max<int64_t>({fit, halo / 2, LEAST_BAND})));
    plan.group = interleaved ? L : 1;
    const int64_t plane = (2 * plan.band + halo) * row_bytes;
    const auto groups = [&] { return (s.C + plan.group - 1) / plan.group; };
    while (plan.group > 4 && (plan.group * plane > GROUP_BYTES || s.N * plan.bands * groups() < 2 * threads)) plan.group /= 2;
    plan.groups = groups();
    plan.chunk = std::clamp<int64_t>(CHUNK_BYTES / chunk_row_bytes, 1, plan.band);
    plan.in_plane = plan.plane_size(std::min(s.H, plan.band + halo)), plan.out_plane = plan.plane_size(plan.band);
    return plan;
}
