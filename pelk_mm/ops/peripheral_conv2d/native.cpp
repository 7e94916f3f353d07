// Peripheral depthwise convolution on CPUs: forward and the gradient of the stored kernel. See README.md for the derivation.
//
// Compiled at first use with whatever C++17 compiler is there (GCC or Clang); needs no header but the standard ones. SIMD is
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

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, REGISTERS = 32;
#else
constexpr int VECTOR_BYTES = 16, REGISTERS = 16;
#endif

// Register tiles: MIX_X vectors of pixels times at most MIX_B columns of theta; GRAD_TILE**2 entries of dtheta.
constexpr int MIX_X = REGISTERS == 32 ? 4 : 2, MIX_B = 6, GRAD_TILE = REGISTERS == 32 ? 5 : 3;
// What a thread works on at a time should stay in its share of the level-2 and level-1 caches.
constexpr int64_t PLANES_BYTES = 1 << 20, CHUNK_BYTES = 24 << 10, GROUP_BYTES = 3 << 19;
// Planes whose distance is a large power of two would all fall into the same few lines of a cache.
constexpr int64_t CACHE_LINE_BYTES = 64;

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

// ---- storage types ---------------------------------------------------------------------------------------------------

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

// ---- transposes between channels-last memory and planes --------------------------------------------------------------

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

// Square blocks of channels and pixels are transposed, of a vector's size as long as there are so many channels left, then
// of half, down to this; the last channels are copied one by one.
constexpr int SMALLEST_BLOCK = 4;

template <class T, int B> struct Lanes { typedef T type __attribute__((vector_size(B * sizeof(T)))); };

// ---- tensors ---------------------------------------------------------------------------------------------------------

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

// ---- one axis of the grid --------------------------------------------------------------------------------------------

struct Piece { int64_t offset; int level; int64_t cell; };   // 2**level taps from `offset`

// The cells that reach the map at all, in order, and their cut into boxes of powers of two.
struct Axis {
    std::vector<int64_t> start, width, index;   // per reachable cell; `index` is its place in the grid
    std::vector<Piece> pieces;                   // sorted by level
    std::vector<int64_t> widths;                 // distinct widths, powers of two first, ascending, without gaps
    std::vector<int> slot;                       // per cell: its width's place in `widths`
    int levels = 0;                              // highest level of a piece

    Axis(const int64_t* all_widths, int64_t cells, int64_t size) {
        int64_t tap = 0;
        for (int64_t i = 0; i < cells; ++i) tap += all_widths[i];
        tap = -(tap / 2);
        for (int64_t i = 0; i < cells; tap += all_widths[i++]) {
            if (tap >= size || tap + all_widths[i] - 1 <= -size) continue;
            int64_t offset = tap, rest = all_widths[i];
            for (int level = 62; level >= 0; --level)
                if (rest >> level & 1) {
                    pieces.push_back({offset, level, int64_t(start.size())});
                    offset += int64_t(1) << level;
                    levels = std::max(levels, level);
                }
            start.push_back(tap), width.push_back(all_widths[i]), index.push_back(i);
        }
        std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.level < b.level; });
        for (int level = 0; level <= levels; ++level) widths.push_back(int64_t(1) << level);
        for (int64_t w : width) {
            auto found = std::find(widths.begin(), widths.end(), w);
            slot.push_back(int(found - widths.begin()));
            if (found == widths.end()) widths.push_back(w);
        }
    }
    int64_t cells() const { return int64_t(start.size()); }
    int64_t first() const { return start.front(); }
    int64_t last() const { return start.back(); }
    int64_t end(int64_t cell) const { return start[cell] + width[cell]; }
};

// ---- scratch ---------------------------------------------------------------------------------------------------------

template <class T> struct Buffer {   // aligned, not initialised; what must be zero is set by its user
    T* data = nullptr;
    explicit Buffer(int64_t size) {
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

// Vertical boxes of one plane: for each distinct width w of the axis, rows [first, first + rows) of
// B_w(y) = X(y) + ... + X(y + w - 1), each of row_size elements, zero outside the map.
template <class T> struct Boxes {
    const Axis& axis;
    int64_t H, row_size, capacity, first = 0, rows = 0;
    Buffer<T> data;

    Boxes(const Axis& axis, int64_t H, int64_t row_size, int64_t out_rows)
        : axis(axis), H(H), row_size(row_size), capacity(most_rows(axis, H, out_rows)),
          data(int64_t(axis.widths.size()) * capacity * row_size + Simd<T>::size) {}

    static int64_t most_rows(const Axis& axis, int64_t H, int64_t out_rows) {
        return std::max(out_rows + axis.last(), std::min(H, out_rows + axis.end(axis.cells() - 1))) - axis.first();
    }
    T* plane(int64_t slot) const { return data.data + slot * capacity * row_size; }
    T* row(int64_t slot, int64_t y) const { return plane(slot) + (y - first) * row_size; }

    // For the outputs of rows [y0, y1). `source` holds the rows of the map from `source_first` on.
    void build(const T* source, int64_t source_first, int64_t y0, int64_t y1) {
        first = y0 + axis.first();
        const int64_t end = std::max(y1 + axis.last(), std::min(H, y1 - 1 + axis.end(axis.cells() - 1)));
        rows = end - first;
        for (size_t slot = 0; slot < axis.widths.size(); ++slot) {
            const int64_t w = axis.widths[slot];
            const bool power = (w & (w - 1)) == 0;
            const int64_t low = std::clamp<int64_t>(-w + 1, first, end), high = std::clamp<int64_t>(H, low, end);
            zero(slot, first, low), zero(slot, high, end);
            for (int64_t y = low; y < high; ++y) {
                if (w == 1) {
                    std::memcpy(row(slot, y), source + (y - source_first) * row_size, row_size * sizeof(T));
                } else if (power) {
                    add(row(slot, y), row(slot - 1, y), below(slot - 1, y + w / 2, end));
                } else {
                    int64_t offset = y;
                    bool started = false;
                    for (int level = axis.levels; level >= 0; --level)
                        if (w >> level & 1) {
                            const T* box = below(level, offset, end);
                            if (!started) std::memcpy(row(slot, y), row(level, offset), row_size * sizeof(T));
                            else add(row(slot, y), row(slot, y), box);
                            started = true;
                            offset += int64_t(1) << level;
                        }
                }
            }
        }
    }

  private:
    // Row y of a plane, or null where it is known to be zero or is not needed by any output.
    const T* below(int64_t slot, int64_t y, int64_t end) const { return y < std::min(end, H) ? row(slot, y) : nullptr; }
    void zero(int64_t slot, int64_t from, int64_t to) {
        if (to > from) std::memset(row(slot, from), 0, (to - from) * row_size * sizeof(T));
    }
    void add(T* out, const T* a, const T* b) {
        if (!b) {
            if (out != a) std::memcpy(out, a, row_size * sizeof(T));
            return;
        }
        for (int64_t i = 0; i < row_size; i += Simd<T>::size) store(out + i, load(a + i) + load(b + i));
    }
};

struct Shape { int64_t N, C, H, W; };

// How a thread cuts the map: groups of channels, bands of output rows, chunks of rows within a band.
template <class T> struct Plan {
    int64_t row_size, group, band, chunk, groups, bands;

    Plan(const Shape& s, const Axis& rows, int64_t chunk_row_bytes, bool interleaved, int threads) {
        constexpr int L = Simd<T>::size;
        row_size = round_up(s.W, L);
        const int64_t row_bytes = row_size * sizeof(T), halo = rows.end(rows.cells() - 1) - rows.first();
        const int64_t fit = PLANES_BYTES / (row_bytes * int64_t(rows.widths.size())) - halo;
        band = std::min(s.H, std::max<int64_t>({fit, halo / 2, 8}));
        bands = (s.H + band - 1) / band;
        band = (s.H + bands - 1) / bands;
        group = 1;
        if (interleaved) {
            const int64_t plane = (2 * band + halo) * row_bytes;
            group = L;
            while (group > 4 && (group * plane > GROUP_BYTES || s.N * bands * ((s.C + group - 1) / group) < 2 * threads))
                group /= 2;
        }
        groups = (s.C + group - 1) / group;
        chunk = std::clamp<int64_t>(CHUNK_BYTES / chunk_row_bytes, 1, band);
    }
    int64_t plane_size(int64_t height) const { return height * row_size + CACHE_LINE_BYTES / int64_t(sizeof(T)); }
};

// ---- forward ---------------------------------------------------------------------------------------------------------

// out[i][position[j]] = sum over a of theta[a * ld + i] * rows[a][j] for NB columns i and NX vectors j.
template <class T, int NB, int NX>
static inline void mix(const T* const* rows, const T* const* theta, int64_t count, int64_t first, int64_t column, T* out,
                       int64_t ld_out, const int64_t* position) {
    constexpr int L = Simd<T>::size;
    V<T> acc[NB][NX] = {};
    for (int64_t a = 0; a < count; ++a) {
        V<T> r[NX];
#pragma GCC unroll 8
        for (int j = 0; j < NX; ++j) r[j] = load(rows[a] + first + j * L);
        const T* weights = theta[a] + column;
#pragma GCC unroll 8
        for (int i = 0; i < NB; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < NX; ++j) acc[i][j] += r[j] * weights[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < NB; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < NX; ++j) store(out + i * ld_out + position[j], acc[i][j]);
}

template <class T, int NX>
static inline void mix_columns(const T* const* rows, const T* const* theta, int64_t count, int64_t first, int64_t b0,
                               int64_t b1, T* out, int64_t ld_out, const int64_t* position) {
    const int64_t parts = (b1 - b0 + MIX_B - 1) / MIX_B;
    for (int64_t part = 0, b = b0; part < parts; ++part) {
        const int64_t n = (b1 - b) / (parts - part) + ((b1 - b) % (parts - part) != 0);
        T* o = out + b * ld_out;
        switch (n) {
            case 1: mix<T, 1, NX>(rows, theta, count, first, b, o, ld_out, position); break;
            case 2: mix<T, 2, NX>(rows, theta, count, first, b, o, ld_out, position); break;
            case 3: mix<T, 3, NX>(rows, theta, count, first, b, o, ld_out, position); break;
            case 4: mix<T, 4, NX>(rows, theta, count, first, b, o, ld_out, position); break;
            case 5: mix<T, 5, NX>(rows, theta, count, first, b, o, ld_out, position); break;
            default: mix<T, 6, NX>(rows, theta, count, first, b, o, ld_out, position); break;
        }
        b += n;
    }
}

template <class T> struct Forward {
    static constexpr int L = Simd<T>::size;
    const Shape& s;
    const Axis &rows, &cols;
    const Plan<T>& plan;
    int64_t pad, t_row, t_plane;   // zero columns before a row of t, its whole length, elements of one t_b
    Boxes<T> boxes;
    Buffer<T> t, levels;
    std::vector<int64_t> position, piece_offsets;
    std::vector<const T*> row_pointers, theta_rows;

    Forward(const Shape& s, const Axis& rows, const Axis& cols, const Plan<T>& plan)
        : s(s), rows(rows), cols(cols), plan(plan), pad(left_pad(cols)), t_row(row_length(cols, plan.row_size)),
          t_plane(plan.chunk * t_row), boxes(rows, s.H, plan.row_size, plan.band), t(cols.cells() * t_plane + L),
          levels(2 * plan.chunk * level_row()), position(plan.chunk * (plan.row_size / L)), row_pointers(rows.cells()),
          theta_rows(rows.cells()) {
        // Only the margins are never written again.
        for (int64_t b = 0; b < cols.cells(); ++b)
            for (int64_t y = 0; y < plan.chunk; ++y) {
                T* row = t.data + b * t_plane + y * t_row;
                std::fill(row, row + pad, T(0));
                std::fill(row + pad + plan.row_size, row + t_row, T(0));
            }
        std::fill(levels.data, levels.data + 2 * plan.chunk * level_row(), T(0));
        for (const Piece& piece : cols.pieces) piece_offsets.push_back(piece.cell * t_plane + pad + piece.offset);
        const int64_t vectors = plan.row_size / L;
        for (size_t v = 0; v < position.size(); ++v) position[v] = int64_t(v) / vectors * t_row + pad + int64_t(v) % vectors * L;
    }
    static int64_t left_pad(const Axis& cols) { return round_up(std::max<int64_t>(0, -cols.first()), L); }
    static int64_t row_length(const Axis& cols, int64_t row_size) {
        const int64_t reach = std::max<int64_t>(0, cols.end(cols.cells() - 1));
        return left_pad(cols) + row_size + round_up(reach + (int64_t(1) << cols.levels), L) + L;
    }
    int64_t level_row() const { return plan.row_size + round_up(int64_t(2) << cols.levels, L) + 2 * L; }

    // Rows [y0, y1) of one plane. `source` as in Boxes::build; `out` starts at row y0, rows of row_size elements.
    void run(const T* source, int64_t source_first, const T* theta, T bias, int64_t y0, int64_t y1, T* out) {
        boxes.build(source, source_first, y0, y1);
        for (int64_t y = y0; y < y1; y += plan.chunk) {
            const int64_t count = std::min(plan.chunk, y1 - y);
            mix_rows(theta, y, count);
            sum_rows(count, bias, out + (y - y0) * plan.row_size);
        }
    }

  private:
    void mix_rows(const T* theta, int64_t y, int64_t count) {
        int64_t active = 0;
        for (int64_t a = 0; a < rows.cells(); ++a) {
            if (y + count - 1 + rows.end(a) <= 0 || y + rows.start[a] >= s.H) continue;
            row_pointers[active] = boxes.row(rows.slot[a], y + rows.start[a]);
            theta_rows[active++] = theta + a * cols.cells();
        }
        const int64_t vectors = plan.row_size / L, total = count * vectors;
        int64_t v = 0;
        for (; v + MIX_X <= total; v += MIX_X) {
            int64_t b0 = 0, b1 = cols.cells();
            if (v / vectors == (v + MIX_X - 1) / vectors) needed_columns(v % vectors * L, MIX_X * L, b0, b1);
            mix_columns<T, MIX_X>(row_pointers.data(), theta_rows.data(), active, v * L, b0, b1, t.data, t_plane, &position[v]);
        }
        for (; v < total; ++v)
            mix_columns<T, 1>(row_pointers.data(), theta_rows.data(), active, v * L, 0, cols.cells(), t.data, t_plane,
                              &position[v]);
    }

    // The cells b whose t_b is read at any of the columns [x, x + size) by an output inside the map.
    void needed_columns(int64_t x, int64_t size, int64_t& b0, int64_t& b1) const {
        while (b0 < b1 && x > s.W - 2 + cols.end(b0)) ++b0;
        while (b1 > b0 && cols.start[b1 - 1] > std::min(x + size, s.W) - 1) --b1;
    }

    // out(x) = u_0 + B_1(u_1 + B_2(u_2 + B_4(...))) with (B_n v)(x) = v(x) + v(x + n) and u_j the sum of t_b(x + offset) over
    // the pieces of 2**j taps, for all rows of a chunk.
    void sum_rows(int64_t count, T bias, T* out) {
        T* above = levels.data;
        T* current = levels.data + plan.chunk * level_row();
        size_t end = cols.pieces.size();
        for (int level = cols.levels; level >= 0; --level) {
            size_t begin = end;
            while (begin > 0 && cols.pieces[begin - 1].level == level) --begin;
            const int64_t vectors = (s.W + (int64_t(1) << level) - 1 + L - 1) / L, total = count * vectors;
            const T* upper = level < cols.levels ? above : nullptr;
            T* target = level == 0 ? out : current;
            const int64_t target_row = level == 0 ? plan.row_size : level_row();
            int64_t row = 0, vector = 0;
            for (int64_t v = 0; v < total;) {
                int64_t in_t[4], in_levels[4], in_target[4];
                const int n = total - v >= 4 ? 4 : 1;
                for (int j = 0; j < n; ++j) {
                    in_t[j] = row * t_row + vector * L;
                    in_levels[j] = row * level_row() + vector * L;
                    in_target[j] = row * target_row + vector * L;
                    if (++vector == vectors) vector = 0, ++row;
                }
                if (n == 4) sum_pieces<4>(begin, end, level, upper, in_t, in_levels, in_target, bias, target);
                else sum_pieces<1>(begin, end, level, upper, in_t, in_levels, in_target, bias, target);
                v += n;
            }
            std::swap(above, current);
            end = begin;
        }
    }

    template <int NX>
    inline void sum_pieces(size_t begin, size_t end, int level, const T* upper, const int64_t* in_t, const int64_t* in_levels,
                           const int64_t* in_target, T bias, T* target) {
        V<T> acc[NX];
        for (int j = 0; j < NX; ++j) acc[j] = V<T>{} + (level == 0 ? bias : T(0));
        if (upper)
            for (int j = 0; j < NX; ++j)
                acc[j] += load(upper + in_levels[j]) + load(upper + in_levels[j] + (int64_t(1) << level));
        for (size_t p = begin; p < end; ++p) {
            const T* from = t.data + piece_offsets[p];
            for (int j = 0; j < NX; ++j) acc[j] += load(from + in_t[j]);
        }
        for (int j = 0; j < NX; ++j) store(target + in_target[j], acc[j]);
    }
};

// theta of one channel, cut to the reachable cells, row-major.
template <class T> static void gather_theta(const T* theta, int64_t cells, const Axis& rows, const Axis& cols, T* out) {
    for (int64_t a : rows.index)
        for (int64_t b : cols.index) *out++ = theta[a * cells + b];
}

template <class IO>
static void forward(const IO* x_data, const int64_t* x_stride, const Compute<IO>* theta, const Compute<IO>* bias, IO* y_data,
                    const int64_t* y_stride, const Shape& s, int64_t cells, const int64_t* widths, int threads) {
    using T = Compute<IO>;
    const Image<const IO> x{x_data, x_stride};
    const Image<IO> y{y_data, y_stride};
    const Axis rows(widths, cells, s.H), cols(widths, cells, s.W);
    const int64_t row_bytes = cols.cells() * Forward<T>::row_length(cols, round_up(s.W, Simd<T>::size)) * sizeof(T);
    const Plan<T> plan(s, rows, row_bytes, !x.planar() || !y.planar(), threads);
    const int64_t tasks = s.N * plan.groups * plan.bands;
#pragma omp parallel num_threads(int(std::min<int64_t>(threads, tasks)))
    {
        Forward<T> worker(s, rows, cols, plan);
        const int64_t halo = rows.end(rows.cells() - 1) - rows.first();
        const int64_t in_plane = plan.plane_size(std::min(s.H, plan.band + halo)), out_plane = plan.plane_size(plan.band);
        Buffer<T> input(plan.group * in_plane), output(plan.group * out_plane), weights(rows.cells() * cols.cells());
#pragma omp for schedule(static)
        for (int64_t task = 0; task < tasks; ++task) {
            const int64_t n = task / (plan.groups * plan.bands), c = task / plan.bands % plan.groups * plan.group;
            const int64_t count = std::min(plan.group, s.C - c);
            const int64_t y0 = task % plan.bands * plan.band, y1 = std::min(s.H, y0 + plan.band);
            const int64_t from = std::max<int64_t>(0, y0 + rows.first());
            const int64_t to = std::min(s.H, y1 - 1 + rows.end(rows.cells() - 1));
            for (int64_t i = from; i < to; ++i)
                read_row<IO, T>(x, n, c, count, i, s.W, input.data + (i - from) * plan.row_size, in_plane, plan.row_size);
            for (int64_t k = 0; k < count; ++k) {
                gather_theta(theta + (c + k) * cells * cells, cells, rows, cols, weights.data);
                worker.run(input.data + k * in_plane, from, weights.data, bias ? bias[c + k] : T(0), y0, y1,
                           output.data + k * out_plane);
            }
            for (int64_t i = y0; i < y1; ++i)
                write_row<IO, T>(y, n, c, count, i, s.W, output.data + (i - y0) * plan.row_size, out_plane);
        }
    }
}

// ---- gradient of theta -----------------------------------------------------------------------------------------------

// acc[a][b] += sum over v of r_a(v) * d_b(v) for an NA x NB tile.
template <class T, int NA, int NB>
static inline void outer(const T* const* r, const T* const* d, const int64_t* position, int64_t vectors, T* acc,
                         int64_t ld_acc) {
    constexpr int L = Simd<T>::size;
    V<T> sum[NA][NB] = {};
    for (int64_t v = 0; v < vectors; ++v) {
        V<T> rv[NA];
#pragma GCC unroll 8
        for (int i = 0; i < NA; ++i) rv[i] = load(r[i] + v * L);
#pragma GCC unroll 8
        for (int j = 0; j < NB; ++j) {
            const V<T> dv = load(d[j] + position[v]);
#pragma GCC unroll 8
            for (int i = 0; i < NA; ++i) sum[i][j] += rv[i] * dv;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < NA; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < NB; ++j) {
            T* p = acc + i * ld_acc + j * L;
            store(p, load(p) + sum[i][j]);
        }
}

template <class T, int NA>
static inline void outer_columns(const T* const* r, const T* const* d, int64_t nb, const int64_t* position, int64_t vectors,
                                 T* acc, int64_t ld_acc) {
    switch (nb) {
        case 1: outer<T, NA, 1>(r, d, position, vectors, acc, ld_acc); break;
        case 2: outer<T, NA, 2>(r, d, position, vectors, acc, ld_acc); break;
        case 3: outer<T, NA, 3>(r, d, position, vectors, acc, ld_acc); break;
        case 4: outer<T, NA, 4>(r, d, position, vectors, acc, ld_acc); break;
        default: outer<T, NA, GRAD_TILE>(r, d, position, vectors, acc, ld_acc); break;
    }
}

template <class T> struct ThetaGrad {
    static constexpr int L = Simd<T>::size;
    const Shape& s;
    const Axis &rows, &cols;
    const Plan<T>& plan;
    int64_t pad, d_row, d_plane;
    Boxes<T> boxes;
    Buffer<T> d, acc;
    std::vector<int64_t> position;
    std::vector<const T*> row_pointers, d_pointers;
    std::vector<int64_t> active;

    ThetaGrad(const Shape& s, const Axis& rows, const Axis& cols, const Plan<T>& plan)
        : s(s), rows(rows), cols(cols), plan(plan), pad(left_pad(cols)), d_row(row_length(cols, plan.row_size)),
          d_plane(plan.chunk * d_row), boxes(rows, s.H, plan.row_size, plan.band),
          d(int64_t(cols.widths.size()) * d_plane + L), acc(rows.cells() * cols.cells() * L),
          position(plan.chunk * (plan.row_size / L)), row_pointers(rows.cells()), d_pointers(cols.cells()),
          active(rows.cells()) {
        const int64_t vectors = plan.row_size / L;
        for (size_t v = 0; v < position.size(); ++v) position[v] = int64_t(v) / vectors * d_row + int64_t(v) % vectors * L;
    }
    static int64_t left_pad(const Axis& cols) { return round_up(std::max<int64_t>(0, cols.end(cols.cells() - 1) - 1), L); }
    static int64_t row_length(const Axis& cols, int64_t row_size) {
        const int64_t widest = *std::max_element(cols.width.begin(), cols.width.end());
        return left_pad(cols) + row_size + round_up(std::max<int64_t>(0, -cols.first()) + widest, L) + L;
    }

    // Adds rows [y0, y1) of one plane to `total` (rows x cols, double). x as `source` of Boxes::build, dy from row y0 on.
    void run(const T* source, int64_t source_first, const T* dy, int64_t y0, int64_t y1, double* total) {
        boxes.build(source, source_first, y0, y1);
        std::fill(acc.data, acc.data + rows.cells() * cols.cells() * L, T(0));
        for (int64_t y = y0; y < y1; y += plan.chunk) {
            const int64_t count = std::min(plan.chunk, y1 - y);
            for (int64_t i = 0; i < count; ++i) box_row(dy + (y - y0 + i) * plan.row_size, i);
            accumulate(y, count);
        }
        for (int64_t i = 0; i < rows.cells() * cols.cells(); ++i)
            for (int l = 0; l < L; ++l) total[i] += double(acc.data[i * L + l]);
    }

  private:
    // Horizontal boxes of one row of dY: B_w(x) = dY(x) + ... + dY(x + w - 1), shifted right by `pad`.
    void box_row(const T* dy, int64_t i) {
        for (size_t slot = 0; slot < cols.widths.size(); ++slot) {
            const int64_t w = cols.widths[slot];
            T* out = d.data + slot * d_plane + i * d_row;
            if (w == 1) {
                std::fill(out, out + pad, T(0));
                std::memcpy(out + pad, dy, s.W * sizeof(T));
                std::fill(out + pad + s.W, out + d_row, T(0));
                continue;
            }
            if ((w & (w - 1)) == 0) {
                add_shifted(out, out - d_plane, out - d_plane, w / 2);
                continue;
            }
            int64_t offset = 0;
            for (int level = cols.levels; level >= 0; --level)
                if (w >> level & 1) {
                    const T* box = d.data + level * d_plane + i * d_row;
                    if (offset == 0) std::memcpy(out, box, d_row * sizeof(T));
                    else add_shifted(out, out, box, offset);
                    offset += int64_t(1) << level;
                }
        }
    }
    // out(x) = a(x) + b(x + shift); beyond the row b is zero.
    void add_shifted(T* out, const T* a, const T* b, int64_t shift) {
        int64_t x = 0;
        for (; x + L + shift <= d_row; x += L) store(out + x, load(a + x) + load(b + x + shift));
        for (; x < d_row; ++x) out[x] = a[x] + (x + shift < d_row ? b[x + shift] : T(0));
    }

    void accumulate(int64_t y, int64_t count) {
        int64_t used = 0;
        for (int64_t a = 0; a < rows.cells(); ++a) {
            if (y + count - 1 + rows.end(a) <= 0 || y + rows.start[a] >= s.H) continue;
            row_pointers[used] = boxes.row(rows.slot[a], y + rows.start[a]);
            active[used++] = a;
        }
        for (int64_t b = 0; b < cols.cells(); ++b)
            d_pointers[b] = d.data + cols.slot[b] * d_plane + pad - (cols.end(b) - 1);
        const int64_t vectors = count * (plan.row_size / L), ld = cols.cells() * L;
        for (int64_t a = 0; a < used;) {
            // The active cells are consecutive.
            const int64_t na = std::min<int64_t>(GRAD_TILE, used - a);
            for (int64_t b = 0; b < cols.cells(); b += GRAD_TILE) {
                const int64_t nb = std::min<int64_t>(GRAD_TILE, cols.cells() - b);
                T* target = acc.data + active[a] * ld + b * L;
                const T* const* r = &row_pointers[a];
                const T* const* e = &d_pointers[b];
                switch (na) {
                    case 1: outer_columns<T, 1>(r, e, nb, position.data(), vectors, target, ld); break;
                    case 2: outer_columns<T, 2>(r, e, nb, position.data(), vectors, target, ld); break;
                    case 3: outer_columns<T, 3>(r, e, nb, position.data(), vectors, target, ld); break;
                    case 4: outer_columns<T, 4>(r, e, nb, position.data(), vectors, target, ld); break;
                    default: outer_columns<T, GRAD_TILE>(r, e, nb, position.data(), vectors, target, ld); break;
                }
            }
            a += na;
        }
    }
};

// Images are summed in a fixed number of partial sums, so that the result does not depend on the number of threads.
constexpr int64_t PARTIAL_SUMS = 16;

template <class IO>
static void theta_grad(const IO* x_data, const int64_t* x_stride, const IO* dy_data, const int64_t* dy_stride, double* out,
                       const Shape& s, int64_t cells, const int64_t* widths, int threads) {
    using T = Compute<IO>;
    const Image<const IO> x{x_data, x_stride}, dy{dy_data, dy_stride};
    const Axis rows(widths, cells, s.H), cols(widths, cells, s.W);
    const int64_t row_bytes =
        int64_t(cols.widths.size()) * ThetaGrad<T>::row_length(cols, round_up(s.W, Simd<T>::size)) * sizeof(T);
    const int64_t parts = std::min(s.N, PARTIAL_SUMS);
    const Shape split{parts, s.C, s.H, s.W};
    const Plan<T> plan(split, rows, row_bytes, !x.planar() || !dy.planar(), threads);
    const int64_t entries = rows.cells() * cols.cells(), tasks = parts * plan.groups;
    std::vector<double> partial(parts * s.C * entries, 0.0);
#pragma omp parallel num_threads(int(std::min<int64_t>(threads, tasks)))
    {
        ThetaGrad<T> worker(s, rows, cols, plan);
        const int64_t halo = rows.end(rows.cells() - 1) - rows.first();
        const int64_t in_plane = plan.plane_size(std::min(s.H, plan.band + halo)), out_plane = plan.plane_size(plan.band);
        Buffer<T> input(plan.group * in_plane), grad(plan.group * out_plane);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < tasks; ++task) {
            const int64_t part = task / plan.groups, c = task % plan.groups * plan.group;
            const int64_t count = std::min(plan.group, s.C - c);
            for (int64_t n = part; n < s.N; n += parts)
                for (int64_t y0 = 0; y0 < s.H; y0 += plan.band) {
                    const int64_t y1 = std::min(s.H, y0 + plan.band), from = std::max<int64_t>(0, y0 + rows.first());
                    const int64_t to = std::min(s.H, y1 - 1 + rows.end(rows.cells() - 1));
                    for (int64_t i = from; i < to; ++i)
                        read_row<IO, T>(x, n, c, count, i, s.W, input.data + (i - from) * plan.row_size, in_plane, plan.row_size);
                    for (int64_t i = y0; i < y1; ++i)
                        read_row<IO, T>(dy, n, c, count, i, s.W, grad.data + (i - y0) * plan.row_size, out_plane, plan.row_size);
                    for (int64_t k = 0; k < count; ++k)
                        worker.run(input.data + k * in_plane, from, grad.data + k * out_plane, y0, y1,
                                   partial.data() + (part * s.C + c + k) * entries);
                }
        }
    }
    std::fill(out, out + s.C * cells * cells, 0.0);
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t c = 0; c < s.C; ++c)
            for (int64_t a = 0; a < rows.cells(); ++a)
                for (int64_t b = 0; b < cols.cells(); ++b)
                    out[(c * cells + rows.index[a]) * cells + cols.index[b]] +=
                        partial[((part * s.C + c) * rows.cells() + a) * cols.cells() + b];
}

// ---- C interface -----------------------------------------------------------------------------------------------------

// Compiled once for each compute type: -DPELK_DOUBLE gives the double one.
#define PELK_EXPORT(NAME, IO)                                                                                                \
    extern "C" void pelk_forward_##NAME(const IO* x, const int64_t* xs, const Compute<IO>* theta, const Compute<IO>* bias,    \
                                        IO* y, const int64_t* ys, const int64_t* shape, int64_t cells,                       \
                                        const int64_t* widths, int threads) {                                                \
        forward<IO>(x, xs, theta, bias, y, ys, Shape{shape[0], shape[1], shape[2], shape[3]}, cells, widths, threads);       \
    }                                                                                                                        \
    extern "C" void pelk_theta_grad_##NAME(const IO* x, const int64_t* xs, const IO* dy, const int64_t* dys, double* out,    \
                                           const int64_t* shape, int64_t cells, const int64_t* widths, int threads) {        \
        theta_grad<IO>(x, xs, dy, dys, out, Shape{shape[0], shape[1], shape[2], shape[3]}, cells, widths, threads);          \
    }

#ifdef PELK_DOUBLE
PELK_EXPORT(float64, double)
#else
PELK_EXPORT(float32, float)
PELK_EXPORT(bfloat16, bfloat16)
PELK_EXPORT(float16, float16)
#endif
