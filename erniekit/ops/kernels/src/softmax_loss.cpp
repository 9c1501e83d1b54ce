// Cross-entropy of a linear layer over a vocabulary, rows in chunks so that few logits exist at once.
//
// For each chunk: logits by the matrix product (fp32), then row by row loss and gradient (softmax minus
// one-hot, in the type of storage, written over the logits), then the products that carry the gradient
// to the hidden states and to the weight. A row of logits fits into the second-level cache, so only its
// first pass reads memory.
#include "gemm.h"
#include "pool.h"
#include "vec.h"

namespace EK_NS {
namespace {

enum { IGNORED = -100 };

struct Loss {
    long n, d, v;
    bool transposed;  // weight is [V,D], else [D,V]
    const void *hidden, *weight, *bias;
    const int64_t* labels;
    long chunk;
    float scale;  // of the gradients
    float* logits;
    void* grad_hidden;   // [N,D] in the type of hidden, or null
    float* grad_weight;  // like weight, or null
    float* grad_bias;
    bool add_weight, add_bias;
};

// The first n of VW numbers, `rest` for the others. By memcpy, since narrow numbers are written over
// wide ones here and the compiler takes both for different memory.
EK_INLINE vf vload_or(const float* p, long n, float rest) {
    if (n >= VW) return vload(p);
    float part[VW];
    for (long i = 0; i < VW; i++) part[i] = rest;
    memcpy(part, p, n * sizeof(float));
    return vload(part);
}

EK_INLINE float largest_of(long v, const float* x) {
    const float none = -__builtin_inff();
    vf most[4] = {vset(none), vset(none), vset(none), vset(none)};
    long j = 0;
    for (; j + 4 * VW <= v; j += 4 * VW)
        for (int k = 0; k < 4; k++) most[k] = vmax(most[k], vload(x + j + k * VW));
    for (; j < v; j += VW) most[0] = vmax(most[0], vload_or(x + j, v - j, none));
    return vlargest(vmax(vmax(most[0], most[1]), vmax(most[2], most[3])));
}

// x becomes e^(x - largest); returns the sum, in double over blocks of fp32 sums.
EK_INLINE double exponentials(long v, float* x, float largest) {
    const vf most = vset(largest);
    double total = 0.0;
    for (long from = 0; from < v; from += 4096) {
        const long to = v < from + 4096 ? v : from + 4096;
        vf sums[4] = {vzero(), vzero(), vzero(), vzero()};
        long j = from;
        for (; j + 4 * VW <= to; j += 4 * VW)
            for (int k = 0; k < 4; k++) {
                const vf e = vexp(vsub(vload(x + j + k * VW), most));
                vstore(x + j + k * VW, e);
                sums[k] = vadd(sums[k], e);
            }
        for (; j < to; j += VW) {
            const vf e = vexp(vsub(vload_or(x + j, to - j, -__builtin_inff()), most));
            vstore_n(x + j, e, to - j);
            sums[0] = vadd(sums[0], e);
        }
        total += vsum(vadd(vadd(sums[0], sums[1]), vadd(sums[2], sums[3])));
    }
    return total;
}

// Loss of a row; the gradient is written over its logits. `correct`: the first largest one is the label's.
template <class T>
EK_INLINE double row_loss(const Loss& loss, float* x, int64_t label, bool gradient, int* correct) {
    const long v = loss.v;
    T* out = (T*)x;
    *correct = 0;
    if (label == IGNORED) {
        if (gradient) memset(out, 0, v * sizeof(T));
        return 0.0;
    }
    const float largest = largest_of(v, x), at_label = x[label];
    if (at_label == largest) {
        long j = 0;
        while (x[j] != largest) j++;
        *correct = j == label;
    }
    const double sum = exponentials(v, x, largest);
    if (gradient) {
        const float factor = (float)(loss.scale / sum);
        float at_label_now;
        memcpy(&at_label_now, x + label, sizeof(float));
        const float label_gradient = at_label_now * factor - loss.scale;
        const vf factors = vset(factor);
        // A narrow gradient lies in the first half of the row: always behind what is still to be read.
        long j = 0;
        for (; j + 2 * VW <= v; j += 2 * VW) {
            const vf first = vmul(vload(x + j), factors), second = vmul(vload(x + j + VW), factors);
            vstore(out + j, first);
            vstore(out + j + VW, second);
        }
        for (; j < v; j += VW) vstore_n(out + j, vmul(vload_or(x + j, v - j, 0.0f), factors), v - j);
        store1(out + label, label_gradient);
    }
    return __builtin_log(sum) + ((double)largest - (double)at_label);
}

template <class T>
static void chunk_products(const Loss& loss, long start, long rows, int type, bool written) {
    const long stride = loss.v * (long)(sizeof(float) / sizeof(T));
    const long weight_stride = loss.transposed ? loss.d : loss.v;
    const T* hidden = (const T*)loss.hidden + start * loss.d;
    const Matrix gradient = {loss.logits, stride, false};
    if (loss.grad_hidden != nullptr) {
        T* out = (T*)loss.grad_hidden + start * loss.d;
        const Matrix weight = {loss.weight, weight_stride, !loss.transposed};
        multiply({rows, loss.d, loss.v, type, gradient, weight, out, loss.d, type, 0.0f, nullptr});
    }
    if (loss.grad_weight != nullptr) {
        const float beta = loss.add_weight || written ? 1.0f : 0.0f;
        const Matrix across = {loss.logits, stride, true};
        if (loss.transposed)
            multiply({loss.v, loss.d, rows, type, across, {hidden, loss.d, false}, loss.grad_weight, loss.d,
                      EK_FP32, beta, nullptr});
        else
            multiply({loss.d, loss.v, rows, type, {hidden, loss.d, true}, gradient, loss.grad_weight, loss.v,
                      EK_FP32, beta, nullptr});
    }
    if (loss.grad_bias != nullptr) {
        const bool add = loss.add_bias || written;
        const long width = 4 * VW;
        ek_parallel((loss.v + width - 1) / width, [&](long task, int) {
            for (long j = task * width; j < loss.v && j < (task + 1) * width; j += VW) {
                const long left = loss.v - j;
                vf sum = add ? vload_n(loss.grad_bias + j, left) : vzero();
                for (long i = 0; i < rows; i++) sum = vadd(sum, vload_n((const T*)loss.logits + i * stride + j, left));
                vstore_n(loss.grad_bias + j, sum, left);
            }
        });
    }
}

template <class T>
static void run(const Loss& loss, int type, double* row_losses, int* corrects) {
    const bool gradient = loss.grad_hidden != nullptr || loss.grad_weight != nullptr || loss.grad_bias != nullptr;
    const long weight_stride = loss.transposed ? loss.d : loss.v;
    bool written = false;
    for (long start = 0; start < loss.n; start += loss.chunk) {
        const long rows = loss.n - start < loss.chunk ? loss.n - start : loss.chunk;
        bool labelled = false;
        for (long i = start; i < start + rows && !labelled; i++) labelled = loss.labels[i] != IGNORED;
        if (!labelled) {
            for (long i = start; i < start + rows; i++) row_losses[i] = 0.0, corrects[i] = 0;
            if (loss.grad_hidden != nullptr)
                memset((T*)loss.grad_hidden + start * loss.d, 0, rows * loss.d * sizeof(T));
            continue;
        }
        multiply({rows, loss.v, loss.d, type, {(const T*)loss.hidden + start * loss.d, loss.d, false},
                  {loss.weight, weight_stride, loss.transposed}, loss.logits, loss.v, EK_FP32, 0.0f, loss.bias});
        ek_parallel(rows, [&](long i, int) {
            row_losses[start + i] = row_loss<T>(loss, loss.logits + i * loss.v, loss.labels[start + i], gradient,
                                                corrects + start + i);
        });
        chunk_products<T>(loss, start, rows, type, written);
        written = true;
    }
    if (written) return;
    const long count = loss.v * loss.d;
    if (loss.grad_weight != nullptr && !loss.add_weight) memset(loss.grad_weight, 0, count * sizeof(float));
    if (loss.grad_bias != nullptr && !loss.add_bias) memset(loss.grad_bias, 0, loss.v * sizeof(float));
}

}  // namespace
}  // namespace EK_NS

// Losses [N] and whether the prediction is right [N] for logits hidden [N,D] weight + bias, and `scale`
// times the gradients of the summed loss where there is a place for them. logits: [min(chunk, N), V].
EK_EXPORT(ek_linear_cross_entropy)(int type, long n, long d, long v, int transposed, const void* hidden,
                                   const void* weight, const void* bias, const int64_t* labels, long chunk,
                                   float scale, float* logits, void* grad_hidden, float* grad_weight,
                                   int add_weight, float* grad_bias, int add_bias, double* row_losses,
                                   int* corrects) {
    const EK_NS::Loss loss = {
        n,     d,     v,      transposed != 0, hidden,      weight,    bias,            labels,
        chunk, scale, logits, grad_hidden,     grad_weight, grad_bias, add_weight != 0, add_bias != 0};
    if (type == EK_BF16) EK_NS::run<bf16>(loss, type, row_losses, corrects);
    else EK_NS::run<float>(loss, type, row_losses, corrects);
}

// out = factor x, or out + factor x when `add`; out may be x.
EK_EXPORT(ek_scale)(long count, float factor, const float* x, float* out, int add) {
    const long block = 1 << 14;
    ek_parallel((count + block - 1) / block, [&](long task, int) {
        const long end = count < (task + 1) * block ? count : (task + 1) * block;
        for (long i = task * block; i < end; i += EK_NS::VW) {
            const EK_NS::vf term = EK_NS::vmul(EK_NS::vset(factor), EK_NS::vload_n(x + i, end - i));
            EK_NS::vstore_n(out + i, add ? EK_NS::vadd(EK_NS::vload_n(out + i, end - i), term) : term, end - i);
        }
    });
}
