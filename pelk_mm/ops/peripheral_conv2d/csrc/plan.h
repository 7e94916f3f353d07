// How a map is cut into tasks that fit the caches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "axis.h"
#include "simd.h"

// A thread's working set should stay in its share of the level-2 and level-1 caches.
constexpr int64_t PLANES_BYTES = 1 << 20, CHUNK_BYTES = 24 << 10, GROUP_BYTES = 3 << 19;
// Planes whose distance is a large power of two would all fall into the same few lines of a cache.
constexpr int64_t CACHE_LINE_BYTES = 64;

struct Shape { int64_t N, C, H, W; };

// How a thread cuts the map: groups of channels, bands of output rows, chunks of rows within a band.
template <class T> struct Plan {
    int64_t row_size, group, band, chunk, groups, bands;
    int64_t in_plane, out_plane;   // elements of a plane of a band of inputs, with the halo, and of outputs

    Plan(const Shape& s, const Axis& rows, int64_t chunk_row_bytes, bool interleaved, int threads) {
        constexpr int L = Simd<T>::size;
        row_size = round_up(s.W, L);
        const int64_t row_bytes = row_size * sizeof(T), halo = rows.end(rows.cells() - 1) - rows.first();
        const int64_t fit = PLANES_BYTES / (row_bytes * int64_t(rows.widths.size())) - halo;
        band = std::min(s.H, std::max<int64_t>({fit, halo / 2, 8}));
        bands = (s.H + band - 1) / band;
        band = (s.H + bands - 1) / bands;
        group = 1;
        if (interleaved) {
            const int64_t plane = (2 * band + halo) * row_bytes;
            group = L;
            while (group > 4 && (group * plane > GROUP_BYTES || s.N * bands * ((s.C + group - 1) / group) < 2 * threads))
                group /= 2;
        }
        groups = (s.C + group - 1) / group;
        chunk = std::clamp<int64_t>(CHUNK_BYTES / chunk_row_bytes, 1, band);
        in_plane = plane_size(std::min(s.H, band + halo)), out_plane = plane_size(band);
    }
    int64_t plane_size(int64_t height) const { return height * row_size + CACHE_LINE_BYTES / int64_t(sizeof(T)); }
};
