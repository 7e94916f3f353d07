// Tasks shared among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num() { return 0; }
static inline int omp_get_num_threads() { return 1; }
#endif

// Calls run(begin, end) in every thread of a team, with the tasks [begin, end) that are its share: neighbours, as with
// schedule(static). An exception that leaves a parallel region ends the process. Only the allocation of scratch memory can
// fail in a thread; std::bad_alloc is then thrown after the region.
template <class Run> static void share_tasks(int64_t tasks, int threads, const Run& run) {
    std::atomic<bool> failed{false};
#pragma omp parallel num_threads(int(std::min<int64_t>(threads, tasks)))
    {
        const int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
        const int64_t each = tasks / team, more = tasks % team, begin = thread * each + std::min(thread, more);
        try {
            run(begin, begin + each + (thread < more));
        } catch (...) {
            failed = true;
        }
    }
    if (failed) throw std::bad_alloc();
}
