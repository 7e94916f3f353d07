// The output.
#pragma once

#include <cstdint>

#include "forward_lanes.h"
#include "forward_planes.h"

template <class IO>
static void forward(const IO* x_data, const int64_t* x_stride, const Compute<IO>* theta, const Compute<IO>* bias, IO* y_data,
                    const int64_t* y_stride, const Shape& s, int64_t cells, const int64_t* widths, int threads) {
    const Image<const IO> x{x_data, x_stride};
    const Image<IO> y{y_data, y_stride};
    const Axis rows(widths, cells, s.H), cols(widths, cells, s.W);
    const auto run = suits_lanes<Compute<IO>>(s, rows, cols) ? forward_lanes<IO> : forward_planes<IO>;
    run(x, theta, bias, y, s, rows, cols, cells, threads);
}
