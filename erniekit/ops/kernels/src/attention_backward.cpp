// Gradient of attention: scores are computed again from q, k and the log-sum-exp.
//
//   P = 2^(c q.k - L),  dP = dO V^T,  dS = P * (dP - rowsum(dO * O)),
//   dV = P^T dO,  dQ = dS K / sqrt(D),  dK = dS^T Q / sqrt(D);  dQ and dK are then turned back.
//
// A tile of queries goes over the blocks of keys downwards, tiles go upwards. So every dQ is summed over
// falling blocks and every dK, dV over rising tiles, whoever computes which part: results do not depend
// on how the work is split. There are two splits:
//   whole:  a task is a row and a key head; dK and dV live in per-thread memory.
//   chunks: a task is a pair (key chunk i, query chunk i + p). The tasks of one phase p share no sum, so
//           all can run at once; between the phases the sums wait in a workspace. For long rows, and
//           where there are fewer (row, key head) than threads.
#include "attention_tiles.h"

namespace EK_NS {
namespace {

struct Backward {
    Shape shape;
    const void *qkv, *out;
    const float* log_sum;
    const void* grad_out;
    void* grad_qkv;
};

// Gradient sums of one row and key head, before scale and turn; [columns x group, lanes], [columns, lanes] x 2.
struct Sums {
    float *queries, *keys, *values;  // queries: null when a tile is finished at once
    static long key_rows(const Shape& s) { return round_up(s.columns, kBlock); }
    static long count(const Shape& s) {
        return (s.columns * s.group() + 2 * key_rows(s)) * s.lanes();
    }
    static Sums at(const Shape& s, float* base) {
        float* keys = base + s.columns * s.group() * s.lanes();
        return {base, keys, keys + key_rows(s) * s.lanes()};
    }
};

struct Range {
    long row, head;                // key head
    long first_query, last_query;  // multiples of kBlock, or the end
    long first_key, last_key;
};

// Per-thread memory: the packed blocks of keys and values, and one tile of queries.
struct BackwardScratch {
    float *keys, *key_steps, *values, *columns;
    float *queries, *query_steps, *grads, *grad_steps, *shifts, *deltas, *grad_queries;
    float *scores, *grad_weights, *row_scores, *weights, *grad_scores;
    float *grad_keys, *grad_values;
    int32_t *from, *to, *low, *high, *block_low, *block_high, *gap;
    long key_cells, step_cells, used;
    BackwardScratch(const Shape& s, long rows, long blocks, bool pairs, bool sums, float* base) {
        Arena arena{base};
        const long cells = s.cells(pairs), lanes = s.lanes(), per_cell = pairs ? 2 : 1;
        const long groups = (rows + kGroup - 1) / kGroup;
        key_cells = kBlock * cells;
        step_cells = kBlock / per_cell * lanes;
        keys = arena.take(blocks * key_cells);
        key_steps = arena.take(blocks * step_cells);
        values = arena.take(blocks * key_cells);
        columns = arena.take(key_cells);
        queries = arena.take(rows * cells);
        query_steps = arena.take(rows / per_cell * lanes);
        grads = arena.take(rows * cells);
        grad_steps = arena.take(rows / per_cell * lanes);
        shifts = arena.take(rows);
        deltas = arena.take(rows);
        grad_queries = arena.take(rows * lanes);
        scores = arena.take(kGroup * kBlock);
        grad_weights = arena.take(kGroup * kBlock);
        row_scores = arena.take(kGroup * kBlock);
        weights = arena.take(rows / per_cell * kBlock);
        grad_scores = arena.take(rows / per_cell * kBlock);
        grad_keys = arena.take(sums ? blocks * kBlock * lanes : 0);
        grad_values = arena.take(sums ? blocks * kBlock * lanes : 0);
        from = (int32_t*)arena.take(rows);
        to = (int32_t*)arena.take(rows);
        low = (int32_t*)arena.take(groups);
        high = (int32_t*)arena.take(groups);
        block_low = (int32_t*)arena.take(groups);
        block_high = (int32_t*)arena.take(groups);
        gap = (int32_t*)arena.take(s.gaps ? 2 * rows : 0);
        used = arena.used;
    }
};

const float kOnes[kBlock] = {
#define EK_EIGHT 1, 1, 1, 1, 1, 1, 1, 1
#define EK_SIXTY_FOUR EK_EIGHT, EK_EIGHT, EK_EIGHT, EK_EIGHT, EK_EIGHT, EK_EIGHT, EK_EIGHT, EK_EIGHT
    EK_SIXTY_FOUR, EK_SIXTY_FOUR};

// Query columns of a tile: about 128 rows, a power of two so that tiles fit kBlock.
EK_INLINE long tile_columns(const Shape& s) {
    long columns = kBlock;
    while (columns > 1 && columns * s.group() > kBlock) columns /= 2;
    return columns;
}

// Two rows as one row of pairs (rows are steps), and each as pairs of its own (lanes are steps).
template <bool PAIRS>
EK_INLINE void store_steps(float* out, long j, vf a, vf b, bf16* row_a, bf16* row_b) {
#if EK_LEVEL >= 3
    if (PAIRS) {
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                               22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        _mm512_storeu_si512(out + j, _mm512_permutexvar_epi16(order, both));
        if (row_a) {
            _mm256_storeu_si256((__m256i*)(row_a + j), _mm512_castsi512_si256(both));
            _mm256_storeu_si256((__m256i*)(row_b + j), _mm512_extracti64x4_epi64(both, 1));
        }
        return;
    }
#endif
    vstore(out + j, a);
    vstore(out + kBlock + j, b);
}

// Weights and gradients of the scores of rows r and r + 1, from their scores and dO V^T.
template <bool PAIRS>
EK_INLINE void weights_of_two(const BackwardScratch& x, long r, long i, long low, long high, float scale2) {
    constexpr long per_cell = PAIRS ? 2 : 1;
    const float *s = x.scores + i * kBlock, *g = x.grad_weights + i * kBlock;
    float *weights = x.weights + r / per_cell * kBlock, *grad_scores = x.grad_scores + r / per_cell * kBlock;
    bf16 *row_a = (bf16*)(x.row_scores + i * kBlock), *row_b = (bf16*)(x.row_scores + (i + 1) * kBlock);
    const vf scale = vset(scale2), shift_a = vset(-x.shifts[r]), shift_b = vset(-x.shifts[r + 1]);
    const vf delta_a = vset(x.deltas[r]), delta_b = vset(x.deltas[r + 1]);
    for (long j = low; j < high; j += VW) {
        const vf a = exp2_of<PAIRS>(vfma(vload(s + j), scale, shift_a));
        const vf b = exp2_of<PAIRS>(vfma(vload(s + kBlock + j), scale, shift_b));
        store_steps<PAIRS>(weights, j, a, b, nullptr, nullptr);
        store_steps<PAIRS>(grad_scores, j, vmul(a, vsub(vload(g + j), delta_a)),
                           vmul(b, vsub(vload(g + kBlock + j), delta_b)), row_a, row_b);
    }
}

// One group of rows over lanes [low, high) of a block: weights, score gradients, and its part of dQ.
template <bool PAIRS>
static void backward_group(const Shape& s, const Groups& groups, const BackwardScratch& x, long g, long start,
                           long block, float scale2) {
    constexpr long per_cell = PAIRS ? 2 : 1;
    const long size = groups.size(g), r0 = g * kGroup, cells = s.cells(PAIRS), lanes = s.lanes();
    const long low = x.block_low[g], high = x.block_high[g];
    const float *keys = x.keys + block * x.key_cells + low, *values = x.values + block * x.key_cells + low;
    multiply<PAIRS>({x.queries + r0 * cells, cells, 1, keys, kBlock, x.scores + low, kBlock, cells, nullptr}, size,
                    high - low);
    multiply<PAIRS>({x.grads + r0 * cells, cells, 1, values, kBlock, x.grad_weights + low, kBlock, cells, nullptr},
                    size, high - low);
    hide(x.scores, size, x.from + r0, x.to + r0, s.gaps ? x.gap + 2 * r0 : nullptr, start, low, high);
    for (long i = 0; i < size; i += 2) weights_of_two<PAIRS>(x, r0 + i, i, low, high, scale2);
    const float* row_scores = PAIRS ? x.row_scores : x.grad_scores + r0 * kBlock;
    multiply<PAIRS>({row_scores + low / per_cell, kBlock, 1,
                     x.key_steps + block * x.step_cells + low / per_cell * lanes, lanes,
                     x.grad_queries + r0 * lanes, lanes, (high - low) / per_cell, kOnes},
                    size, lanes);
}

// dK and dV of one block from the weights of all rows of a tile, lanes [low, high) of the block.
template <bool PAIRS>
static void backward_keys(const Shape& s, const Groups& groups, const BackwardScratch& x, long low, long high,
                          float* grad_keys, float* grad_values) {
    constexpr long per_cell = PAIRS ? 2 : 1, kKeys = 24;
    const long lanes = s.lanes();
    for (long key = low; key < high; key += kKeys) {
        const long count = smaller(kKeys, high - key);
        long a = 0, b = groups.count();  // groups that see some of these keys are among [a, b)
        while (a < b && (x.block_high[a] <= key || x.block_low[a] >= key + count)) a++;
        while (b > a && (x.block_high[b - 1] <= key || x.block_low[b - 1] >= key + count)) b--;
        if (a == b) continue;
        const long step = a * kGroup / per_cell, steps = smaller(b * kGroup, groups.rows) / per_cell - step;
        const long offset = step * kBlock + key;
        multiply<PAIRS>({x.weights + offset, 1, kBlock, x.grad_steps + step * lanes, lanes,
                         grad_values + key * lanes, lanes, steps, kOnes},
                        count, lanes);
        multiply<PAIRS>({x.grad_scores + offset, 1, kBlock, x.query_steps + step * lanes, lanes,
                         grad_keys + key * lanes, lanes, steps, kOnes},
                        count, lanes);
    }
}

template <bool PAIRS>
static void backward_block(const Shape& s, const Groups& groups, const BackwardScratch& x, const Range& range,
                           long start, long block, float scale2, const Sums& sums) {
    constexpr long per_cell = PAIRS ? 2 : 1;
    const long stop = smaller(start + kBlock, range.last_key);
    long low = kBlock, high = 0;
    for (long g = 0; g < groups.count(); g++) {
        x.block_low[g] = (int32_t)(larger(x.low[g] - start, 0) / VW * VW);
        x.block_high[g] = (int32_t)round_up(larger(smaller(x.high[g], stop) - start, 0), VW);
        const bool seen = !s.gaps || !covered(x.gap + 2 * g * kGroup, groups.size(g), larger(x.low[g], start),
                                              smaller(x.high[g], stop));
        if (x.block_low[g] >= x.block_high[g] || !seen) {
            x.block_low[g] = kBlock;
            x.block_high[g] = 0;
        }
        low = smaller(low, x.block_low[g]);
        high = larger(high, x.block_high[g]);
    }
    if (low >= high) return;
    for (long g = 0; g < groups.count(); g++) {
        // What this group does not see counts as zero in sums over the tile.
        const long a = smaller(x.block_low[g], high), b = larger(x.block_high[g], a);
        const long first = g * kGroup / per_cell, last = first + groups.size(g) / per_cell;
        for (long r = first * kBlock; r < last * kBlock; r += kBlock) {
            fill(x.weights + r + low, a - low, 0.0f);
            fill(x.weights + r + b, high - b, 0.0f);
            fill(x.grad_scores + r + low, a - low, 0.0f);
            fill(x.grad_scores + r + b, high - b, 0.0f);
        }
        if (a < b) backward_group<PAIRS>(s, groups, x, g, start, block, scale2);
    }
    const long offset = start * s.lanes();
    backward_keys<PAIRS>(s, groups, x, low, high, sums.keys + offset, sums.values + offset);
}

// Scaled, turned back if `turn`, and stored.
template <class T>
EK_INLINE void finish_row(const float* sum, float scale, const float* turn, long dim, T* out) {
    for (long d = 0; d < dim; d += VW) {
        vf v = vmul(vload(sum + d), vset(scale));
        if (turn) v = turned<true>(v, vload_n(turn + d, dim - d));
        vstore_n(out + d, v, dim - d);
    }
}

template <class T>
static void finish_queries(const Backward& b, long row, long head, long first, long last, const float* sums) {
    const Shape& s = b.shape;
    const long group = s.group();
    for (long r = 0; r < (last - first) * group; r++) {
        const long t = first + r / group;
        T* out = (T*)b.grad_qkv + (row * s.columns + t) * s.width() + (head * group + r % group) * s.dim;
        finish_row(sums + r * s.lanes(), 1.0f / __builtin_sqrtf((float)s.dim), s.turn(row, t), s.dim, out);
    }
}

template <class T>
static void finish_keys(const Backward& b, long row, long head, long first, long last, const Sums& sums) {
    const Shape& s = b.shape;
    for (long t = first; t < last; t++) {
        T* out = (T*)b.grad_qkv + (row * s.columns + t) * s.width() + (s.heads + head) * s.dim;
        finish_row(sums.keys + t * s.lanes(), 1.0f / __builtin_sqrtf((float)s.dim), s.turn(row, t), s.dim, out);
        finish_row(sums.values + t * s.lanes(), 1.0f, nullptr, s.dim, out + s.key_heads * s.dim);
    }
}

// Everything about the queries of a tile that does not depend on the keys.
template <bool PAIRS, class T>
static void pack_tile(const Backward& b, const Groups& groups, const BackwardScratch& x, long row, long head) {
    const Shape& s = b.shape;
    const long group = s.group(), dim = s.dim, cells = s.cells(PAIRS), lanes = s.lanes();
    const long real = groups.columns * group;
    for (long r = 0; r < real; r++) {
        const long t = groups.column(r), n = head * group + r % group, position = row * s.columns + t;
        pack_row<PAIRS>((const T*)b.qkv + position * s.width() + n * dim, s.turn(row, t), dim, x.queries + r * cells);
        const T* grad = (const T*)b.grad_out + (position * s.heads + n) * dim;
        const T* out = (const T*)b.out + (position * s.heads + n) * dim;
        pack_row<PAIRS>(grad, nullptr, dim, x.grads + r * cells);
        vf delta = vzero();
        for (long d = 0; d < dim; d += VW) delta = vfma(vload_n(grad + d, dim - d), vload_n(out + d, dim - d), delta);
        x.deltas[r] = vsum(delta);
        x.shifts[r] = b.log_sum[(row * s.heads + n) * s.columns + t] * kLog2e;
    }
    for (long r = real; r < groups.rows; r++) {
        fill(x.queries + r * cells, cells, 0.0f);
        fill(x.grads + r * cells, cells, 0.0f);
        x.deltas[r] = x.shifts[r] = 0.0f;
    }
    rows_as_steps<PAIRS>(x.queries, cells, groups.rows, dim, lanes, x.query_steps);
    rows_as_steps<PAIRS>(x.grads, cells, groups.rows, dim, lanes, x.grad_steps);
}

// Adds what the queries and keys of `range` give each other.
template <bool PAIRS, class T>
static void backward_range(const Backward& b, const Range& range, Sums sums, int thread) {
    const Shape& s = b.shape;
    const bool whole = sums.queries == nullptr;
    const long row = range.row, head = range.head, dim = s.dim, cells = s.cells(PAIRS), lanes = s.lanes();
    const long lowest = s.lowest_from(row, range.first_query, range.last_query) / kBlock * kBlock;
    const long base = larger(range.first_key, lowest), blocks = (range.last_key - base + kBlock - 1) / kBlock;
    if (blocks <= 0) return;
    const long tile = tile_columns(s), rows = round_up(tile * s.group(), 2);
    const long used = BackwardScratch(s, rows, blocks, PAIRS, whole, nullptr).used;
    const BackwardScratch x(s, rows, blocks, PAIRS, whole, ek_scratch<float>(thread, 0, used));
    if (whole) {
        sums = {nullptr, x.grad_keys, x.grad_values};
        fill(sums.keys, blocks * kBlock * lanes, 0.0f);
        fill(sums.values, blocks * kBlock * lanes, 0.0f);
    }
    for (long i = 0; i < blocks; i++) {
        const long start = base + i * kBlock, count = smaller(kBlock, range.last_key - start);
        const long k = (s.heads + head) * dim, v = k + s.key_heads * dim;
        long padded = pack_columns<PAIRS>(s, (const T*)b.qkv, row, k, true, start, count, x.columns);
        rows_as_lanes(x.columns, cells, padded, cells, x.keys + i * x.key_cells);
        rows_as_steps<PAIRS>(x.columns, cells, padded, dim, lanes, x.key_steps + i * x.step_cells);
        padded = pack_columns<PAIRS>(s, (const T*)b.qkv, row, v, false, start, count, x.columns);
        rows_as_lanes(x.columns, cells, padded, cells, x.values + i * x.key_cells);
    }
    const float scale2 = kLog2e / __builtin_sqrtf((float)dim);
    for (long first = range.first_query; first < range.last_query; first += tile) {
        const long last = smaller(first + tile, range.last_query), count = (last - first) * s.group() * lanes;
        const long stop = smaller(last, range.last_key);
        const long tile_low = larger(s.lowest_from(row, first, last) / kBlock * kBlock, base);
        if (tile_low >= stop) continue;
        const Groups groups = Groups::of(first, last, s.group());
        groups.ranges(s, row, x.from, x.to, x.low, x.high, x.gap);
        pack_tile<PAIRS, T>(b, groups, x, row, head);
        fill(x.grad_queries, groups.rows * lanes, 0.0f);
        float* waiting = whole ? nullptr : sums.queries + first * s.group() * lanes;
        if (waiting) memcpy(x.grad_queries, waiting, count * sizeof(float));
        for (long start = (stop - 1) / kBlock * kBlock; start >= tile_low; start -= kBlock)
            backward_block<PAIRS>(s, groups, x, range, start, (start - base) / kBlock, scale2, sums);
        if (waiting) memcpy(waiting, x.grad_queries, count * sizeof(float));
        else finish_queries<T>(b, row, head, first, last, x.grad_queries);
    }
    if (whole) finish_keys<T>(b, row, head, range.first_query, range.last_query, sums);
}

// ---- how the work is split -----------------------------------------------------------------
constexpr long kLongRow = 1024, kLongChunk = 512;

EK_INLINE long chunk_columns(const Shape& s) {
    return s.columns > kLongRow ? kLongChunk : larger(kBlock, round_up(s.columns / 4, kBlock));
}

// Rows and key heads whose sums wait at the same time; 0: every task does one as a whole.
static long units_at_once(const Shape& s) {
    const long units = s.rows * s.key_heads, threads = ek_get_threads();
    const long rounds = (units + threads - 1) / threads;
    const bool busy = units * 20 >= rounds * threads * 17;  // 85 % of the time of all threads is used
    if (s.columns <= kBlock || (s.columns <= kLongRow && busy)) return 0;
    const long most = 12L << 20;  // numbers: 48 MB
    return smaller(units, larger(1, most / Sums::count(s)));
}

template <bool PAIRS, class T>
static void backward_in_chunks(const Backward& b, float* workspace, long at_once) {
    const Shape& s = b.shape;
    const long units = s.rows * s.key_heads, each = Sums::count(s);
    const long chunk = chunk_columns(s), chunks = (s.columns + chunk - 1) / chunk;
    const long pieces = (s.columns + kBlock - 1) / kBlock;
    for (long first = 0; first < units; first += at_once) {
        const long some = smaller(at_once, units - first), part = round_up((each + pieces - 1) / pieces, 16);
        ek_parallel(some * pieces, [&](long task, int) {
            const long start = task % pieces * part;
            fill(workspace + task / pieces * each + start, smaller(part, larger(each - start, 0)), 0.0f);
        });
        for (long phase = 0; phase < chunks; phase++)
            ek_parallel(some * (chunks - phase), [&](long task, int thread) {
                const long unit = first + task % some, key = task / some * chunk, query = key + phase * chunk;
                const Range range{unit / s.key_heads, unit % s.key_heads, query, smaller(query + chunk, s.columns),
                                  key, smaller(key + chunk, s.columns)};
                backward_range<PAIRS, T>(b, range, Sums::at(s, workspace + task % some * each), thread);
            });
        ek_parallel(some * pieces, [&](long task, int) {
            const long unit = first + task % some, row = unit / s.key_heads, head = unit % s.key_heads;
            const long a = task / some * kBlock, z = smaller(a + kBlock, s.columns);
            const Sums sums = Sums::at(s, workspace + task % some * each);
            finish_queries<T>(b, row, head, a, z, sums.queries + a * s.group() * s.lanes());
            finish_keys<T>(b, row, head, a, z, sums);
        });
    }
}

template <bool PAIRS, class T>
static void backward(const Backward& b, float* workspace, long workspace_size) {
    const Shape& s = b.shape;
    const long at_once = workspace_size / Sums::count(s);
    if (at_once > 0) return backward_in_chunks<PAIRS, T>(b, workspace, at_once);
    ek_parallel(s.rows * s.key_heads, [&](long task, int thread) {
        const Range range{task / s.key_heads, task % s.key_heads, 0, s.columns, 0, s.columns};
        backward_range<PAIRS, T>(b, range, Sums{nullptr, nullptr, nullptr}, thread);
    });
}

}  // namespace
}  // namespace EK_NS

using namespace EK_NS;

// Numbers (fp32) of workspace that the gradient of this shape wants; with less it runs in fewer parts
// at once, with none a row at a time.
extern "C" __attribute__((visibility("default"))) long EK_CONCAT(ek_attention_workspace__, EK_NS)(
    long rows, long columns, long heads, long key_heads, long dim) {
    const Shape shape{rows, columns, heads, key_heads, dim, nullptr, 0, nullptr, nullptr};
    return units_at_once(shape) * Sums::count(shape);
}

// As ek_attention_forward, with its results and the gradient of `out`; writes all of grad_qkv.
extern "C" __attribute__((visibility("default"))) void EK_CONCAT(ek_attention_backward__, EK_NS)(
    const void* qkv, const float* turns, long turn_stride, const int32_t* attend_from, const int32_t* gaps,
    const void* out, const float* log_sum, const void* grad_out, void* grad_qkv, float* workspace, long workspace_size,
    long rows, long columns, long heads, long key_heads, long dim, int dtype) {
    const Shape shape{rows, columns, heads, key_heads, dim, turns, turn_stride, attend_from, gaps};
    const Backward b{shape, qkv, out, log_sum, grad_out, grad_qkv};
    if (dtype == EK_FP32) backward<false, float>(b, workspace, workspace_size);
    else backward<(EK_LEVEL >= 3), bf16>(b, workspace, workspace_size);
}
