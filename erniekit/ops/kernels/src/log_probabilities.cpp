// Log-probabilities of given tokens from rows of logits, and the gradient that goes back through them.
//
//   y = x[label] - L,  L = log sum exp x;   dx = g (onehot(label) - e^(x - L)).
//
// The logits of a chunk of rows come from the matrix product; L is kept, so the backward pass, which
// computes the logits again, needs one pass over them. A row without a label has the log-probability 0.
#include "pool.h"
#include "vec.h"

namespace EK_NS {
namespace {

enum { NO_LABEL = -100 };

EK_INLINE vf load_or(const float* p, long n, float rest) {
    if (n >= VW) return vload(p);
    float part[VW];
    for (long i = 0; i < VW; i++) part[i] = i < n ? p[i] : rest;
    return vload(part);
}

// L of a row; sums in double over blocks of fp32 sums.
EK_INLINE double log_sum_exp(long v, const float* x) {
    const float none = -__builtin_inff();
    vf most = vset(none);
    for (long j = 0; j < v; j += VW) most = vmax(most, load_or(x + j, v - j, none));
    const float largest = vlargest(most);
    const vf shift = vset(largest);
    double total = 0.0;
    for (long from = 0; from < v; from += 4096) {
        const long to = v < from + 4096 ? v : from + 4096;
        vf sums[2] = {vzero(), vzero()};
        long j = from;
        for (; j + 2 * VW <= to; j += 2 * VW)
            for (int k = 0; k < 2; k++) sums[k] = vadd(sums[k], vexp(vsub(vload(x + j + k * VW), shift)));
        for (; j < to; j += VW) sums[0] = vadd(sums[0], vexp(vsub(load_or(x + j, to - j, none), shift)));
        total += vsum(vadd(sums[0], sums[1]));
    }
    return (double)largest + __builtin_log(total);
}

// `out` may be the row of logits itself.
template <class T>
EK_INLINE void gradient_of(long v, const float* x, int64_t label, float gradient, double log_sum, T* out) {
    if (label == NO_LABEL || gradient == 0.0f) {
        memset(out, 0, v * sizeof(T));
        return;
    }
    const float at_label = x[label];
    const vf shift = vset((float)log_sum), factor = vset(-gradient);
    for (long j = 0; j < v; j += VW) {
        const vf e = vexp(vsub(load_or(x + j, v - j, 0.0f), shift));
        vstore_n(out + j, vmul(e, factor), v - j);
    }
    const float left = (float)(1.0 - __builtin_exp((double)at_label - log_sum));
    store1(out + label, gradient * left);
}

}  // namespace
}  // namespace EK_NS

// out [rows] and log_sums [rows] of logits [rows, v].
EK_EXPORT(ek_log_probabilities)(long rows, long v, const float* logits, const int64_t* labels, float* out,
                                double* log_sums) {
    ek_parallel(rows, [&](long i, int) {
        const float* x = logits + i * v;
        log_sums[i] = EK_NS::log_sum_exp(v, x);
        const bool labelled = labels[i] != EK_NS::NO_LABEL;
        out[i] = labelled ? (float)((double)x[labels[i]] - log_sums[i]) : 0.0f;
    });
}

// The gradient of the logits, out [rows, v] of `type`; in fp32 it may take the place of the logits.
EK_EXPORT(ek_log_probabilities_backward)(int type, long rows, long v, const float* logits, const int64_t* labels,
                                         const float* gradients, const double* log_sums, void* out) {
    ek_parallel(rows, [&](long i, int) {
        const float* x = logits + i * v;
        if (type == EK_BF16) EK_NS::gradient_of(v, x, labels[i], gradients[i], log_sums[i], (bf16*)out + i * v);
        else EK_NS::gradient_of(v, x, labels[i], gradients[i], log_sums[i], (float*)out + i * v);
    });
}
