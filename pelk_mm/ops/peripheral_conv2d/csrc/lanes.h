// A tensor of images with any strides: bands of rows are read into scratch memory in which a vector holds one pixel of
// neighbouring channels, and written back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "image.h"
#include "numbers.h"
#include "simd.h"
#include "transpose.h"

// Calls run(std::integral_constant<int, B>{}, from) for the B lanes from `from` on, B a power of two, so that the first n are
// covered: once, or twice with an overlap. n is at least SMALLEST_BLOCK.
template <int MOST, class Run> static inline void cover(int64_t n, const Run& run) {
    if (n >= MOST) {
        run(std::integral_constant<int, MOST>{}, int64_t(0));
        if (n > MOST) run(std::integral_constant<int, MOST>{}, n - MOST);
    } else if constexpr (MOST > SMALLEST_BLOCK) {
        cover<MOST / 2>(n, run);
    }
}

// A vector of values that are stored in another type.
template <int B, class T, class IO> static inline typename Lanes<T, B>::type widen(const IO* from) {
    T values[B];
    for (int i = 0; i < B; ++i) values[i] = to_compute(from[i]);
    typename Lanes<T, B>::type vector;
    std::memcpy(&vector, values, sizeof vector);
    return vector;
}
template <int B, class T, class IO> static inline void narrow(typename Lanes<T, B>::type vector, IO* to) {
    T values[B];
    std::memcpy(values, &vector, sizeof values);
    for (int i = 0; i < B; ++i) to[i] = from_compute<IO, T>(values[i]);
}

// Transposes L x L elements.
template <class T> static inline void transpose_block(const T* from, T* to) {
    constexpr int L = Simd<T>::size;
    V<T> rows[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) rows[i] = load(from + i * L);
    transpose(rows);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) store(to + i * L, rows[i]);
}

// Reads `pixels` pixels that are neighbours in memory, of `count` planes with a distance of `plane`; further lanes become zero.
template <class T, class IO>
static void read_lanes_of_planes(const IO* in, int64_t plane, int64_t count, int64_t pixels, T* out) {
    constexpr int L = Simd<T>::size;
    T block[L * L] = {};
    int64_t i = 0;
    for (; i + L <= pixels; i += L) {
        for (int64_t k = 0; k < std::min<int64_t>(count, L); ++k) store(block + k * L, widen<L, T>(in + k * plane + i));
        transpose_block(block, out + i * L);
    }
    for (; i < pixels; ++i)
        for (int k = 0; k < L; ++k) out[i * L + k] = k < count ? to_compute(in[k * plane + i]) : T(0);
}

template <class T, class IO>
static void write_lanes_of_planes(const T* in, int64_t plane, int64_t count, int64_t pixels, IO* out) {
    constexpr int L = Simd<T>::size;
    T block[L * L];
    int64_t i = 0;
    for (; i + L <= pixels; i += L) {
        transpose_block(in + i * L, block);
        for (int64_t k = 0; k < count; ++k) narrow<L, T>(load(block + k * L), out + k * plane + i);
    }
    for (; i < pixels; ++i)
        for (int64_t k = 0; k < count; ++k) out[k * plane + i] = from_compute<IO, T>(in[i * L + k]);
}

// Reads rows [y0, y1) of `count` channels from c into rows of row_size elements; the rest of a row, and lanes without a
// channel, become zero.
template <class IO, class T>
static void read_lanes(const Image<const IO>& x, int64_t n, int64_t c, int64_t count, int64_t y0, int64_t y1, int64_t W, T* out,
                       int64_t row_size) {
    constexpr int L = Simd<T>::size;
    const int64_t sc = x.stride[1], sw = x.stride[3];
    if (x.planar() && x.stride[2] == W && row_size == W * L)
        return read_lanes_of_planes(x.at(n, c, y0), sc, count, (y1 - y0) * W, out);
    for (int64_t y = y0; y < y1; ++y, out += row_size) {
        const IO* row = x.at(n, c, y);
        std::fill(out + W * L, out + row_size, T(0));
        if (x.planar()) {
            read_lanes_of_planes(row, sc, count, W, out);
            continue;
        }
        if (count < L) std::fill(out, out + W * L, T(0));
        if (sc == 1 && count >= SMALLEST_BLOCK)
            cover<L>(count, [&](auto lanes, int64_t from) {
                for (int64_t i = 0; i < W; ++i) {
                    const auto values = widen<lanes, T>(row + i * sw + from);
                    std::memcpy(out + i * L + from, &values, sizeof values);
                }
            });
        else
            for (int64_t i = 0; i < W; ++i)
                for (int64_t k = 0; k < count; ++k) out[i * L + k] = to_compute(row[i * sw + k * sc]);
    }
}

// Writes rows [y0, y1) of `count` channels from c: the inverse of read_lanes.
template <class IO, class T>
static void write_lanes(const Image<IO>& y, int64_t n, int64_t c, int64_t count, int64_t y0, int64_t y1, int64_t W, const T* in,
                        int64_t row_size) {
    constexpr int L = Simd<T>::size;
    const int64_t sc = y.stride[1], sw = y.stride[3];
    if (y.planar() && y.stride[2] == W && row_size == W * L)
        return write_lanes_of_planes(in, sc, count, (y1 - y0) * W, y.at(n, c, y0));
    for (int64_t i = y0; i < y1; ++i, in += row_size) {
        IO* row = y.at(n, c, i);
        if (y.planar())
            write_lanes_of_planes(in, sc, count, W, row);
        else if (sc == 1 && count >= SMALLEST_BLOCK)
            cover<L>(count, [&](auto lanes, int64_t from) {
                for (int64_t j = 0; j < W; ++j) {
                    typename Lanes<T, lanes>::type values;
                    std::memcpy(&values, in + j * L + from, sizeof values);
                    narrow<lanes, T>(values, row + j * sw + from);
                }
            });
        else
            for (int64_t j = 0; j < W; ++j)
                for (int64_t k = 0; k < count; ++k) row[j * sw + k * sc] = from_compute<IO, T>(in[j * L + k]);
    }
}
