// The names of wgmma.h on a CPU. A product runs as late as it may, when its group is waited for; from its start until then the
// registers of its sum hold NaN, so that a wait that is missing shows. Operands are found by the descriptors' documented fields.
//
// Noticed in addition: products that read what was not published before a barrier, stores where products may still read,
// registers that are not fenced, or changed while a product runs, other descriptors in other lanes, products that are never
// waited for.
#pragma once
#include <list>

namespace emulator {
constexpr u32 RUNNING = 0x7fc0dead;
struct Sums {
    float* registers[128];
    int groups, running;
    float values[128][64];
};
struct Product {
    u64 a, b;
    bool add, committed;
    u32 number;
    Sums* sums;
};
static std::list<Sums> running_sums[MAX_THREADS / 128];
static std::list<Product> products[MAX_THREADS / 128];
static u32 started[MAX_WARPS];

static u32 field(u64 operand, int bit) { return (u32)(operand >> bit & 0x3fff) << 4; }
// Offsets of the 16 bytes of row i, chunk k of an operand.
static u32 row_at(u64 operand, int i, int k) {
    return field(operand, 0) - SHARED_WINDOW + field(operand, 16) * k + field(operand, 32) * (i / 8) + i % 8 * 16;
}
static void read_row(u32 at, int warp) {
    if (!is_shared(at, 16)) return;
    for (u32 i = at / 4; i < at / 4 + 4; ++i) {
        Word& word = words[i];
        if (word.written > clocks[warp].published[word.writer])
            fail("a race in shared memory at " + std::to_string(4 * i) + ": stores that a product may not see");
        word.multiplied[warp] = started[warp];
    }
}
static Sums* sums_of(Fiber* lanes, int groups) {
    std::list<Sums>& all = running_sums[current / 128];
    for (Sums& sums : all) {
        if (sums.registers[0] != lanes[0].registers) continue;
        if (sums.groups != groups) fail("products of different widths on the same registers");
        return &sums;
    }
    all.emplace_back();
    Sums& sums = all.back();
    sums.groups = groups, sums.running = 0;
    for (int i = 0; i < 128; ++i) {
        sums.registers[i] = lanes[i].registers;
        memcpy(sums.values[i], lanes[i].registers, 16 * groups);
        for (int k = 0; k < 4 * groups; ++k) memcpy(lanes[i].registers + k, &RUNNING, 4);
    }
    return &sums;
}
static void start_product(Fiber* lanes, int groups) {
    const int group = current / 128;
    u64 a, b;
    memcpy(&a, lanes[0].in, 8);
    memcpy(&b, lanes[0].in + 2, 8);
    for (int i = 0; i < 128; ++i) {
        if (!lanes[i].fenced) return fail("the registers of a product are not fenced");
        if (memcmp(lanes[i].in, lanes[0].in, 20)) return fail("lanes of a group disagree on a product");
    }
    constexpr u64 FIELDS = 0x3fff | 0x3fffull << 16 | 0x3fffull << 32;
    if ((a | b) & ~FIELDS) return fail("an operand has bits outside of its fields");
    for (int w = 0; w < 4; ++w) {
        ++started[group * 4 + w];
        for (int k = 0; k < 2; ++k) {
            for (int i = 0; i < 16; ++i) read_row(row_at(a, 16 * w + i, k), group * 4 + w);
            for (int i = 0; i < 8 * groups; ++i) read_row(row_at(b, i, k), group * 4 + w);
        }
    }
    counts[0] += 64 * 16 * 8 * groups;
    counts[1] += 64 * 8 + 64 * groups;
    Sums* sums = sums_of(lanes, groups);
    ++sums->running;
    products[group].push_back({a, b, lanes[0].in[4] != 0, false, started[group * 4], sums});
}
template <int ROWS> static void read_operand(double (&to)[16][ROWS], u64 operand, int rows) {
    for (int i = 0; i < rows; ++i)
        for (int k = 0; k < 16; ++k) {
            u16 half;
            memcpy(&half, memory + row_at(operand, i, k / 8) + k % 8 * 2, 2);
            to[k][i] = from_half(half);
        }
}
static void finish_product(Product& product) {
    static double left[16][64], right[16][128];
    const int columns = 8 * product.sums->groups;
    read_operand(left, product.a, 64);
    read_operand(right, product.b, columns);
    for (int m = 0; m < 64; ++m) {
        double total[128];
        // Lane of the first two columns of each group, and where row m begins in its registers.
        const int lane = m / 16 * 32 + m % 8 * 4, first = m % 16 / 8 * 2;
        for (int n = 0; n < columns; ++n)
            total[n] = product.add ? product.sums->values[lane + n % 8 / 2][n / 8 * 4 + first + n % 2] : 0.;
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < columns; ++n) total[n] += left[k][m] * right[k][n];
        for (int n = 0; n < columns; ++n)
            product.sums->values[lane + n % 8 / 2][n / 8 * 4 + first + n % 2] = truncate(total[n]);
    }
    --product.sums->running;
}
static void finish_products(Fiber* lanes) {
    const int group = current / 128;
    std::list<Product>& all = products[group];
    while (!all.empty() && all.front().committed) {
        finish_product(all.front());
        for (int w = 0; w < 4; ++w) clocks[group * 4 + w].finished[group * 4 + w] = all.front().number;
        all.pop_front();
    }
    running_sums[group].remove_if([&](const Sums& sums) {
        if (sums.running) return false;
        for (int i = 0; i < 128; ++i) {
            for (int k = 0; k < 4 * sums.groups; ++k)
                if (memcmp(sums.registers[i] + k, &RUNNING, 4)) fail("the registers of a running product are changed");
            memcpy(sums.registers[i], sums.values[i], 16 * sums.groups);
        }
        return true;
    });
    for (int i = 0; i < 128; ++i) lanes[i].fenced = false;
}
static bool are_products_running() {
    for (const std::list<Product>& group : products)
        if (!group.empty()) return true;
    return false;
}
static void forget_products() {
    for (std::list<Product>& group : products) group.clear();
    for (std::list<Sums>& group : running_sums) group.clear();
    for (Meeting& meeting : product_meetings) meeting = Meeting();
    for (int w = 0; w < MAX_WARPS; ++w) clocks[w].finished[w] = started[w];
}
}  // namespace emulator

INLINE void publish_shared(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    using namespace emulator;
    if (is_removed(file, line)) return;
    // Stores of this warp only, as a thread's fence is sure of its own; later ones belong to another time.
    together(50, [](Fiber*) {
        const int warp = current / 32;
        clocks[warp].published[warp] = clocks[warp].ordered[warp]++;
    });
}
INLINE void fence_registers(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    if (!emulator::is_removed(file, line)) emulator::fibers[thread()].fenced = true;
}
INLINE void commit_products(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    using namespace emulator;
    if (is_removed(file, line)) return;
    together<128>(51, [](Fiber*) {
        for (Product& product : products[current / 128]) product.committed = true;
    });
}
INLINE void wait_for_products(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    if (!emulator::is_removed(file, line)) emulator::together<128>(52, emulator::finish_products);
}
template <int GROUPS> INLINE void pin(float (&)[GROUPS][4]) {}
template <int GROUPS> INLINE void multiply_async(float (&sum)[GROUPS][4], u64 a, u64 b, bool add) {
    emulator::Fiber& own = emulator::fibers[thread()];
    memcpy(own.in, &a, 8);
    memcpy(own.in + 2, &b, 8);
    own.in[4] = add;
    own.registers = &sum[0][0];
    emulator::together<128>(60 + GROUPS, [](emulator::Fiber* lanes) { emulator::start_product(lanes, GROUPS); });
}
