// Step 1: the vertical boxes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "axis.h"
#include "buffer.h"
#include "simd.h"

// Vertical boxes of one plane: for each distinct width w of the axis, rows [first, first + rows) of
// B_w(y) = X(y) + ... + X(y + w - 1), each of row_size elements, zero outside the map.
template <class T> struct Boxes {
    const Axis& axis;
    int64_t H, row_size, capacity, first = 0, rows = 0;
    Buffer<T> data;

    Boxes(const Axis& axis, int64_t H, int64_t row_size, int64_t out_rows)
        : axis(axis), H(H), row_size(row_size), capacity(most_rows(axis, H, out_rows)),
          data(int64_t(axis.widths.size()) * capacity * row_size + Simd<T>::size) {}

    static int64_t most_rows(const Axis& axis, int64_t H, int64_t out_rows) {
        return std::max(out_rows + axis.last(), std::min(H, out_rows + axis.end(axis.cells() - 1))) - axis.first();
    }
    T* plane(int64_t slot) const { return data.data + slot * capacity * row_size; }
    T* row(int64_t slot, int64_t y) const { return plane(slot) + (y - first) * row_size; }

    // For the outputs of rows [y0, y1). `source` holds the rows of the map from `source_first` on.
    void build(const T* source, int64_t source_first, int64_t y0, int64_t y1) {
        first = y0 + axis.first();
        const int64_t end = std::max(y1 + axis.last(), std::min(H, y1 - 1 + axis.end(axis.cells() - 1)));
        rows = end - first;
        for (size_t slot = 0; slot < axis.widths.size(); ++slot) {
            const int64_t w = axis.widths[slot];
            const bool power = (w & (w - 1)) == 0;
            const int64_t low = std::clamp<int64_t>(-w + 1, first, end), high = std::clamp<int64_t>(H, low, end);
            zero(slot, first, low), zero(slot, high, end);
            for (int64_t y = low; y < high; ++y) {
                if (w == 1) {
                    std::memcpy(row(slot, y), source + (y - source_first) * row_size, row_size * sizeof(T));
                } else if (power) {
                    add(row(slot, y), row(slot - 1, y), below(slot - 1, y + w / 2, end));
                } else {
                    int64_t offset = y;
                    bool started = false;
                    for (int level = axis.levels; level >= 0; --level)
                        if (w >> level & 1) {
                            const T* box = below(level, offset, end);
                            if (!started) std::memcpy(row(slot, y), row(level, offset), row_size * sizeof(T));
                            else add(row(slot, y), row(slot, y), box);
                            started = true;
                            offset += int64_t(1) << level;
                        }
                }
            }
        }
    }

  private:
    // Row y of a plane, or null where it is known to be zero or is not needed by any output.
    const T* below(int64_t slot, int64_t y, int64_t end) const { return y < std::min(end, H) ? row(slot, y) : nullptr; }
    void zero(int64_t slot, int64_t from, int64_t to) {
        if (to > from) std::memset(row(slot, from), 0, (to - from) * row_size * sizeof(T));
    }
    void add(T* out, const T* a, const T* b) {
        if (!b) {
            if (out != a) std::memcpy(out, a, row_size * sizeof(T));
            return;
        }
        for (int64_t i = 0; i < row_size; i += Simd<T>::size) store(out + i, load(a + i) + load(b + i));
    }
};
