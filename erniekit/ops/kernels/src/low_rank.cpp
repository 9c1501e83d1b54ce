// y[M,N] += h[M,R] b[R,N], R small: what a low-rank adapter adds to a product that is already there.
//
// A task takes a block of rows past all columns; b has been widened to fp32 once, row by row. Sums run
// in fp32, over R in order, and y is rounded once. No sum is split, so results do not depend on threads.
#include "pool.h"
#include "vec.h"

namespace EK_NS {
namespace {

#if EK_LEVEL >= 1
enum { ROWS = 6, VECTORS = 2 };
#else
enum { ROWS = 2, VECTORS = 2 };
#endif
enum { WIDTH = VECTORS * VW, BLOCK = 48 };

// b as fp32 [R][padded N], from [R,N] or, transposed, from [N,R].
template <class T>
static void widen(long r, long n, const T* b, long stride, bool transposed, float* out, long padded) {
    ek_parallel(r, [&](long row, int) {
        float* to = out + row * padded;
        for (long j = 0; j < padded; j++)
            to[j] = j >= n ? 0.0f : load1(transposed ? b + j * stride + row : b + row * stride + j);
    });
}

template <int R, class T>
EK_INLINE void tile(long depth, long columns, const T* h, long h_stride, const float* b, long padded, T* y,
                    long y_stride) {
    vf sums[R][VECTORS];
    for (int i = 0; i < R; i++)
        for (int j = 0; j < VECTORS; j++) sums[i][j] = vzero();
    for (long p = 0; p < depth; p++) {
        vf row[VECTORS];
        for (int j = 0; j < VECTORS; j++) row[j] = vload(b + p * padded + j * VW);
        for (int i = 0; i < R; i++) {
            const vf x = vset(load1(h + i * h_stride + p));
            for (int j = 0; j < VECTORS; j++) sums[i][j] = vfma(x, row[j], sums[i][j]);
        }
    }
    for (int i = 0; i < R; i++)
        for (int j = 0; j < VECTORS; j++) {
            const long left = columns - j * VW;
            if (left <= 0) break;
            T* at = y + i * y_stride + j * VW;
            vstore_n(at, vadd(vload_n(at, left), sums[i][j]), left);
        }
}

template <class T>
static void add_low_rank(long m, long n, long r, const T* h, long h_stride, const T* b, long b_stride,
                         bool transposed, T* y, long y_stride) {
    if (m <= 0 || n <= 0 || r <= 0) return;
    const long padded = (n + WIDTH - 1) / WIDTH * WIDTH;
    float* wide = ek_scratch<float>(ek_pool_thread(), 4, (size_t)padded * r);
    widen(r, n, b, b_stride, transposed, wide, padded);
    ek_parallel((m + BLOCK - 1) / BLOCK, [&](long task, int) {
        const long end = m < (task + 1) * BLOCK ? m : (task + 1) * BLOCK;
        for (long j = 0; j < n; j += WIDTH) {
            long i = task * BLOCK;
            for (; i + ROWS <= end; i += ROWS)
                tile<ROWS>(r, n - j, h + i * h_stride, h_stride, wide + j, padded, y + i * y_stride + j, y_stride);
            for (; i < end; i++)
                tile<1>(r, n - j, h + i * h_stride, h_stride, wide + j, padded, y + i * y_stride + j, y_stride);
        }
    });
}

}  // namespace
}  // namespace EK_NS

// y [M,N] += h [M,R] b [R,N] (stored [N,R] when b_transposed), strides in elements, all of one type.
EK_EXPORT(ek_add_low_rank)(int type, long m, long n, long r, const void* h, long h_stride, const void* b,
                           long b_stride, int b_transposed, void* y, long y_stride) {
    const bool turned = b_transposed != 0;
    if (type == EK_BF16)
        EK_NS::add_low_rank(m, n, r, (const bf16*)h, h_stride, (const bf16*)b, b_stride, turned, (bf16*)y, y_stride);
    else
        EK_NS::add_low_rank(m, n, r, (const float*)h, h_stride, (const float*)b, b_stride, turned, (float*)y,
                            y_stride);
}
