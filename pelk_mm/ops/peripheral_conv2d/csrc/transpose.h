// Transposes of square blocks in registers.
#pragma once

#include <utility>

#if defined(__clang__) || __GNUC__ >= 12
template <class U, int... I> static inline U shuffle(U a, U b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, I...);
}
#else
template <class U, int... I> static inline U shuffle(U a, U b, std::integer_sequence<int, I...>) {
    typedef decltype(a == b) Mask;
    return __builtin_shuffle(a, b, Mask{I...});
}
#endif

// Exchanges the off-diagonal blocks of side B of the 2x2 block matrices made of rows a and b.
template <int B, int HIGH, int... I> constexpr auto butterfly(std::integer_sequence<int, I...>) {
    constexpr int n = sizeof...(I);
    return std::integer_sequence<int, (I / B % 2 == 0 ? I + (HIGH ? B : 0) : I - (HIGH ? 0 : B) + n)...>{};
}
template <int B, class U, int N> static inline void transpose_level(U (&rows)[N]) {
    using Lanes = std::make_integer_sequence<int, N>;
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i)
        if (i / B % 2 == 0) {
            const U a = rows[i], b = rows[i + B];
            rows[i] = shuffle(a, b, butterfly<B, 0>(Lanes{}));
            rows[i + B] = shuffle(a, b, butterfly<B, 1>(Lanes{}));
        }
    if constexpr (B > 1) transpose_level<B / 2>(rows);
}
template <class U, int N> static inline void transpose(U (&rows)[N]) {
    if constexpr (N > 1) transpose_level<N / 2>(rows);
}
