// Vectors of the widest kind that the machine has, by the compilers' vector types: AVX-512, AVX2, SSE and NEON from one source.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, REGISTERS = 32;
#else
constexpr int VECTOR_BYTES = 16, REGISTERS = 16;
#endif

template <class T> struct Simd {
    typedef T type __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int size = VECTOR_BYTES / sizeof(T);
};
template <class T> using V = typename Simd<T>::type;

template <class T> static inline V<T> load(const T* p) {
    V<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class T> static inline void store(T* p, V<T> v) { std::memcpy(p, &v, sizeof v); }

static inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
