// The C interface of the emulator: launches of the kernels that the file before this one has put into ``kernels``.
namespace emulator {
static void start() {
    kernel(arguments);
    fibers[current].done = true;
    leave();
}
static bool can_run(const Fiber& fiber) { return !fiber.done && (!fiber.waits_for || fiber.waits_for->epoch != fiber.epoch); }
static void resume(int thread) {
    Fiber& fiber = fibers[thread];
    current = thread;
    fiber.waits_for = nullptr;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}
static void prepare_block() {
    memset(memory, 0xff, sizeof memory);
    block_meeting = Meeting();
    for (Meeting& meeting : group_meetings) meeting = Meeting();
    for (Meeting& meeting : warp_meetings) meeting = Meeting();
    forget_products();
    order(0, MAX_WARPS);
    for (int i = 0; i < thread_count; ++i) {
        Fiber& fiber = fibers[i];
        constexpr size_t STACK = 1 << 16;
        if (!fiber.stack) fiber.stack = (char*)malloc(STACK);
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack;
        fiber.start.uc_stack.ss_size = STACK;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, start, 0);
        fiber.started = fiber.done = fiber.fenced = false;
        fiber.waits_for = nullptr;
    }
}
static void run_block() {
    prepare_block();
    const int warps = thread_count / 32;
    int idle = 0;
    for (int warp = 0; error.empty(); warp = random_number() % warps) {
        bool any = false;
        for (int turns = random_number() % 40 + 1; turns && error.empty(); --turns) {
            bool moved = false;
            for (int lane = 0; lane < 32 && error.empty(); ++lane)
                if (can_run(fibers[warp * 32 + lane])) {
                    resume(warp * 32 + lane);
                    moved = true;
                }
            any = any || moved;
            if (!moved) break;
        }
        idle = any ? 0 : idle + 1;
        if (idle <= 8 * warps) continue;
        bool done = true, stuck = true;
        for (int i = 0; i < thread_count; ++i) {
            done = done && fibers[i].done;
            stuck = stuck && !can_run(fibers[i]);
        }
        if (done && are_products_running()) error = "products that are not waited for";
        if (done) return;
        if (stuck) error = "deadlock: not all threads of a barrier arrive";
        idle = 0;
    }
}
}  // namespace emulator

extern "C" void allow(const void* data, i64 bytes, int writable) {
    using namespace emulator;
    if (!bytes) ranges.clear();
    ranges.push_back({(const char*)data, (const char*)data + bytes, writable != 0});
}
// Returns "" or what went wrong. ``removed``: number of the barrier, fence, commit or wait to leave out, as first met; -1 for none.
extern "C" const char* emulate(int number, int blocks_x, int blocks_y, int thread_number, int shared_bytes, void** values, int seed, int removed) {
    using namespace emulator;
    error.clear();
    sites.clear();
    counts[0] = counts[1] = 0;
    kernel = kernels[number];
    arguments = values;
    thread_count = thread_number;
    shared_size = shared_bytes;
    removed_site = removed;
    random_state = seed;
    grid[0] = blocks_x, grid[1] = blocks_y;
    for (block[1] = 0; block[1] < blocks_y && error.empty(); ++block[1])
        for (block[0] = 0; block[0] < blocks_x && error.empty(); ++block[0]) run_block();
    return error.c_str();
}
extern "C" i64 get_count(int which) { return emulator::counts[which]; }
extern "C" int count_barriers() { return (int)emulator::sites.size(); }
