// Types that tensors are stored in, and their conversion from and to the type that is computed in.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

static inline float as_float(uint32_t u) { float f; std::memcpy(&f, &u, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t u; std::memcpy(&u, &f, 4); return u; }

static inline float to_compute(float v) { return v; }
static inline double to_compute(double v) { return v; }
static inline float to_compute(bfloat16 v) { return as_float(uint32_t(v.bits) << 16); }
static inline float to_compute(float16 v) {
    const uint32_t magnitude = uint32_t(v.bits & 0x7fff) << 13;
    // Rebias the exponent by a product, which is exact and handles subnormals; infinity and NaN keep the full exponent.
    const uint32_t finite = as_bits(as_float(magnitude) * as_float(0x77800000u));
    const uint32_t special = magnitude | 0x7f800000u;
    return as_float((magnitude >= 0x0f800000u ? special : finite) | uint32_t(v.bits & 0x8000) << 16);
}

template <class IO, class T> static inline IO from_compute(T v);
template <> inline float from_compute<float, float>(float v) { return v; }
template <> inline double from_compute<double, double>(double v) { return v; }
template <> inline bfloat16 from_compute<bfloat16, float>(float v) {
    const uint32_t u = as_bits(v);
    const uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return {uint16_t((u & 0x7fffffff) > 0x7f800000u ? 0x7fc0 | (u >> 16 & 0x8000) : rounded)};
}
template <> inline float16 from_compute<float16, float>(float v) {
    const uint32_t u = as_bits(v), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    // Subnormal results: adding 0.5 leaves the rounded mantissa in the low bits.
    const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude + 0xc8000fffu + (magnitude >> 13 & 1)) >> 13;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00 : 0x7c00;
    const uint32_t half = magnitude >= 0x477ff000u ? special : magnitude < 0x38800000u ? subnormal : normal;
    return {uint16_t(sign | half)};
}

template <class IO> using Compute = std::conditional_t<std::is_same<IO, double>::value, double, float>;
