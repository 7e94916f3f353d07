// Turns a number that is known at run time into one that is known at compile time.
#pragma once

#include <cstdint>
#include <type_traits>

// Calls run(std::integral_constant<int, n>{}), with MOST for any larger n; n is at least 1.
template <int MOST, class Run> [[gnu::always_inline]] inline void with_constant(int64_t n, const Run& run) {
    if constexpr (MOST > 1)
        if (n < MOST) return with_constant<MOST - 1>(n, run);
    run(std::integral_constant<int, MOST>{});
}
