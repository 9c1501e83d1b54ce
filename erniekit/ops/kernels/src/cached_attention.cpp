// Columns of a prompt and the cache of earlier ones: keys and values are stored, and new queries attend
// to what is there. (The first columns of a prompt attend to each other, see attention.cpp; one new
// column of every layer is decode.cpp.)
//
// Queries of a few columns and all query heads of a key head are rows of one product with the keys of a
// block; the softmax is corrected from block to block as in attention.cpp.
#include "decode_products.h"

namespace EK_NS {
namespace {

struct Cached {
    const void* qkv;             // [rows][columns][(N + 2K) D]
    const float* turns;          // cosine and sine of each pair, of every row and column
    long turn_stride;            // numbers from one column's to the next's
    const int32_t* attend_from;  // [rows][columns]
    void *keys, *values;         // [rows][key heads][capacity][dim]
    void* out;                   // [rows][columns][N D]
    long capacity, past, rows, columns, heads, key_heads, dim;
    long width() const { return (heads + 2 * key_heads) * dim; }
    long place(long row, long head, long column) const { return ((row * key_heads + head) * capacity + column) * dim; }
};

enum { kBlockColumns = 256, kQueries = 16 };
const float kNone = -1e30f;

template <class T>
EK_INLINE void turned(const Cached& c, const T* from, long row, long column, float* to) {
    const float* turns = c.turns + (row * c.columns + column) * c.turn_stride;
    for (long i = 0; i < c.dim; i += 2) {
        const float x = load1(from + i), y = load1(from + i + 1);
        to[i] = x * turns[i] - y * turns[i + 1];
        to[i + 1] = y * turns[i] + x * turns[i + 1];
    }
}

template <class T>
static void store(const Cached& c) {
    const long part = 16, parts = (c.columns + part - 1) / part;
    ek_parallel(c.rows * parts, [&](long task, int thread) {
        const long row = task / parts, first = task % parts * part, last = smaller(first + part, c.columns);
        float* key = ek_scratch<float>(thread, 0, padded(c.dim));
        for (long t = first; t < last; t++)
            for (long head = 0; head < c.key_heads; head++) {
                const T* k = (const T*)c.qkv + (row * c.columns + t) * c.width() + (c.heads + head) * c.dim;
                T* to = (T*)c.keys + c.place(row, head, c.past + t);
                turned(c, k, row, t, key);
                for (long i = 0; i < c.dim; i += VW) vstore_n(to + i, vload(key + i), c.dim - i);
                memcpy((T*)c.values + c.place(row, head, c.past + t), k + c.key_heads * c.dim, c.dim * sizeof(T));
            }
    });
}

// Queries [first, last) of one row and key head.
template <class T>
static void attend(const Cached& c, long row, long head, long first, long last, int thread) {
    typedef typename Operand<T>::type X;
    const long group = c.heads / c.key_heads, dim = c.dim, lanes = padded(dim), num = (last - first) * group;
    const long cells = kBlockColumns, block = Operand<T>::columns;
    float* at = ek_scratch<float>(thread, 0, lanes + num * (3 * lanes + 2 * cells + 3));
    auto take = [&](long count) {
        float* p = at;
        at += count;
        return p;
    };
    float *one = take(lanes), *outputs = take(num * lanes), *sums = take(num * lanes), *scores = take(num * cells);
    X *q = (X*)take(num * lanes), *weights = (X*)take(num * cells);
    float *largest = take(num), *totals = take(num), *keep = take(num);

    long lowest = c.past + last;
    for (long r = 0; r < num; r++) {
        const long t = first + r / group, n = head * group + r % group;
        turned(c, (const T*)c.qkv + (row * c.columns + t) * c.width() + n * dim, row, t, one);
        for (long i = 0; i < dim; i += VW) put<T>(q + r * lanes + i, vload(one + i), smaller(VW, dim - i));
        clear_rest(q + r * lanes, dim);
        memset(outputs + r * lanes, 0, lanes * sizeof(float));
        largest[r] = kNone, totals[r] = 0.0f;
        lowest = smaller(lowest, c.attend_from[row * c.columns + t]);
    }
    const float scale = 1.0f / __builtin_sqrtf((float)dim);
    const T *keys = (const T*)c.keys + c.place(row, head, 0), *values = (const T*)c.values + c.place(row, head, 0);
    for (long start = lowest; start < c.past + last; start += kBlockColumns) {
        const long count = smaller(kBlockColumns, c.past + last - start);
        multiply_rows<T>(keys + start * dim, dim, count, q, lanes, num, dim, scores, cells);
        for (long r = 0; r < num; r++) {
            const long t = first + r / group;
            const long low = larger(c.attend_from[row * c.columns + t] - start, 0);
            const long high = smaller(c.past + t + 1 - start, count);
            float* s = scores + r * cells;
            for (long i = 0; i < smaller(low, count); i++) s[i] = kNone;
            for (long i = larger(high, 0); i < round_up(count, VW); i++) s[i] = kNone;
            vf most = vset(largest[r]);
            for (long i = 0; i < count; i += VW) most = vmax(most, vload(s + i));
            const float now = vlargest(most);
            // Nothing seen so far: every weight is zero, not e^0.
            const vf shift = vset(now <= kNone ? 0.0f : now), wide = vset(scale);
            vf total = vzero();
            for (long i = 0; i < count; i += VW) {
                const vf p = stored<T>(vexp(vmul(vsub(vload(s + i), shift), wide)));
                total = vadd(total, p);
                put<T>(weights + r * cells + i, p, VW);
            }
            float factor[VW];
            vstore(factor, vexp(vset((largest[r] - now) * scale)));
            keep[r] = factor[0];
            totals[r] = totals[r] * factor[0] + vsum(total);
            largest[r] = now;
        }
        multiply_columns<T>(values + start * dim, dim, weights, cells, num, count, dim, sums, nullptr);
        const float* from = sums;
        for (long d = 0; d < dim; d += block)
            for (long r = 0; r < num; r++, from += block) {
                float* to = outputs + r * lanes + d;
                vf a, b;
                column_sums<T>(from, &a, &b);
                vstore(to, vfma(vload(to), vset(keep[r]), a));
                vstore(to + VW, vfma(vload(to + VW), vset(keep[r]), b));
            }
    }
    for (long r = 0; r < num; r++) {
        T* to = (T*)c.out + (row * c.columns + first + r / group) * c.heads * dim + (head * group + r % group) * dim;
        const vf inverse = vset(1.0f / totals[r]);
        for (long i = 0; i < dim; i += VW) vstore_n(to + i, vmul(vload(outputs + r * lanes + i), inverse), dim - i);
    }
}

template <class T>
static void attend_all(const Cached& c) {
    const long each = larger(1, kQueries / (c.heads / c.key_heads)), tiles = (c.columns + each - 1) / each;
    ek_parallel(c.rows * c.key_heads * tiles, [&](long task, int thread) {
        // Late queries see most: they come first.
        const long tile = tiles - 1 - task / (c.rows * c.key_heads), rest = task % (c.rows * c.key_heads);
        const long last = smaller((tile + 1) * each, c.columns);
        attend<T>(c, rest / c.key_heads, rest % c.key_heads, tile * each, last, thread);
    });
}

}  // namespace
}  // namespace EK_NS

using namespace EK_NS;

// Stores turned keys, and values, of `columns` new columns behind `past` ones.
EK_EXPORT(ek_cache_store)(const void* qkv, const float* turns, long turn_stride, void* keys, void* values,
                          long capacity, long past, long rows, long columns, long heads, long key_heads, long dim,
                          int type) {
    const Cached c{qkv,  turns, turn_stride, nullptr, keys,      values, nullptr, capacity,
                   past, rows,  columns,     heads,   key_heads, dim};
    if (type == EK_BF16) store<bf16>(c);
    else store<float>(c);
}

// Attention of these columns, which are stored, over them and the `past` ones.
EK_EXPORT(ek_cache_attend)(const void* qkv, const float* turns, long turn_stride, const int32_t* attend_from,
                           void* keys, void* values, void* out, long capacity, long past, long rows, long columns,
                           long heads, long key_heads, long dim, int type) {
    const Cached c{qkv,  turns, turn_stride, attend_from, keys,      values, out, capacity,
                   past, rows,  columns,     heads,       key_heads, dim};
    if (type == EK_BF16) attend_all<bf16>(c);
    else attend_all<float>(c);
}
