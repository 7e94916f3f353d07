// Numbers in memory (DTYPE 0 fp32, 1 bf16, 2 fp16), and scaled as PARTS fp16 numbers: value = 2**-scale (high + low).
constexpr int ITEM = DTYPE == 0 ? 4 : 2;

INLINE float load_one(const void* data, i64 at) {
    if (DTYPE == 0) return read<float>(data, at * 4);
    const u32 bits = read<u16>(data, at * 2);
    return DTYPE == 1 ? bits_float(bits << 16) : unpack_half(bits).a;
}

// Two neighbours of a row; rows of PAIRED tensors are read a word at a time, others may end after the first.
template <bool PAIRED> INLINE void load_two(float (&pair)[2], const void* data, i64 at, bool second) {
    if (!PAIRED) {
        pair[0] = load_one(data, at);
        pair[1] = second ? load_one(data, at + 1) : 0.f;
    } else if (DTYPE == 0) {
        const Pair both = read<Pair>(data, at * 4);
        pair[0] = both.a;
        pair[1] = both.b;
    } else {
        const u32 word = read<u32>(data, at * 2);
        const Pair both = DTYPE == 1 ? Pair{bits_float(word << 16), bits_float(word & 0xffff0000u)} : unpack_half(word);
        pair[0] = both.a;
        pair[1] = both.b;
    }
}

INLINE void store_two(void* data, i64 at, float a, float b, bool paired, bool second) {
    if (DTYPE == 0) {
        if (paired) {
            write(data, at * 4, Pair{a, b});
        } else {
            write(data, at * 4, a);
            if (second) write(data, at * 4 + 4, b);
        }
    } else {
        const u32 word = DTYPE == 1 ? pack_bf16(a, b) : pack_half(a, b);
        if (paired) {
            write(data, at * 2, word);
        } else {
            write(data, at * 2, (u16)word);
            if (second) write(data, at * 2 + 2, (u16)(word >> 16));
        }
    }
}

// Bits of |value|, which order as the numbers do; 0 for NaN and infinities, which have no say in scales.
INLINE u32 finite_bits(float value) {
    const u32 bits = float_bits(value) & 0x7fffffffu;
    return bits < 0x7f800000u ? bits : 0u;
}
INLINE u32 larger_bits(u32 a, u32 b) { return a > b ? a : b; }

// The power of two that brings numbers up to this magnitude below 2**top.
INLINE int scale_for(u32 bits, int top) {
    const int scale = top - ((int)(bits >> 23) - 126);
    return scale > 126 ? 126 : scale < -126 ? -126 : scale;
}
INLINE float power(int exponent) { return bits_float((u32)(exponent + 127) << 23); }

// Two factors of 2**exponent: in two steps a number overflows only if the result does.
INLINE Pair two_powers(int exponent) { return {power(exponent / 2), power(exponent - exponent / 2)}; }

// A word of high parts at ``at``, that of low parts ``distance`` bytes behind it.
INLINE u32 low_parts(u32 high, float a, float b) {
    const Pair rounded = unpack_half(high);
    return pack_half(a - rounded.a, b - rounded.b);
}
INLINE void store_parts(u32 at, int distance, float a, float b) {
    const u32 high = pack_half(a, b);
    store_shared(at, high);
    if (PARTS == 2) store_shared(at + distance, low_parts(high, a, b));
}

// The largest magnitude of theta's channel, the same in all threads; ``scratch`` has a word a warp.
INLINE u32 theta_magnitude(const void* theta, i64 first, int count, u32 scratch) {
    u32 most = 0;
    for (int i = thread(); i < count; i += threads()) most = larger_bits(most, finite_bits(load_one(theta, first + i)));
    most = warp_max(most);
    if (thread() % 32 == 0) store_shared(scratch + thread() / 32 * 4, most);
    block_barrier();
    for (int warp = 0; warp < threads() / 32; ++warp) most = larger_bits(most, load_shared(scratch + warp * 4));
    return most;
}

// One word of a Toeplitz block of theta: taps ``tap`` and ``tap`` + 1 (from the centre) of a row cell, times ``scale``.
INLINE void store_taps(u32 at, int distance, const void* theta, i64 row, int tap, float scale, const Plan& plan) {
    const int t = tap + plan.reach, taps = 2 * plan.reach + 1;
    const float a = t >= 0 && t < taps ? load_one(theta, row + plan.cell_of[t]) * scale : 0.f;
    const float b = t >= -1 && t < taps - 1 ? load_one(theta, row + plan.cell_of[t + 1]) * scale : 0.f;
    store_parts(at, distance, a, b);
}
