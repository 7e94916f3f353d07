// Scratch memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "simd.h"

#ifdef PELK_FAIL_ALLOCATIONS
// For tests: the number of buffers that can be allocated before allocation fails.
extern "C" std::atomic<int64_t> pelk_buffers_left;
std::atomic<int64_t> pelk_buffers_left{INT64_MAX};
#endif

template <class T> struct Buffer {   // aligned, not initialised; what must be zero is set by its user
    T* data = nullptr;
    explicit Buffer(int64_t size) {
#ifdef PELK_FAIL_ALLOCATIONS
        if (pelk_buffers_left-- <= 0) throw std::bad_alloc();
#endif
        data = static_cast<T*>(std::aligned_alloc(64, round_up(size * int64_t(sizeof(T)), 64)));
        if (!data) throw std::bad_alloc();
#ifdef PELK_POISON
        std::memset(data, 0xff, round_up(size * int64_t(sizeof(T)), 64));
#endif
    }
    ~Buffer() { std::free(data); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
};
