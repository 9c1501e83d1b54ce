// See pool.h. Compiled once, for every level.
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

namespace {

constexpr int kMostThreads = 256;
constexpr int kSlots = 8;
// A waiting thread looks this long for work before it sleeps: longer than the gap between two
// operators called from Python, shorter than anything another process would notice.
constexpr long kSpinNanoseconds = 100000;

struct Scratch {
    void* memory = nullptr;
    size_t bytes = 0;
};

// The job that runs. `ticket` is (generation << 32 | tasks not yet handed out); whoever lowers it by one
// holds a task, and as long as a task is held the other fields stay as they are.
struct Job {
    std::atomic<uint64_t> ticket{0};
    std::atomic<long> done{0};
    long tasks = 0;
    void (*run)(void*, long, int) = nullptr;
    void* context = nullptr;
};

struct Pool {
    std::mutex mutex;
    std::condition_variable work;
    std::atomic<int> sleeping{0};
    std::atomic<bool> stopping{false};
    Job job;
    int workers = 0;
    std::thread threads[kMostThreads];
};

int wanted_threads = 1;
Pool* pool = nullptr;
Scratch scratch[kMostThreads][kSlots];
std::mutex caller;  // one parallel region at a time
thread_local int inside = -1;

long now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

void take_tasks(Job& job, int thread) {
    inside = thread;
    uint64_t ticket = job.ticket.load();
    while ((uint32_t)ticket != 0) {
        if (!job.ticket.compare_exchange_weak(ticket, ticket - 1)) continue;
        job.run(job.context, job.tasks - (long)(uint32_t)ticket, thread);
        job.done.fetch_add(1);
        ticket = job.ticket.load();
    }
    inside = -1;
}

void work(Pool* mine, int thread) {
    for (;;) {
        const long started = now();
        int spins = 0;
        auto idle = [&] { return (uint32_t)mine->job.ticket.load() == 0 && !mine->stopping.load(); };
        while (idle()) {
            pause_briefly();
            if ((++spins & 63) == 0 && now() - started > kSpinNanoseconds) {
                std::unique_lock<std::mutex> lock(mine->mutex);
                mine->sleeping.fetch_add(1);
                mine->work.wait(lock, [&] { return !idle(); });
                mine->sleeping.fetch_sub(1);
            }
        }
        if (mine->stopping.load()) return;
        take_tasks(mine->job, thread);
    }
}

void wake(Pool* mine) {
    if (mine->sleeping.load() == 0) return;
    { std::lock_guard<std::mutex> lock(mine->mutex); }
    mine->work.notify_all();
}

void stop() {
    if (pool == nullptr) return;
    pool->stopping = true;
    wake(pool);
    for (int i = 0; i < pool->workers; i++) pool->threads[i].join();
    delete pool;
    pool = nullptr;
}

// The threads of a process do not survive a fork: the child makes its own when it needs them.
void after_fork_in_child() {
    pool = nullptr;
    new (&caller) std::mutex;
    inside = -1;
}

void start() {
    if (pool != nullptr && pool->workers == wanted_threads - 1) return;
    static bool registered = false;
    if (!registered) {
        pthread_atfork(nullptr, nullptr, after_fork_in_child);
        atexit(stop);
        registered = true;
    }
    stop();
    pool = new Pool;
    pool->workers = wanted_threads - 1;
    for (int i = 0; i < pool->workers; i++) pool->threads[i] = std::thread(work, pool, i + 1);
}

}  // namespace

extern "C" {

void ek_set_threads(int threads) {
    std::lock_guard<std::mutex> lock(caller);
    wanted_threads = threads < 1 ? 1 : threads > kMostThreads ? kMostThreads : threads;
}

int ek_pool_thread() { return inside < 0 ? 0 : inside; }

bool ek_pool_inside() { return inside >= 0; }

int ek_get_threads() { return wanted_threads; }

void ek_pool_run(long tasks, void (*run)(void*, long, int), void* context) {
    if (inside >= 0) {
        for (long task = 0; task < tasks; task++) run(context, task, inside);
        return;
    }
    std::lock_guard<std::mutex> lock(caller);
    if (tasks <= 1 || wanted_threads == 1) {
        inside = 0;
        for (long task = 0; task < tasks; task++) run(context, task, 0);
        inside = -1;
        return;
    }
    start();
    Job& job = pool->job;
    job.tasks = tasks;
    job.run = run;
    job.context = context;
    job.done = 0;
    const uint64_t generation = (job.ticket.load() >> 32) + 1;
    job.ticket = generation << 32 | (uint64_t)tasks;
    wake(pool);
    take_tasks(job, 0);
    const long started = now();
    for (int spins = 0; job.done.load() != tasks;) {
        pause_briefly();
        if ((++spins & 255) == 0 && now() - started > kSpinNanoseconds) sched_yield();
    }
}

void* ek_pool_scratch(int thread, int slot, size_t bytes) {
    Scratch& mine = scratch[thread][slot];
    if (mine.bytes < bytes) {
        free(mine.memory);
#if defined(__SANITIZE_ADDRESS__)
        const size_t part = 64;  // the sanitizer guards the end of what was asked for
#else
        const size_t part = 4096;
#endif
        const size_t rounded = (bytes + part - 1) / part * part;
        mine.memory = aligned_alloc(part, rounded);
        mine.bytes = mine.memory == nullptr ? 0 : rounded;
    }
    return mine.memory;
}

}  // extern "C"
