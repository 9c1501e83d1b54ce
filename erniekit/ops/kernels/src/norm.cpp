// RMSNorm, also with the residual sum before it. With r = (mean(x^2) + epsilon)^(-1/2) and y = x r w:
//     dw = sum over rows of (g x r),    dx = g w r - x r^3 mean(g w x).
// The value x r is rounded to the type of storage before the product with w, as the reference does.
#include "pool.h"
#include "vec.h"

namespace EK_NS {
namespace {

// Rows of a task. A constant, so that sums over rows do not depend on the number of threads.
enum { ROWS = 32 };

// x as it would be after a store and a load.
EK_INLINE vf as_stored(const float*, vf x) { return x; }
EK_INLINE vf as_stored(const bf16*, vf x) {
#if EK_LEVEL >= 1
    return vwiden(vnarrow(x));
#else
    bf16 part[VW];
    vstore(part, x);
    return vload(part);
#endif
}

template <class T>
EK_INLINE void normalise(long d, const T* x, const T* weight, float scale, T* out) {
    const vf r = vset(scale);
    long j = 0;
    for (; j + VW <= d; j += VW)
        vstore(out + j, vmul(as_stored(x, vmul(vload(x + j), r)), vload(weight + j)));
    if (j < d) {
        const vf value = as_stored(x, vmul(vload_n(x + j, d - j), r));
        vstore_n(out + j, vmul(value, vload_n(weight + j, d - j)), d - j);
    }
}

// (mean(x^2) + epsilon)^(-1/2) of a row; with a delta, x + delta becomes the row first and is stored.
template <class T>
EK_INLINE float add_and_scale(long d, const T* x, const T* delta, T* sum, float epsilon) {
    vf squares[4] = {vzero(), vzero(), vzero(), vzero()};
    long j = 0;
    const auto step = [&](long at, long left, vf& total) {
        vf value = left >= VW ? vload(x + at) : vload_n(x + at, left);
        if (delta != nullptr) {
            value = as_stored(x, vadd(value, left >= VW ? vload(delta + at) : vload_n(delta + at, left)));
            if (left >= VW) vstore(sum + at, value);
            else vstore_n(sum + at, value, left);
        }
        total = vfma(value, value, total);
    };
    for (; j + 4 * VW <= d; j += 4 * VW)
        for (int k = 0; k < 4; k++) step(j + k * VW, VW, squares[k]);
    for (; j < d; j += VW) step(j, d - j, squares[0]);
    const float total = vsum(vadd(vadd(squares[0], squares[1]), vadd(squares[2], squares[3])));
    return 1.0f / __builtin_sqrtf(total / (float)d + epsilon);
}

template <class T>
static void forward(long rows, long d, const T* x, const T* delta, const T* weight, float epsilon, T* sum,
                    T* normed, float* scales, bool known) {
    ek_parallel((rows + ROWS - 1) / ROWS, [&](long task, int) {
        for (long i = task * ROWS; i < rows && i < (task + 1) * ROWS; i++) {
            const T* row = x + i * d;
            if (!known) scales[i] = add_and_scale(d, row, delta ? delta + i * d : nullptr, sum + i * d, epsilon);
            normalise(d, delta ? sum + i * d : row, weight, scales[i], normed + i * d);
        }
    });
}

template <class T>
EK_INLINE void backward_row(long d, const T* grad, const T* grad_sum, const T* x, const T* weight, float scale,
                            T* grad_x, T* again, float* grad_weight) {
    const vf r = vset(scale);
    vf dots[2] = {vzero(), vzero()};
    for (long j = 0, k = 0; j < d; j += VW, k ^= 1) {
        const long left = d - j;
        const vf g = vload_n(grad + j, left), value = vload_n(x + j, left);
        if (grad_x != nullptr) dots[k] = vfma(vmul(g, vload_n(weight + j, left)), value, dots[k]);
        if (grad_weight != nullptr) {
            const vf before = vload_n(grad_weight + j, left);
            vstore_n(grad_weight + j, vfma(g, as_stored(x, vmul(value, r)), before), left);
        }
    }
    if (grad_x == nullptr) return;
    const vf pull = vset(-scale * scale * scale * (vsum(vadd(dots[0], dots[1])) / (float)d));
    for (long j = 0; j < d; j += VW) {
        const long left = d - j;
        vf out = vmul(vload_n(x + j, left), pull);
        out = vfma(vmul(vload_n(grad + j, left), vload_n(weight + j, left)), r, out);
        if (grad_sum != nullptr) out = vadd(out, vload_n(grad_sum + j, left));
        vstore_n(grad_x + j, out, left);
        if (again != nullptr) vstore_n(again + j, out, left);
    }
}

// out = factor out + the sum of `parts` rows of d, in their order.
static void add_parts(long parts, long d, const float* sums, float* out, float factor) {
    for (long j = 0; j < d; j += VW) {
        vf total = vzero();
        for (long part = 0; part < parts; part++) total = vadd(total, vload_n(sums + part * d + j, d - j));
        if (factor != 0.0f) total = vfma(vset(factor), vload_n(out + j, d - j), total);
        vstore_n(out + j, total, d - j);
    }
}

template <class T>
static void backward(long rows, long d, const T* grad, const T* grad_sum, const T* x, const T* weight,
                     const float* scales, T* grad_x, T* again, float* grad_weight, float factor) {
    const long tasks = (rows + ROWS - 1) / ROWS;
    // Of the calling thread, which is 0; the tasks use no scratch of their own.
    float* parts = grad_weight == nullptr ? nullptr : ek_scratch<float>(0, 0, (size_t)(tasks * d + 1));
    ek_parallel(tasks, [&](long task, int) {
        float* part = parts == nullptr ? nullptr : parts + task * d;
        if (part != nullptr) memset(part, 0, d * sizeof(float));
        for (long i = task * ROWS; i < rows && i < (task + 1) * ROWS; i++)
            backward_row(d, grad + i * d, grad_sum ? grad_sum + i * d : nullptr, x + i * d, weight, scales[i],
                         grad_x ? grad_x + i * d : nullptr, again ? again + i * d : nullptr, part);
    });
    if (grad_weight != nullptr) add_parts(tasks, d, parts, grad_weight, factor);
}

}  // namespace
}  // namespace EK_NS

// normed [R,D] and scales [R] of x [R,D], or of sum = x + delta. `known`: scales are given, no delta.
EK_EXPORT(ek_rms_norm)(int type, long rows, long d, const void* x, const void* delta, const void* weight,
                       float epsilon, void* sum, void* normed, float* scales, int known) {
    if (type == EK_BF16)
        EK_NS::forward(rows, d, (const bf16*)x, (const bf16*)delta, (const bf16*)weight, epsilon, (bf16*)sum,
                       (bf16*)normed, scales, known);
    else
        EK_NS::forward(rows, d, (const float*)x, (const float*)delta, (const float*)weight, epsilon, (float*)sum,
                       (float*)normed, scales, known);
}

// grad_x = gradient through the norm + grad_sum; grad_weight (fp32) = factor grad_weight + its gradient.
// `again` becomes a copy of grad_x. grad_sum, grad_x, again and grad_weight may be null.
EK_EXPORT(ek_rms_norm_backward)(int type, long rows, long d, const void* grad, const void* grad_sum, const void* x,
                                const void* weight, const float* scales, void* grad_x, void* again,
                                float* grad_weight, float factor) {
    if (type == EK_BF16)
        EK_NS::backward(rows, d, (const bf16*)grad, (const bf16*)grad_sum, (const bf16*)x, (const bf16*)weight,
                        scales, (bf16*)grad_x, (bf16*)again, grad_weight, factor);
    else
        EK_NS::backward(rows, d, (const float*)grad, (const float*)grad_sum, (const float*)x, (const float*)weight,
                        scales, (float*)grad_x, (float*)again, grad_weight, factor);
}
