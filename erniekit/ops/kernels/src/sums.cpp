// Sums over rows, sums of two tensors, and copies in the other type.
#include "pool.h"
#include "vec.h"

namespace EK_NS {
namespace {

template <class T>
static void sum_rows(long m, long n, const T* x, float* out, float factor) {
    // A task owns some columns and adds the rows in order.
    const long width = 4 * VW, tasks = (n + width - 1) / width;
    ek_parallel(tasks, [&](long task, int) {
        for (long j = task * width; j < n && j < (task + 1) * width; j += VW) {
            const long left = n - j;
            vf sum = vzero();
            for (long i = 0; i < m; i++) sum = vadd(sum, vload_n(x + i * n + j, left));
            if (factor != 0.0f) sum = vfma(vset(factor), vload_n(out + j, left), sum);
            vstore_n(out + j, sum, left);
        }
    });
}

template <class T>
static void add(long count, const T* x, const T* y, T* out) {
    const long block = 1 << 14;
    ek_parallel((count + block - 1) / block, [&](long task, int) {
        const long end = count < (task + 1) * block ? count : (task + 1) * block;
        for (long i = task * block; i < end; i += VW)
            vstore_n(out + i, vadd(vload_n(x + i, end - i), vload_n(y + i, end - i)), end - i);
    });
}

template <class T, class U>
static void convert(long count, const T* x, U* out) {
    const long block = 1 << 14;
    ek_parallel((count + block - 1) / block, [&](long task, int) {
        const long end = count < (task + 1) * block ? count : (task + 1) * block;
        for (long i = task * block; i < end; i += VW) vstore_n(out + i, vload_n(x + i, end - i), end - i);
    });
}

}  // namespace
}  // namespace EK_NS

// out = x in the other type, `count` elements; `type` is that of x.
EK_EXPORT(ek_convert)(int type, long count, const void* x, void* out) {
    if (type == EK_BF16) EK_NS::convert(count, (const bf16*)x, (float*)out);
    else EK_NS::convert(count, (const float*)x, (bf16*)out);
}

// out [N] (fp32) = factor out + the sum over M rows of x [M,N].
EK_EXPORT(ek_sum_rows)(int type, long m, long n, const void* x, float* out, float factor) {
    if (type == EK_BF16) EK_NS::sum_rows(m, n, (const bf16*)x, out, factor);
    else EK_NS::sum_rows(m, n, (const float*)x, out, factor);
}

// out = x + y, `count` elements; out may be one of them.
EK_EXPORT(ek_add)(int type, long count, const void* x, const void* y, void* out) {
    if (type == EK_BF16) EK_NS::add(count, (const bf16*)x, (const bf16*)y, (bf16*)out);
    else EK_NS::add(count, (const float*)x, (const float*)y, (float*)out);
}
