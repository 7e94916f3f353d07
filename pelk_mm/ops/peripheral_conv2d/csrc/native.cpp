// Peripheral depthwise convolution on CPUs: forward and the gradient of the stored kernel. See README.md for the derivation.
//
// Compiled at first use with the installed C++17 compiler (GCC or Clang); needs only standard headers. SIMD is
// by the compilers' vector types, so the same source serves AVX-512, AVX2, SSE and NEON.
//
// Notation: cell a of the rows covers taps [start[a], start[a] + width[a]), measured from the kernel's centre; likewise b for
// the columns. One plane is one channel of one image.
//
//   r_a(y, x)   = sum of X(y + i, x) over the taps i of cell a                       vertical boxes
//   t_b(y, x)   = sum over a of theta[a][b] * r_a(y, x)                              a small matrix product per plane
//   out(y, x)   = sum over b and the taps i of cell b of t_b(y, x + i)               horizontal boxes
//
//   dtheta[a][b] = sum over y, x of r_a(y, x) * d_b(y, x),   d_b(y, x) = sum of dY(y, x - i) over the taps i of cell b
//
// A box of 2n taps is the sum of two boxes of n taps: nothing is ever subtracted, so nothing cancels, and a NaN reaches
// exactly the outputs that a dense convolution would let it reach.

#include "forward.h"
#include "theta_grad.h"

// Returns 0, or 1 if scratch memory could not be allocated: no exception may leave a C function.
template <class Run> static int status_of(const Run& run) {
    try {
        run();
        return 0;
    } catch (...) {
        return 1;
    }
}

// Compiled once for each compute type: -DPELK_DOUBLE gives the double one.
#define PELK_EXPORT(NAME, IO)                                                                                                \
    extern "C" int pelk_forward_##NAME(const IO* x, const int64_t* xs, const Compute<IO>* theta, const Compute<IO>* bias,     \
                                       IO* y, const int64_t* ys, const int64_t* shape, int64_t cells, const int64_t* widths, \
                                       int threads) {                                                                        \
        const Shape s{shape[0], shape[1], shape[2], shape[3]};                                                               \
        return status_of([&] { forward<IO>(x, xs, theta, bias, y, ys, s, cells, widths, threads); });                        \
    }                                                                                                                        \
    extern "C" int pelk_theta_grad_##NAME(const IO* x, const int64_t* xs, const IO* dy, const int64_t* dys, double* out,     \
                                          const int64_t* shape, int64_t cells, const int64_t* widths, int threads) {         \
        const Shape s{shape[0], shape[1], shape[2], shape[3]};                                                               \
        return status_of([&] { theta_grad<IO>(x, xs, dy, dys, out, s, cells, widths, threads); });                           \
    }

#ifdef PELK_DOUBLE
PELK_EXPORT(float64, double)
#else
PELK_EXPORT(float32, float)
PELK_EXPORT(bfloat16, bfloat16)
PELK_EXPORT(float16, float16)
#endif
