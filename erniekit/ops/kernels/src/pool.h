// The threads of this library, and scratch memory for each.
//
// A pool of its own and no OpenMP: Paddle brings Intel's OpenMP, and a second runtime beside it would
// spin against the first on the same cores. Tasks are handed out one by one, so a core that is slower
// or busy does less; results must therefore not depend on who runs a task, nor on how many run.
#pragma once

#include <stddef.h>

extern "C" {
// Calls run(context, task, thread) for every task in [0, tasks); returns when all are done.
// Calls from inside a task run on the calling thread.
void ek_pool_run(long tasks, void (*run)(void* context, long task, int thread), void* context);
// The thread that runs the present task; 0 outside of tasks.
int ek_pool_thread();
// Whether a task is running on this thread.
bool ek_pool_inside();
// 64-byte aligned memory of a thread, kept between calls; `slot` (0..7) separates users of one task.
void* ek_pool_scratch(int thread, int slot, size_t bytes);
__attribute__((visibility("default"))) void ek_set_threads(int threads);
__attribute__((visibility("default"))) int ek_get_threads();
}

// The same for a lambda (task, thread).
template <class F>
static inline void ek_parallel(long tasks, const F& body) {
    ek_pool_run(
        tasks, [](void* context, long task, int thread) { (*(const F*)context)(task, thread); }, (void*)&body);
}

template <class T>
static inline T* ek_scratch(int thread, int slot, size_t count) {
    return (T*)ek_pool_scratch(thread, slot, count * sizeof(T));
}
