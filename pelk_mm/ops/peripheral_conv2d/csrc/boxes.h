// Step 1: the vertical boxes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "axis.h"
#include "buffer.h"
#include "simd.h"

// Vertical boxes: for each distinct width w of the axis, rows [first, end) of B_w(y) = X(y) + ... + X(y + w - 1), each of
// row_size elements. Rows without a row of the map are zero; without `margins` they are not written, as no one reads them.
template <class T> struct Boxes {
    const Axis& axis;
    const int64_t H, row_size, capacity;
    const bool margins;
    int64_t first = 0, end = 0;
    Buffer<T> data;

    Boxes(const Axis& axis, int64_t H, int64_t row_size, int64_t out_rows, bool margins)
        : axis(axis), H(H), row_size(row_size), capacity(most_rows(axis, H, out_rows)), margins(margins),
          data(int64_t(axis.widths.size()) * capacity * row_size + Simd<T>::size) {}

    static int64_t most_rows(const Axis& axis, int64_t H, int64_t out_rows) {
        return std::max(out_rows + axis.last(), std::min(H, out_rows + axis.end(axis.cells() - 1))) - axis.first();
    }
    T* row(int64_t slot, int64_t y) const { return data.data + (slot * capacity + y - first) * row_size; }

    // For the outputs of rows [y0, y1). To be called first; rows [low(1), high()) of the map are then put to row(0, y).
    void start(int64_t y0, int64_t y1) {
        first = y0 + axis.first();
        end = std::max(y1 + axis.last(), std::min(H, y1 - 1 + axis.end(axis.cells() - 1)));
    }
    // The rows of B_w in which there is a row of the map.
    int64_t low(int64_t w) const { return std::clamp<int64_t>(-w + 1, first, end); }
    int64_t high() const { return std::min(H, end); }

    void sum() {
        for (size_t slot = 0; slot < axis.widths.size(); ++slot) {
            const int64_t w = axis.widths[slot];
            if (margins) zero(slot, first, low(w)), zero(slot, high(), end);
            for (int64_t y = low(w); w > 1 && y < high(); ++y) {
                T* out = row(slot, y);
                const T* sum = nullptr;
                if ((w & (w - 1)) == 0) {
                    sum = add(out, inside(slot - 1, y), inside(slot - 1, y + w / 2));
                } else {
                    int64_t offset = y;
                    for (int level = axis.levels; level >= 0; --level)
                        if (w >> level & 1) {
                            sum = add(out, sum, inside(level, offset));
                            offset += int64_t(1) << level;
                        }
                }
                if (sum != out) std::memcpy(out, sum, row_size * sizeof(T));
            }
        }
    }

  private:
    // A row of a sum, or null where it is known to be zero or is not needed by any output.
    const T* inside(int64_t slot, int64_t y) const {
        return y > -axis.widths[slot] && y < high() ? row(slot, y) : nullptr;
    }
    void zero(int64_t slot, int64_t from, int64_t to) {
        if (to > from) std::memset(row(slot, from), 0, (to - from) * row_size * sizeof(T));
    }
    // Returns where a + b is: in `out`, or if one of them is null, the other one.
    const T* add(T* out, const T* a, const T* b) {
        if (!a || !b) return a ? a : b;
        for (int64_t i = 0; i < row_size; i += Simd<T>::size) store(out + i, load(a + i) + load(b + i));
        return out;
    }
};
