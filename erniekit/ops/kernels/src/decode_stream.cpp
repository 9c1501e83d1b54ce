// Reading memory and nothing else: the bound of decoding on a machine, measured by the same threads.
#include "pool.h"
#include "vec.h"

using namespace EK_NS;

// Reads `bytes` at `memory` once, shared by all threads; a number that depends on all of it goes to `out`.
EK_EXPORT(ek_stream)(const char* memory, long bytes, float* out) {
    const long part = 1l << 20, parts = bytes / part;
    ek_parallel(parts, [&](long task, int) {
        const float* p = (const float*)(memory + task * part);
        vf sums[4] = {vzero(), vzero(), vzero(), vzero()};
        for (long i = 0; i < part / 4; i += 4 * VW)
            for (int j = 0; j < 4; j++) {
                __builtin_prefetch(p + i + j * VW + 1024, 0, 3);
                sums[j] = vmax(sums[j], vload(p + i + j * VW));
            }
        const float most = vlargest(vmax(vmax(sums[0], sums[1]), vmax(sums[2], sums[3])));
        if (most > 1e30f) *out = most;
    });
}
