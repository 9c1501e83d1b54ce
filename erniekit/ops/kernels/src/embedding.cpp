// Rows of a table by id, and their gradient added into an fp32 table.
#include "pool.h"
#include "vec.h"

namespace EK_NS {
namespace {

enum { ROWS = 64, COLUMNS = 64 };

template <class T>
static void gather(long n, long d, const int64_t* ids, const T* table, T* out) {
    ek_parallel((n + ROWS - 1) / ROWS, [&](long task, int) {
        for (long i = task * ROWS; i < n && i < (task + 1) * ROWS; i++)
            memcpy(out + i * d, table + ids[i] * d, d * sizeof(T));
    });
}

// A task owns some columns and goes through the ids in order, so equal ids add in one order always.
template <class T>
static void add_rows(long n, long d, const int64_t* ids, const T* grad, float* table) {
    ek_parallel((d + COLUMNS - 1) / COLUMNS, [&](long task, int) {
        const long from = task * COLUMNS, to = d < from + COLUMNS ? d : from + COLUMNS;
        for (long i = 0; i < n; i++) {
            float* out = table + ids[i] * d;
            for (long j = from; j < to; j += VW)
                vstore_n(out + j, vadd(vload_n(out + j, to - j), vload_n(grad + i * d + j, to - j)), to - j);
        }
    });
}

static void clear(long count, float* table) {
    const long block = 1 << 16;
    ek_parallel((count + block - 1) / block, [&](long task, int) {
        const long left = count - task * block;
        memset(table + task * block, 0, (left < block ? left : block) * sizeof(float));
    });
}

}  // namespace
}  // namespace EK_NS

// out [N,D] = table [V,D] at ids [N]; the caller has checked them.
EK_EXPORT(ek_embedding)(int type, long n, long d, const int64_t* ids, const void* table, void* out) {
    if (type == EK_BF16) EK_NS::gather(n, d, ids, (const bf16*)table, (bf16*)out);
    else EK_NS::gather(n, d, ids, (const float*)table, (float*)out);
}

// table [V,D] (fp32) += grad [N,D] at ids [N]; the table becomes zero first unless `add`.
EK_EXPORT(ek_embedding_backward)(int type, long n, long d, long v, const int64_t* ids, const void* grad,
                                 float* table, int add) {
    if (!add) EK_NS::clear(v * d, table);
    if (type == EK_BF16) EK_NS::add_rows(n, d, ids, (const bf16*)grad, table);
    else EK_NS::add_rows(n, d, ids, (const float*)grad, table);
}
