// Attention of queries over earlier keys, forward: blocks of keys, softmax as they come.
//
// For every block of keys the running maximum m, sum l and output O of a query are corrected
// (Milakov and Gimelshein 2018; Dao et al. 2022):
//   m' = max(m, max s),  p = 2^(c (s - m')),  l' = l 2^(c (m - m')) + sum p,  O' = O 2^(c (m - m')) + p V
// with c = log2(e) / sqrt(D). Scores exist for six rows and one block at a time. Blocks that none of the
// six rows sees are skipped, and so are vectors of keys at the ends of a block.
//
// Rows of a tile are (query column, query head of the key head): keys are never repeated.
#include "attention_tiles.h"

namespace EK_NS {
namespace {

struct Forward {
    Shape shape;
    const void* qkv;
    void* out;
    float* log_sum;  // [rows, heads, columns], or null: not wanted
};

// Per-thread memory of a task: queries, outputs and sums of its rows; packed keys and values.
struct ForwardScratch {
    float *queries, *outputs, *largest, *sums;
    float *columns, *keys, *values;
    float *scores, *weights;
    int32_t *from, *to, *low, *high, *gap;
    long used;
    ForwardScratch(const Shape& s, const Groups& groups, bool pairs, float* base) {
        Arena arena{base};
        const long rows = groups.rows, cells = s.cells(pairs);
        queries = arena.take(rows * cells);
        outputs = arena.take(rows * s.lanes());
        largest = arena.take(rows);
        sums = arena.take(rows);
        columns = arena.take(kBlock * cells);
        keys = arena.take(kBlock * cells);
        values = arena.take((pairs ? kBlock / 2 : kBlock) * s.lanes());
        scores = arena.take(kGroup * kBlock);
        weights = arena.take(kGroup * kBlock);
        from = (int32_t*)arena.take(rows);
        to = (int32_t*)arena.take(rows);
        low = (int32_t*)arena.take(groups.count());
        high = (int32_t*)arena.take(groups.count());
        gap = (int32_t*)arena.take(s.gaps ? 2 * rows : 0);
        used = arena.used;
    }
};

// Scores of a group of rows over lanes [low, high) of a block to weights; corrects the largest scores and
// the sums. Writes the factor that corrects what was summed before.
template <bool PAIRS>
EK_INLINE void softmax_group(const ForwardScratch& x, long r0, long size, long low, long high, float scale2,
                             float* keep) {
    vf rows[8];
    float now[16], totals[16];
    for (long i = 0; i < 8; i++) {
        rows[i] = vzero();
        if (i >= size) continue;
        const float* scores = x.scores + i * kBlock;
        vf most = vload(scores + low);
        for (long j = low + VW; j < high; j += VW) most = vmax(most, vload(scores + j));
        rows[i] = most;
    }
    across_lanes<false>(rows, now);
    for (long i = 0; i < size; i += VW) {
        const vf before = vload_n(x.largest + r0 + i, size - i), after = vmax(before, vload(now + i));
        vstore(keep + i, exp2_of<false>(vmul(vsub(before, after), vset(scale2))));
        vstore(now + i, after);
        vstore_n(x.largest + r0 + i, after, size - i);
    }
    for (long i = 0; i < size; i++) {
        const float* scores = x.scores + i * kBlock;
        float* weights = x.weights + i * kBlock;
        const vf scale = vset(scale2), shift = vset(-now[i] * scale2);
        vf total = vzero();
        for (long j = low; j < high; j += VW) {
            const vf p = exp2_of<PAIRS>(vfma(vload(scores + j), scale, shift));
            total = vadd(total, p);
            if (PAIRS) vstore((bf16*)weights + j, p);
            else vstore(weights + j, p);
        }
        rows[i] = total;
    }
    across_lanes<true>(rows, totals);
    for (long i = 0; i < size; i += VW) {
        float* sums = x.sums + r0 + i;
        vstore_n(sums, vfma(vload_n(sums, size - i), vload(keep + i), vload(totals + i)), size - i);
    }
}

// One group of rows over lanes [low, high) of the packed block that starts at column `start`.
template <bool PAIRS>
static void forward_group(const Shape& s, const Groups& groups, const ForwardScratch& x, long g, long start,
                          long low, long high, float scale2) {
    constexpr long per_cell = PAIRS ? 2 : 1;
    const long size = groups.size(g), r0 = g * kGroup, cells = s.cells(PAIRS), lanes = s.lanes();
    multiply<PAIRS>({x.queries + r0 * cells, cells, 1, x.keys + low, kBlock, x.scores + low, kBlock, cells, nullptr},
                    size, high - low);
    hide(x.scores, size, x.from + r0, x.to + r0, s.gaps ? x.gap + 2 * r0 : nullptr, start, low, high);
    float keep[16];
    softmax_group<PAIRS>(x, r0, size, low, high, scale2, keep);
    multiply<PAIRS>({x.weights + low / per_cell, kBlock, 1, x.values + low / per_cell * lanes, lanes,
                     x.outputs + r0 * lanes, lanes, (high - low) / per_cell, keep},
                    size, lanes);
}

// Queries [first, last) of one row and key head.
template <bool PAIRS, class T>
static void forward_task(const Forward& f, long row, long head, long first, long last, int thread) {
    const Shape& s = f.shape;
    const T* qkv = (const T*)f.qkv;
    const long group = s.group(), dim = s.dim, cells = s.cells(PAIRS), lanes = s.lanes();
    const Groups groups = Groups::of(first, last, group);
    const long used = ForwardScratch(s, groups, PAIRS, nullptr).used;
    const ForwardScratch x(s, groups, PAIRS, ek_scratch<float>(thread, 0, used));
    for (long r = 0; r < (last - first) * group; r++) {
        const long t = first + r / group;
        const T* q = qkv + (row * s.columns + t) * s.width() + (head * group + r % group) * dim;
        pack_row<PAIRS>(q, s.turn(row, t), dim, x.queries + r * cells);
    }
    fill(x.queries + (last - first) * group * cells, (groups.rows - (last - first) * group) * cells, 0.0f);
    fill(x.outputs, groups.rows * lanes, 0.0f);
    fill(x.sums, groups.rows, 0.0f);
    fill(x.largest, groups.rows, kNothing);
    groups.ranges(s, row, x.from, x.to, x.low, x.high, x.gap);

    const float scale = 1.0f / __builtin_sqrtf((float)dim), scale2 = scale * kLog2e;
    for (long start = s.lowest_from(row, first, last) / kBlock * kBlock; start < last; start += kBlock) {
        const long stop = smaller(start + kBlock, last);
        bool packed = false;
        for (long g = 0; g < groups.count(); g++) {
            const long low = larger(x.low[g] - start, 0) / VW * VW;
            const long high = round_up(smaller(x.high[g], stop) - start, VW);
            if (low >= high) continue;
            if (s.gaps && covered(x.gap + 2 * g * kGroup, groups.size(g), larger(x.low[g], start),
                                  smaller(x.high[g], stop)))
                continue;
            if (!packed) {
                const long k = (s.heads + head) * dim, v = k + s.key_heads * dim;
                long count = pack_columns<PAIRS>(s, qkv, row, k, true, start, stop - start, x.columns);
                rows_as_lanes(x.columns, cells, count, cells, x.keys);
                count = pack_columns<PAIRS>(s, qkv, row, v, false, start, stop - start, x.columns);
                rows_as_steps<PAIRS>(x.columns, cells, count, dim, lanes, x.values);
                packed = true;
            }
            forward_group<PAIRS>(s, groups, x, g, start, low, high, scale2);
        }
    }

    for (long r = 0; r < (last - first) * group; r++) {
        const long t = first + r / group, n = head * group + r % group;
        T* out = (T*)f.out + (row * s.columns + t) * s.heads * dim + n * dim;
        const vf inverse = vset(1.0f / x.sums[r]);
        for (long d = 0; d < dim; d += VW) vstore_n(out + d, vmul(vload(x.outputs + r * lanes + d), inverse), dim - d);
        if (f.log_sum)
            f.log_sum[(row * s.heads + n) * s.columns + t] = x.largest[r] * scale + __builtin_logf(x.sums[r]);
    }
}

// Query columns of a task: as many as leave enough tasks for the threads and fit the second cache.
// A query's result does not depend on it, since blocks of keys stand at fixed columns.
static long columns_of_a_task(const Shape& s) {
    const long bytes = s.group() * s.lanes() * 4;
    long columns = 512;
    while (columns > 16 && columns * bytes > (512 << 10)) columns /= 2;
    const long wanted = 4L * ek_get_threads();
    while (columns > 32 && ek_get_threads() > 1) {
        const long tasks = s.rows * s.key_heads * ((s.columns + columns - 1) / columns);
        if (tasks >= wanted) break;
        columns /= 2;
    }
    return columns;
}

template <bool PAIRS, class T>
static void forward(const Forward& f) {
    const Shape& s = f.shape;
    const long columns = columns_of_a_task(s), units = s.rows * s.key_heads;
    const long pieces = (s.columns + columns - 1) / columns;
    ek_parallel(units * pieces, [&](long task, int thread) {
        const long unit = task % units, piece = pieces - 1 - task / units;  // the longest first
        const long first = piece * columns, last = smaller(first + columns, s.columns);
        forward_task<PAIRS, T>(f, unit / s.key_heads, unit % s.key_heads, first, last, thread);
    });
}

}  // namespace
}  // namespace EK_NS

using namespace EK_NS;

// qkv [rows, columns, (heads + 2 key_heads) dim], out [rows, columns, heads dim] in `dtype`;
// turns [rows, columns, turn_stride] fp32: dim/2 times cos, sin; attend_from [rows, columns]; gaps
// [rows, columns, 2], columns from the first to below the second that a query does not see, or null;
// log_sum [rows, heads, columns] fp32, or null.
extern "C" __attribute__((visibility("default"))) void EK_CONCAT(ek_attention_forward__, EK_NS)(
    const void* qkv, const float* turns, long turn_stride, const int32_t* attend_from, const int32_t* gaps, void* out,
    float* log_sum, long rows, long columns, long heads, long key_heads, long dim, int dtype) {
    const Shape shape{rows, columns, heads, key_heads, dim, turns, turn_stride, attend_from, gaps};
    const Forward f{shape, qkv, out, log_sum};
    if (dtype == EK_FP32) forward<false, float>(f);
    else forward<(EK_LEVEL >= 3), bf16>(f);
}
