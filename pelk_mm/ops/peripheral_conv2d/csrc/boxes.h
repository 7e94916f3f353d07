// Step 1: the vertical boxes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "axis.h"
#include "buffer.h"
#include "simd.h"

// Vertical boxes: for each distinct width w of the axis, rows of B_w(y) = X(y) + ... + X(y + w - 1), of row_size elements
// each. They are computed from the top to the bottom of a band.
//
// Kept are the rows of the complete band, `step` = 0, or only those that a row of the output needs. Then rows that do not
// touch the map must not be read; else they are zero. X is read `step` rows at a time.
template <class T> struct Boxes {
    const Axis& axis;
    const int64_t H, row_size, step;
    int64_t top = 0, time = 0, read_to = 0, high = 0;
    std::vector<int64_t> places, sizes;   // by width: where its rows begin in `data`, and how many there are
    Buffer<T> data;

    Boxes(const Axis& axis, int64_t H, int64_t row_size, int64_t band, int64_t step)
        : axis(axis), H(H), row_size(row_size), step(step), data(layout(band) * row_size + Simd<T>::size) {}

    // Begins with the outputs of rows [y0, y1). They need rows [low(), high) of the map.
    void start(int64_t y0, int64_t y1) {
        top = y0 + axis.first();
        time = top - axis.sums[0].last;
        read_to = low();
        high = std::min(H, y1 + axis.sums[0].last);
    }
    int64_t low() const { return std::max<int64_t>(0, top); }

    // Computes what the output of row y needs. read(from, to, out) puts rows of the map to `out`.
    template <class Read> void advance(int64_t y, const Read& read) {
        for (; time <= y; ++time)
            for (int64_t slot = 0; slot < int64_t(axis.sums.size()); ++slot) {
                const int64_t i = time + axis.sums[slot].last;
                if (i < top) continue;
                if (!touches(slot, i)) {
                    if (step == 0) std::memset(row(slot, i), 0, row_size * sizeof(T));
                } else if (slot > 0) {
                    sum(slot, i);
                } else if (i == read_to) {
                    read_to = step ? std::min(high, i + step) : high;
                    read(i, read_to, row(0, i));
                }
            }
    }
    T* row(int64_t slot, int64_t y) const {
        const int64_t i = y - (step ? std::max(top, 1 - axis.widths[slot]) : top);
        return data.data + (places[slot] + (i < sizes[slot] ? i : i % sizes[slot])) * row_size;
    }

  private:
    int64_t layout(int64_t band) {
        int64_t total = 0;
        for (const Sum& sum : axis.sums) {
            places.push_back(total);
            sizes.push_back(step ? sum.rows() : band + sum.last - axis.first());
            if (step && sum.width == 1) sizes.back() = (sizes.back() + 2 * step - 2) / step * step;
            total += sizes.back();
        }
        return total;
    }
    // Whether a row of a sum holds a row of the map.
    bool touches(int64_t slot, int64_t y) const { return y > -axis.widths[slot] && y < H; }
    void sum(int64_t slot, int64_t y) {
        T* out = row(slot, y);
        const T* total = nullptr;
        for (const Sum::Part& part : axis.sums[slot].parts)
            if (touches(part.slot, y + part.offset)) {
                const T* box = row(part.slot, y + part.offset);
                total = total ? add(out, total, box) : box;
            }
        if (total != out) std::memcpy(out, total, row_size * sizeof(T));
    }
    const T* add(T* out, const T* a, const T* b) {
        for (int64_t i = 0; i < row_size; i += Simd<T>::size) store(out + i, load(a + i) + load(b + i));
        return out;
    }
};
