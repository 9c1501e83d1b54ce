// The choice of experts, their sorted slots, rows brought back to their tokens, and the gradients of that.
//
//   N tokens, k choices a token, M rows sorted by expert, H features; place -1 is a dropped choice
#include "pool.h"
#include "vec.h"

namespace EK_NS {
namespace {

enum { ROWS = 16 };

// out[n] = sum over j, in order, of weight[n,j] * y[place[n,j]]; without weights they are 1.
template <class T>
static void sum_places(long n, long k, long h, const int64_t* places, const T* y, const float* weights, T* out) {
    ek_parallel((n + ROWS - 1) / ROWS, [&](long task, int) {
        for (long i = task * ROWS; i < n && i < (task + 1) * ROWS; i++) {
            for (long c = 0; c < h; c += VW) {
                vf sum = vzero();
                for (long j = 0; j < k; j++) {
                    const long place = places[i * k + j];
                    if (place < 0) continue;
                    const vf row = vload_n(y + place * h + c, h - c);
                    sum = weights ? vfma(vset(weights[i * k + j]), row, sum) : vadd(sum, row);
                }
                vstore_n(out + i * h + c, sum, h - c);
            }
        }
    });
}

// Of the weighted sum above: dy[m] = weight of its slot * g[its token], dweight[slot] = y[m] . g[its token].
template <class T>
static void sum_backward(long m, long k, long h, const int64_t* slots, const float* weights, const T* y,
                         const T* grad, T* grad_y, float* grad_weights) {
    ek_parallel((m + ROWS - 1) / ROWS, [&](long task, int) {
        for (long i = task * ROWS; i < m && i < (task + 1) * ROWS; i++) {
            const long slot = slots[i];
            const T* g = grad + slot / k * h;
            const vf weight = vset(weights[slot]);
            vf dot = vzero();
            for (long c = 0; c < h; c += VW) {
                const vf row = vload_n(g + c, h - c);
                dot = vfma(vload_n(y + i * h + c, h - c), row, dot);
                vstore_n(grad_y + i * h + c, vmul(weight, row), h - c);
            }
            grad_weights[slot] = vsum(dot);
        }
    });
}

// The k largest of every row, largest first; of equal ones the first.
static void top_k(long n, long e, long k, const float* x, int64_t* chosen) {
    ek_parallel((n + ROWS - 1) / ROWS, [&](long task, int thread) {
        float* best = ek_scratch<float>(thread, 0, k);
        for (long i = task * ROWS; i < n && i < (task + 1) * ROWS; i++) {
            int64_t* out = chosen + i * k;
            long filled = 0;
            for (long j = 0; j < e; j++) {
                const float y = x[i * e + j];
                if (filled == k && !(y > best[k - 1])) continue;
                long at = filled < k ? filled++ : k - 1;
                for (; at > 0 && y > best[at - 1]; at--) {
                    best[at] = best[at - 1];
                    out[at] = out[at - 1];
                }
                best[at] = y;
                out[at] = j;
            }
        }
    });
}

}  // namespace
}  // namespace EK_NS

// chosen [N,k]: places of the k largest of every row of x [N,E].
EK_EXPORT(ek_top_k)(long n, long e, long k, const float* x, int64_t* chosen) { EK_NS::top_k(n, e, k, x, chosen); }

// Of slots with experts chosen [N k], none dropped: offsets [E+1], and in the order of experts, slots and
// their tokens [N k]; places [N k] says where a slot went.
EK_EXPORT(ek_sort_slots)(long count, long k, long e, const int64_t* chosen, int64_t* offsets, int64_t* tokens,
                         int64_t* slots, int64_t* places) {
    memset(offsets, 0, (e + 1) * sizeof(int64_t));
    for (long i = 0; i < count; i++) offsets[chosen[i] + 1]++;
    for (long j = 0; j < e; j++) offsets[j + 1] += offsets[j];
    for (long i = 0; i < count; i++) {
        const int64_t place = offsets[chosen[i]]++;
        slots[place] = i;
        tokens[place] = i / k;
        places[i] = place;
    }
    for (long j = e; j > 0; j--) offsets[j] = offsets[j - 1];
    offsets[0] = 0;
}

// out [N,H] of y [M,H] at places [N,k], with fp32 weights [N,k] or none.
EK_EXPORT(ek_sum_places)(int type, long n, long k, long h, const int64_t* places, const void* y,
                         const float* weights, void* out) {
    if (type == EK_BF16) EK_NS::sum_places(n, k, h, places, (const bf16*)y, weights, (bf16*)out);
    else EK_NS::sum_places(n, k, h, places, (const float*)y, weights, (float*)out);
}

// Gradients to y [M,H] and to the weights [N,k] (0 where no row is), from grad [N,H]; slots [M] lie in [N,k].
EK_EXPORT(ek_sum_places_backward)(int type, long n, long k, long m, long h, const int64_t* slots,
                                  const float* weights, const void* y, const void* grad, void* grad_y,
                                  float* grad_weights) {
    memset(grad_weights, 0, n * k * sizeof(float));
    if (type == EK_BF16)
        EK_NS::sum_backward(m, k, h, slots, weights, (const bf16*)y, (const bf16*)grad, (bf16*)grad_y,
                            grad_weights);
    else
        EK_NS::sum_backward(m, k, h, slots, weights, (const float*)y, (const float*)grad, (float*)grad_y,
                            grad_weights);
}
