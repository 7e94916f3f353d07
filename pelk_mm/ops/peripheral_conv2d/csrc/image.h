// A tensor of images with any strides: rows are read into planes and written back.
//
// Square blocks of channels and pixels of channels-last memory are transposed, of a vector's size as long as there are so many
// channels left, then of half, down to SMALLEST_BLOCK; the last channels are copied one by one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "numbers.h"
#include "simd.h"
#include "transpose.h"

constexpr int SMALLEST_BLOCK = 4;

template <class T, int B> struct Lanes { typedef T type __attribute__((vector_size(B * sizeof(T)))); };

template <class IO> struct Image {   // strides in elements: n, c, h, w
    IO* data;
    const int64_t* stride;
    IO* at(int64_t n, int64_t c, int64_t y) const { return data + n * stride[0] + c * stride[1] + y * stride[2]; }
    bool planar() const { return stride[3] == 1; }
    bool channels_last() const { return stride[1] == 1 && stride[3] != 1; }
};

// Reads the channels-last pixels of a row into planes, channels from k on as far as blocks of B fit, and returns where they
// end. The last block of pixels may write beyond W.
template <int B, class IO, class T>
static int64_t read_blocks(const IO* row, int64_t sw, int64_t k, int64_t count, int64_t W, T* out, int64_t plane) {
    using U = typename Lanes<T, B>::type;
    for (; k + B <= count; k += B)
        for (int64_t i0 = 0; i0 < W; i0 += B) {
            U block[B];
#pragma GCC unroll 16
            for (int i = 0; i < B; ++i) {
                const IO* pixel = row + std::min(i0 + i, W - 1) * sw + k;
                T values[B];
                for (int j = 0; j < B; ++j) values[j] = to_compute(pixel[j]);
                std::memcpy(&block[i], values, sizeof values);
            }
            transpose(block);
#pragma GCC unroll 16
            for (int j = 0; j < B; ++j) std::memcpy(out + (k + j) * plane + i0, &block[j], sizeof block[j]);
        }
    if constexpr (B / 2 >= SMALLEST_BLOCK) return read_blocks<B / 2>(row, sw, k, count, W, out, plane);
    return k;
}

// Reads row y of `count` channels from c into planes of `plane` elements; columns W ... row_size become zero.
template <class IO, class T>
static void read_row(const Image<const IO>& x, int64_t n, int64_t c, int64_t count, int64_t y, int64_t W, T* out,
                     int64_t plane, int64_t row_size) {
    const IO* row = x.at(n, c, y);
    const int64_t sc = x.stride[1], sw = x.stride[3];
    if (x.planar()) {
        for (int64_t k = 0; k < count; ++k) {
            for (int64_t i = 0; i < W; ++i) out[k * plane + i] = to_compute(row[k * sc + i]);
            std::fill(out + k * plane + W, out + k * plane + row_size, T(0));
        }
        return;
    }
    const int64_t k0 = x.channels_last() ? read_blocks<Simd<T>::size, IO, T>(row, sw, 0, count, W, out, plane) : 0;
    for (int64_t i = 0; i < W; ++i)
        for (int64_t k = k0; k < count; ++k) out[k * plane + i] = to_compute(row[k * sc + i * sw]);
    for (int64_t k = 0; k < count; ++k) std::fill(out + k * plane + W, out + k * plane + row_size, T(0));
}

// The inverse of read_blocks. The last block of pixels may read beyond W.
template <int B, class IO, class T>
static int64_t write_blocks(IO* row, int64_t sw, int64_t k, int64_t count, int64_t W, const T* in, int64_t plane) {
    using U = typename Lanes<T, B>::type;
    for (; k + B <= count; k += B)
        for (int64_t i0 = 0; i0 < W; i0 += B) {
            U block[B];
#pragma GCC unroll 16
            for (int j = 0; j < B; ++j) std::memcpy(&block[j], in + (k + j) * plane + i0, sizeof block[j]);
            transpose(block);
            const auto put = [&](int i) {
                T values[B];
                std::memcpy(values, &block[i], sizeof values);
                IO* pixel = row + (i0 + i) * sw + k;
                for (int j = 0; j < B; ++j) pixel[j] = from_compute<IO, T>(values[j]);
            };
            // With all of them known to the compiler, the block stays in registers.
            if (W - i0 >= B) {
#pragma GCC unroll 16
                for (int i = 0; i < B; ++i) put(i);
            } else {
                for (int i = 0; i < W - i0; ++i) put(i);
            }
        }
    if constexpr (B / 2 >= SMALLEST_BLOCK) return write_blocks<B / 2>(row, sw, k, count, W, in, plane);
    return k;
}

// Writes row y of `count` channels: the inverse of read_row.
template <class IO, class T>
static void write_row(const Image<IO>& y, int64_t n, int64_t c, int64_t count, int64_t row_index, int64_t W, const T* in,
                      int64_t plane) {
    IO* row = y.at(n, c, row_index);
    const int64_t sc = y.stride[1], sw = y.stride[3];
    if (y.planar()) {
        for (int64_t k = 0; k < count; ++k)
            for (int64_t i = 0; i < W; ++i) row[k * sc + i] = from_compute<IO, T>(in[k * plane + i]);
        return;
    }
    const int64_t k0 = y.channels_last() ? write_blocks<Simd<T>::size, IO, T>(row, sw, 0, count, W, in, plane) : 0;
    for (int64_t i = 0; i < W; ++i)
        for (int64_t k = k0; k < count; ++k) row[k * sc + i * sw] = from_compute<IO, T>(in[k * plane + i]);
}
