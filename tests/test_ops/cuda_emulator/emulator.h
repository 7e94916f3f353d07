// The names of device.h on a CPU: blocks run one after the other, threads as fibers that switch at barriers and at what a warp
// does together. Fragments lie as the PTX manual documents; sums are truncated to fp32, as tensor cores do.
//
// Noticed: races in shared memory (as compute-sanitizer's racecheck: accesses of two warps, one a write, that no barrier orders;
// asynchronous products among them, products.h),
// accesses outside of shared memory or of the tensors, misaligned ones, lanes that disagree on what they do together, deadlocks.
// Shared memory starts as NaN. Warps run in random order and for random times.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <ucontext.h>
#include <vector>
#define INLINE static inline
#define KERNEL(threads, blocks) static void
#define PARAMETER const

struct alignas(8) Pair {
    float a, b;
};

namespace emulator {
constexpr int MAX_THREADS = 512, MAX_WARPS = MAX_THREADS / 32, MAX_SHARED = 232448, SHARED_WINDOW = 1024;

struct Meeting {
    int arrived = 0;
    u32 epoch = 0;
};
struct Fiber {
    ucontext_t start;
    jmp_buf at;
    char* stack = nullptr;
    bool started, done;
    Meeting* waits_for;
    u32 epoch;
    // What the lane brings to, and takes from, an operation of its warp.
    int operation;
    u32 in[8], out[4];
    float sum[4];
    // For products.h: the registers of a sum, and whether they may be used by a product.
    float* registers;
    bool fenced;
};
struct Range {
    const char *begin, *end;
    bool writable;
};
struct Word {
    int writer = 0;
    u32 written = 0, read[MAX_WARPS] = {}, raised[MAX_WARPS] = {}, multiplied[MAX_WARPS] = {};
};
// What a warp knows of the others: accesses that are ordered before its own, stores that its products see, and products
// that are finished; by the time of the other warp, or the number of its product.
struct Clock {
    u32 ordered[MAX_WARPS], published[MAX_WARPS], finished[MAX_WARPS];
};
struct Site {
    const char* file;
    int line;
    bool operator==(const Site& other) const { return file == other.file && line == other.line; }
};

static Fiber fibers[MAX_THREADS];
static Meeting block_meeting, group_meetings[MAX_THREADS / 128], warp_meetings[MAX_WARPS], product_meetings[MAX_THREADS / 128];
static int current, thread_count, shared_size, block[2], grid[2];
static Clock clocks[MAX_WARPS];
static ucontext_t scheduler_start;
static jmp_buf scheduler;
static void (*kernel)(void**);
static void** arguments;
static std::vector<Range> ranges;
static std::vector<Site> sites;
static int removed_site;
static std::string error;
static unsigned char memory[MAX_SHARED];
static Word words[MAX_SHARED / 4];
static u32 random_state;
// Multiply-adds of tensor cores; words read and written in shared memory.
static i64 counts[2];

static u32 random_number() { return (random_state = random_state * 1664525u + 1013904223u) >> 8; }
static void leave() {
    if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1);
}
static void fail(const std::string& message) {
    if (error.empty()) error = message + ", thread " + std::to_string(current);
    fibers[current].done = true;
    leave();
}

// The last of the threads to arrive acts for all.
template <class Act> static void meet(Meeting& meeting, int size, Act act) {
    if (++meeting.arrived == size) {
        act();
        meeting.arrived = 0;
        ++meeting.epoch;
        return;
    }
    fibers[current].waits_for = &meeting;
    fibers[current].epoch = meeting.epoch;
    leave();
}
static void order(int first, int count) {
    Clock latest = {};
    const auto advance = [](u32 (&to)[MAX_WARPS], const u32 (&from)[MAX_WARPS]) {
        for (int i = 0; i < MAX_WARPS; ++i) to[i] = std::max(to[i], from[i]);
    };
    for (int w = first; w < first + count; ++w) {
        advance(latest.ordered, clocks[w].ordered);
        advance(latest.published, clocks[w].published);
        advance(latest.finished, clocks[w].finished);
    }
    for (int w = first; w < first + count; ++w) {
        clocks[w] = latest;
        ++clocks[w].ordered[w];
    }
}
static bool is_removed(const char* file, int line) {
    const Site site{file, line};
    size_t i = 0;
    while (i < sites.size() && !(sites[i] == site)) ++i;
    if (i == sites.size()) sites.push_back(site);
    return (int)i == removed_site;
}
// All lanes of a warp, or of the four of a group, do ``operation`` together.
template <int SIZE = 32, class Act> static void together(int operation, Act act) {
    fibers[current].operation = operation;
    Fiber* lanes = &fibers[current / SIZE * SIZE];
    meet(SIZE == 32 ? warp_meetings[current / 32] : product_meetings[current / 128], SIZE, [&] {
        for (int i = 0; i < SIZE; ++i)
            if (lanes[i].operation != operation) return fail("lanes of a warp or group diverge");
        act(lanes);
    });
}

static bool is_shared(u32 at, u32 size) {
    if (at % size == 0 && at + size <= (u32)shared_size && at + size > at) return true;
    fail("shared memory at " + std::to_string(at) + " of " + std::to_string(shared_size));
    return false;
}
static bool is_ordered(const u32 (&times)[MAX_WARPS], int warp) {
    for (int w = 0; w < MAX_WARPS; ++w)
        if (w != warp && times[w] > clocks[warp].ordered[w]) return false;
    return true;
}
static bool are_finished(const u32 (&products)[MAX_WARPS], int warp) {
    for (int w = 0; w < MAX_WARPS; ++w)
        if (products[w] > clocks[warp].finished[w]) return false;
    return true;
}
// kind: 0 read, 1 write, 2 atomic maximum.
static void access(u32 at, int kind) {
    const int warp = current / 32;
    ++counts[1];
    Word& word = words[at / 4];
    const u32 now = clocks[warp].ordered[warp];
    bool ordered = word.writer == warp || word.written <= clocks[warp].ordered[word.writer];
    if (kind != 2) ordered = ordered && is_ordered(word.raised, warp);
    if (kind != 0) ordered = ordered && is_ordered(word.read, warp) && are_finished(word.multiplied, warp);
    if (!ordered) fail("a race in shared memory at " + std::to_string(at));
    if (kind == 0) word.read[warp] = now;
    if (kind == 1) word.writer = warp, word.written = now;
    if (kind == 2) word.raised[warp] = now;
}
static void check(const void* data, size_t size, bool writes) {
    const char* at = (const char*)data;
    bool found = (size_t)at % size == 0;
    if (found) {
        found = false;
        for (const Range& range : ranges) found = found || (at >= range.begin && at + size <= range.end && (range.writable || !writes));
    }
    if (!found) fail("global memory outside of the tensors or misaligned");
}
}  // namespace emulator

INLINE int thread() { return emulator::current; }
INLINE int threads() { return emulator::thread_count; }
INLINE int block_x() { return emulator::block[0]; }
INLINE int block_y() { return emulator::block[1]; }
INLINE int blocks_x() { return emulator::grid[0]; }
INLINE int blocks_y() { return emulator::grid[1]; }
INLINE void block_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    if (emulator::is_removed(file, line)) return;
    meet(emulator::block_meeting, emulator::thread_count, [] { emulator::order(0, emulator::thread_count / 32); });
}
INLINE void group_barrier(int group, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    if (emulator::is_removed(file, line)) return;
    emulator::meet(emulator::group_meetings[group], 128, [group] { emulator::order(group * 4, 4); });
}

INLINE u32 float_bits(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}
INLINE float bits_float(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
// As fmaxf: NaN loses.
INLINE float larger(float a, float b) { return std::fmax(a, b); }
INLINE float magnitude_of(float a) { return std::fabs(a); }
INLINE u32 to_half(float value) {
    const u32 bits = float_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest >= 0x7f800000) return sign | 0x7c00 | (rest > 0x7f800000 ? 0x200 : 0);
    if (rest >= 0x477ff000) return sign | 0x7c00;
    if (rest < 0x38800000) return sign | (u32)std::lrint(std::fabs(value) * 16777216.f);
    return sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13;
}
INLINE float from_half(u32 half) {
    const u32 sign = (half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest < 0x400) return bits_float(sign | float_bits(rest / 16777216.f));
    return bits_float(sign | (rest >= 0x7c00 ? 0x7f800000 | (rest & 0x3ff) << 13 : (rest << 13) + 0x38000000));
}
INLINE u32 to_bf16(float value) {
    const u32 bits = float_bits(value);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
INLINE u32 pack_half(float a, float b) { return to_half(a) | to_half(b) << 16; }
INLINE Pair unpack_half(u32 word) { return {from_half(word & 0xffff), from_half(word >> 16)}; }
INLINE u32 pack_bf16(float a, float b) { return to_bf16(a) | to_bf16(b) << 16; }

template <class T> INLINE T read(const void* data, i64 bytes) {
    T value;
    emulator::check((const char*)data + bytes, sizeof value, false);
    memcpy(&value, (const char*)data + bytes, sizeof value);
    return value;
}
template <class T> INLINE void write(void* data, i64 bytes, T value) {
    emulator::check((char*)data + bytes, sizeof value, true);
    memcpy((char*)data + bytes, &value, sizeof value);
}

INLINE u32 shared_address(u32 at) { return at + emulator::SHARED_WINDOW; }
INLINE u32 load_shared(u32 at) {
    u32 word = 0;
    if (emulator::is_shared(at, 4)) {
        emulator::access(at, 0);
        memcpy(&word, emulator::memory + at, 4);
    }
    return word;
}
INLINE void store_shared(u32 at, u32 word) {
    if (!emulator::is_shared(at, 4)) return;
    emulator::access(at, 1);
    memcpy(emulator::memory + at, &word, 4);
}
INLINE void store_shared(u32 at, const u32 (&row)[4]) {
    if (!emulator::is_shared(at, 16)) return;
    for (int i = 0; i < 4; ++i) store_shared(at + 4 * i, row[i]);
}
INLINE void raise_shared(u32 at, u32 word) {
    if (!emulator::is_shared(at, 4)) return;
    emulator::access(at, 2);
    u32 old;
    memcpy(&old, emulator::memory + at, 4);
    if (word > old) memcpy(emulator::memory + at, &word, 4);
}

INLINE int uniform(int value) {
    emulator::fibers[thread()].in[0] = value;
    emulator::together(1, [](emulator::Fiber* lanes) {
        for (int i = 0; i < 32; ++i) lanes[i].out[0] = lanes[0].in[0];
    });
    return emulator::fibers[thread()].out[0];
}
INLINE u32 warp_max(u32 value) {
    emulator::fibers[thread()].in[0] = value;
    emulator::together(2, [](emulator::Fiber* lanes) {
        u32 most = 0;
        for (int i = 0; i < 32; ++i) most = std::max(most, lanes[i].in[0]);
        for (int i = 0; i < 32; ++i) lanes[i].out[0] = most;
    });
    return emulator::fibers[thread()].out[0];
}
INLINE bool warp_any(bool value) { return warp_max(value) != 0; }
INLINE float warp_sum(float value) {
    emulator::fibers[thread()].sum[0] = value;
    emulator::together(3, [](emulator::Fiber* lanes) {
        float sums[32];
        for (int i = 0; i < 32; ++i) sums[i] = lanes[i].sum[0];
        for (int distance = 16; distance; distance /= 2)
            for (int i = 0; i < distance; ++i) sums[i] += sums[i + distance];
        for (int i = 0; i < 32; ++i) lanes[i].sum[0] = sums[0];
    });
    return emulator::fibers[thread()].sum[0];
}

namespace emulator {
static void load(u32* matrices, int count, bool transposed, u32 at) {
    fibers[current].in[0] = at;
    together(10 + 2 * count + transposed, [=](Fiber* lanes) {
        for (int j = 0; j < count; ++j) {
            u16 rows[8][8];
            for (int i = 0; i < 8; ++i) {
                const u32 row = lanes[8 * j + i].in[0];
                if (!is_shared(row, 16)) return;
                for (int k = 0; k < 16; k += 4) access(row + k, 0);
                memcpy(rows[i], memory + row, 16);
            }
            for (int l = 0; l < 32; ++l) {
                const int i = l / 4, k = l % 4 * 2;
                lanes[l].out[j] = transposed ? rows[k][i] | (u32)rows[k + 1][i] << 16 : rows[i][k] | (u32)rows[i][k + 1] << 16;
            }
        }
    });
    memcpy(matrices, fibers[current].out, 4 * count);
}
static float truncate(double value) {
    const float nearest = (float)value;
    return std::isfinite(value) && std::fabs((double)nearest) > std::fabs(value) ? std::nextafter(nearest, 0.f) : nearest;
}
static void multiply(float (&sum)[4], const u32* a, const u32* b, int depth) {
    Fiber& own = fibers[current];
    memcpy(own.in, a, depth);
    memcpy(own.in + 4, b, depth / 2);
    memcpy(own.sum, sum, 16);
    together(20 + depth, [depth](Fiber* lanes) {
        double left[16][16], right[8][16];
        counts[0] += 128 * depth;
        for (int l = 0; l < 32; ++l) {
            const int g = l / 4, t = l % 4 * 2;
            for (int h = 0; h < depth / 8; ++h) {
                const Pair upper = unpack_half(lanes[l].in[2 * h]), lower = unpack_half(lanes[l].in[2 * h + 1]);
                const Pair column = unpack_half(lanes[l].in[4 + h]);
                left[g][8 * h + t] = upper.a, left[g][8 * h + t + 1] = upper.b;
                left[g + 8][8 * h + t] = lower.a, left[g + 8][8 * h + t + 1] = lower.b;
                right[g][8 * h + t] = column.a, right[g][8 * h + t + 1] = column.b;
            }
        }
        for (int l = 0; l < 32; ++l)
            for (int i = 0; i < 4; ++i) {
                const double *row = left[l / 4 + i / 2 * 8], *column = right[l % 4 * 2 + i % 2];
                double total = lanes[l].sum[i];
                for (int k = 0; k < depth; ++k) total += row[k] * column[k];
                lanes[l].sum[i] = truncate(total);
            }
    });
    memcpy(sum, own.sum, 16);
}
}  // namespace emulator

INLINE void load_matrices(u32 (&m)[4], u32 at) { emulator::load(m, 4, false, at); }
INLINE void load_matrices(u32 (&m)[2], u32 at) { emulator::load(m, 2, false, at); }
INLINE void load_transposed(u32 (&m)[4], u32 at) { emulator::load(m, 4, true, at); }
INLINE void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const u32 b[2] = {b0, b1};
    emulator::multiply(sum, a, b, 16);
}
INLINE void multiply(float (&sum)[4], const u32 (&a)[2], u32 b) { emulator::multiply(sum, a, &b, 8); }
