// What forward and backward attention are made of: packed tiles and the products of tiles.
//
// A tile is made of 32-bit cells. In fp32 a cell is one number; where there are products of bf16 pairs
// (PAIRS) it is two neighbours along the contracted dimension. So both need the same code:
//   C[row, lane] += sum over step of A[row, step] * B[step, lane]
// with A read cell by cell (any strides) and B by vectors of lanes. Cells are kept as float; nothing
// but loads, stores and shuffles touches a pair as such.
#pragma once

#include "pool.h"
#include "vec.h"

namespace EK_NS {
namespace {

// Key columns of a block; a multiple of every vector and of the query columns of a backward tile.
constexpr long kBlock = 128;
constexpr int kGroup = 6;                           // rows of A in registers
constexpr int kStrip = EK_LEVEL >= 2 ? 4 : 2;       // vectors of B in registers
constexpr float kHidden = -1e30f, kNothing = -1e20f;  // score of a hidden key; largest of no scores
constexpr float kLog2e = 1.44269504088896341f;

EK_INLINE long round_up(long n, long unit) { return (n + unit - 1) / unit * unit; }
EK_INLINE long smaller(long a, long b) { return a < b ? a : b; }
EK_INLINE long larger(long a, long b) { return a > b ? a : b; }

struct Shape {
    long rows, columns, heads, key_heads, dim;
    const float* turns;  // cos and sin of each pair, [rows, columns, turn_stride]
    long turn_stride;
    const int32_t* attend_from;
    const int32_t* gaps;  // [rows, columns, 2]: columns that are hidden in between; or null
    long group() const { return heads / key_heads; }
    long width() const { return (heads + 2 * key_heads) * dim; }   // of a column of qkv
    long lanes() const { return round_up(dim, VW); }               // of a tile with channels as lanes
    long cells(bool pairs) const { return pairs ? dim / 2 : dim; }  // of a row with channels as steps
    const float* turn(long row, long column) const { return turns + (row * columns + column) * turn_stride; }
    // First visible column; a query sees itself whatever is asked for.
    long from(long row, long column) const {
        return smaller(larger(attend_from[row * columns + column], 0), column);
    }
    long lowest_from(long row, long first, long last) const {
        long lowest = first;
        for (long t = first; t < last; t++) lowest = smaller(lowest, from(row, t));
        return lowest;
    }
};

// Pieces of one per-thread allocation, 64-byte aligned. Counts first (no memory), then hands out.
struct Arena {
    float* base = nullptr;
    long used = 0;
    float* take(long count) {
        float* here = base ? base + used : nullptr;
        used += round_up(count, 16);
        return here;
    }
};

// ---- arithmetic ----------------------------------------------------------------------------
template <bool PAIRS>
EK_INLINE vf dot(vf a, vf b, vf c) {
#if EK_LEVEL >= 3
    if (PAIRS) return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
#endif
    return vfma(a, b, c);
}

#if EK_LEVEL >= 2
// 2^x: exactly 0 for very low x, NaN stays NaN. Relative error 3e-6 where the result is rounded to bf16,
// 2e-9 before rounding otherwise (minimax polynomials of 2^r, 0 <= r < 1).
template <bool PAIRS>
EK_INLINE vf exp2_of(vf x) {
    const vf r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
    vf p;
    if (PAIRS) {
        p = vfma(vset(1.342668428e-02f), r, vset(5.224247421e-02f));
        p = vfma(p, r, vset(2.412802048e-01f));
        p = vfma(p, r, vset(6.930448449e-01f));
    } else {
        p = vfma(vset(2.161291496e-04f), r, vset(1.246784644e-03f));
        p = vfma(p, r, vset(9.675451567e-03f));
        p = vfma(p, r, vset(5.548528062e-02f));
        p = vfma(p, r, vset(2.402293056e-01f));
        p = vfma(p, r, vset(6.931470444e-01f));
    }
    return _mm512_scalef_ps(vfma(p, r, vset(1.0f)), x);
}
#else
// 2^n p for the whole number n that stands in the last bits of `shifted`.
EK_INLINE vf add_exponent(vf p, vf shifted) {
#if EK_LEVEL == 1
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n));
#else
    uint32_t a[VW], b[VW];
    memcpy(a, &p, sizeof a);
    memcpy(b, &shifted, sizeof b);
    for (int i = 0; i < VW; i++) a[i] += b[i] << 23;
    memcpy(&p, a, sizeof a);
    return p;
#endif
}

// 2^x for x <= 128: exactly 0 from -127 downwards, NaN stays NaN; relative error 2e-9 before rounding
// (minimax polynomial of 2^r, |r| <= 1/2).
template <bool PAIRS>
EK_INLINE vf exp2_of(vf x) {
    const vf magic = vset(12582912.0f);  // 1.5 * 2^23: adding it rounds to whole numbers
    x = vmax(vset(-127.0f), x);
    const vf shifted = vadd(x, magic), r = vsub(x, vsub(shifted, magic));
    vf p = vfma(vset(1.535336181e-04f), r, vset(1.339887445e-03f));
    p = vfma(p, r, vset(9.618437358e-03f));
    p = vfma(p, r, vset(5.550332471e-02f));
    p = vfma(p, r, vset(2.402264791e-01f));
    p = vfma(p, r, vset(6.931472029e-01f));
    return add_exponent(vfma(p, r, vset(1.0f)), shifted);
}
#endif

// out[i] = the largest lane (or the sum of the lanes) of x[i], for i below kGroup; x and out hold 8 and 16.
template <bool SUM>
EK_INLINE void across_lanes(const vf* x, float* out) {
#if EK_LEVEL >= 2
    auto both = [](vf a, vf b) __attribute__((always_inline)) { return SUM ? vadd(a, b) : vmax(a, b); };
    vf two[4], four[2];
    for (int i = 0; i < 4; i++)
        two[i] = both(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
    for (int i = 0; i < 2; i++) {
        const __m512d a = _mm512_castps_pd(two[2 * i]), b = _mm512_castps_pd(two[2 * i + 1]);
        four[i] = both(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    vf all = both(_mm512_shuffle_f32x4(four[0], four[1], 0x44), _mm512_shuffle_f32x4(four[0], four[1], 0xee));
    all = both(all, _mm512_shuffle_f32x4(all, all, 0xb1));
    vstore(out, _mm512_shuffle_f32x4(all, all, 0x08));
#else
    for (int i = 0; i < kGroup; i++) out[i] = SUM ? vsum(x[i]) : vlargest(x[i]);
    for (int i = kGroup; i < 16; i++) out[i] = 0.0f;
#endif
}

// Pairs of channels turned by [cos, sin], or turned back.
template <bool BACK>
EK_INLINE vf turned(vf x, vf turn) {
#if EK_LEVEL >= 2
    const vf c = _mm512_moveldup_ps(turn), s = _mm512_movehdup_ps(turn);
    const vf y = _mm512_mul_ps(_mm512_permute_ps(x, 0xb1), s);
    return BACK ? _mm512_fmsubadd_ps(x, c, y) : _mm512_fmaddsub_ps(x, c, y);
#elif EK_LEVEL == 1
    const vf c = _mm256_moveldup_ps(turn), s = _mm256_movehdup_ps(turn);
    const vf y = _mm256_mul_ps(_mm256_permute_ps(x, 0xb1), s);
    return BACK ? _mm256_fmsubadd_ps(x, c, y) : _mm256_fmaddsub_ps(x, c, y);
#else
    const float t = BACK ? -1.0f : 1.0f;
    return vf{x[0] * turn[0] - t * x[1] * turn[1], x[1] * turn[0] + t * x[0] * turn[1],
              x[2] * turn[2] - t * x[3] * turn[3], x[3] * turn[2] + t * x[2] * turn[3]};
#endif
}

EK_INLINE void fill(float* out, long count, float value) {
    for (long i = 0; i < count; i += VW) vstore_n(out + i, vset(value), count - i);
}

// ---- packing -------------------------------------------------------------------------------
// Channels of one column and head (turned if `turn`) as a row of cells.
template <bool PAIRS, class T>
EK_INLINE void pack_row(const T* x, const float* turn, long dim, float* out) {
    for (long d = 0; d < dim; d += VW) {
        const long n = dim - d;
        vf v = vload_n(x + d, n);
        if (turn) v = turned<false>(v, vload_n(turn + d, n));
        if (PAIRS) vstore_n((bf16*)out + d, v, n);
        else vstore_n(out + d, v, n);
    }
}

// Rows of cells (row stride `stride`) to [step][lanes]: rows become steps, channels become lanes.
template <bool PAIRS>
static void rows_as_steps(const float* rows, long stride, long count, long dim, long lanes, float* out) {
#if EK_LEVEL >= 3
    if (PAIRS) {
        for (long r = 0; r < count; r += 2, out += lanes) {
            const bf16 *a = (const bf16*)(rows + r * stride), *b = (const bf16*)(rows + (r + 1) * stride);
            for (long d = 0; d < lanes; d += 16) {
                const __mmask16 some = dim - d >= 16 ? 0xffff : vmask(dim - d);
                const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, a + d));
                const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, b + d));
                _mm512_storeu_si512(out + d, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
        }
        return;
    }
#endif
    for (long r = 0; r < count; r++, out += lanes)
        for (long d = 0; d < lanes; d += VW) vstore(out + d, vload_n(rows + r * stride + d, larger(dim - d, 0)));
}

#if EK_LEVEL >= 2
EK_INLINE void transpose_in_registers(vf* x) {
    vf y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m512d a = _mm512_castps_pd(y[i + j]), b = _mm512_castps_pd(y[i + 2 + j]);
            x[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            x[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_f32x4(x[i], x[4 + i], 0x88);
        y[4 + i] = _mm512_shuffle_f32x4(x[i], x[4 + i], 0xdd);
        y[8 + i] = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0x88);
        y[12 + i] = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_f32x4(y[i], y[8 + i], 0x88);
        x[8 + i] = _mm512_shuffle_f32x4(y[i], y[8 + i], 0xdd);
        x[4 + i] = _mm512_shuffle_f32x4(y[4 + i], y[12 + i], 0x88);
        x[12 + i] = _mm512_shuffle_f32x4(y[4 + i], y[12 + i], 0xdd);
    }
}
#endif

// Rows of cells to [step][kBlock]: rows become lanes, cells become steps. `count` is a multiple of VW.
static void rows_as_lanes(const float* rows, long stride, long count, long cells, float* out) {
    for (long r = 0; r < count; r += VW)
        for (long s = 0; s < cells; s += VW) {
            const long n = smaller(cells - s, VW);
#if EK_LEVEL >= 2
            vf x[16];
            for (int i = 0; i < 16; i++) x[i] = vload_n(rows + (r + i) * stride + s, n);
            transpose_in_registers(x);
            if (n == 16)
                for (int i = 0; i < 16; i++) vstore(out + (s + i) * kBlock + r, x[i]);
            else
                for (int i = 0; i < n; i++) vstore(out + (s + i) * kBlock + r, x[i]);
#else
            for (long i = 0; i < n; i++)
                for (long j = 0; j < VW; j++) out[(s + i) * kBlock + r + j] = rows[(r + j) * stride + s + i];
#endif
        }
}

// Columns [first, first + count) of one head as rows of cells, zeros up to a multiple of VW (and of 2).
template <bool PAIRS, class T>
static long pack_columns(const Shape& s, const T* qkv, long row, long channel, bool turn, long first, long count,
                         float* out) {
    const long cells = s.cells(PAIRS), padded = round_up(count, VW);
    for (long i = 0; i < count; i++) {
        const T* x = qkv + (row * s.columns + first + i) * s.width() + channel;
        pack_row<PAIRS>(x, turn ? s.turn(row, first + i) : nullptr, s.dim, out + i * cells);
    }
    fill(out + count * cells, (padded - count) * cells, 0.0f);
    return padded;
}

// ---- products ------------------------------------------------------------------------------
struct Product {
    const float* a;
    long a_row, a_step;  // strides in cells
    const float* b;
    long b_step;
    float* c;
    long c_row;
    long steps;
    const float* keep;  // factor of what stands in each row of C; null: nothing stands there
};

template <bool PAIRS, int ROWS, int VECTORS>
static void multiply_group(const Product& p, const float* a, const float* b, float* c, const float* keep) {
    vf sum[ROWS][VECTORS];
    const long a_row = p.a_row, a_step = p.a_step, b_step = p.b_step, c_row = p.c_row;
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++)
            sum[i][j] = keep ? vmul(vset(keep[i]), vload(c + i * c_row + j * VW)) : vzero();
    for (long step = p.steps; step > 0; step--, a += a_step, b += b_step) {
        vf lanes[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) lanes[j] = vload(b + j * VW);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            const vf one = vset(a[i * a_row]);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; j++) sum[i][j] = dot<PAIRS>(one, lanes[j], sum[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) vstore(c + i * c_row + j * VW, sum[i][j]);
}

template <bool PAIRS, int VECTORS>
static void multiply_strip(const Product& p, long rows, long lane) {
    const float* b = p.b + lane;
    for (long r = 0; r < rows;) {
        const long left = rows - r;
        const float *a = p.a + r * p.a_row, *keep = p.keep ? p.keep + r : nullptr;
        float* c = p.c + r * p.c_row + lane;
        if (left >= 6 && left != 8) {  // two of four are faster than one of six and one of two
            multiply_group<PAIRS, 6, VECTORS>(p, a, b, c, keep);
            r += 6;
        } else if (left >= 4) {
            multiply_group<PAIRS, 4, VECTORS>(p, a, b, c, keep);
            r += 4;
        } else {
            multiply_group<PAIRS, 2, VECTORS>(p, a, b, c, keep);
            r += 2;
        }
    }
}

// The product of `rows` (even) rows and `lanes` (a multiple of VW) lanes.
template <bool PAIRS>
static void multiply(const Product& p, long rows, long lanes) {
    long lane = 0;
    for (; lane + kStrip * VW <= lanes; lane += kStrip * VW) multiply_strip<PAIRS, kStrip>(p, rows, lane);
    switch ((lanes - lane) / VW) {
#if EK_LEVEL >= 2
        case 3: multiply_strip<PAIRS, 3>(p, rows, lane); break;
        case 2: multiply_strip<PAIRS, 2>(p, rows, lane); break;
#endif
        case 1: multiply_strip<PAIRS, 1>(p, rows, lane); break;
        default: break;
    }
}

// Rows of a tile in groups, and which columns each group may see.
// Row r is query column first + r / group, query head r % group of its key head.
struct Groups {
    long first, columns, group, rows;  // rows: even, the last may be none
    long count() const { return (rows + kGroup - 1) / kGroup; }
    long size(long g) const { return smaller(kGroup, rows - g * kGroup); }
    long column(long r) const { return first + smaller(r / group, columns - 1); }
    static Groups of(long first, long last, long group) {
        return {first, last - first, group, round_up((last - first) * group, 2)};
    }
    // Writes which columns [from, to) each row sees, and [low, high) of every group. `gap` gets the columns
    // [gap[2 r], gap[2 r + 1]) that row r does not see in between, or stays as it is where there are none.
    void ranges(const Shape& s, long row, int32_t* from, int32_t* to, int32_t* low, int32_t* high,
                int32_t* gap) const {
        for (long r = 0; r < rows; r++) {
            const long t = column(r), g = r / kGroup;
            if (s.gaps) {
                const int32_t* given = s.gaps + 2 * (row * s.columns + t);
                gap[2 * r] = given[0];
                gap[2 * r + 1] = (int32_t)smaller(given[1], t);  // a query sees itself
            }
            from[r] = (int32_t)s.from(row, t);
            to[r] = high[g] = (int32_t)t + 1;
            low[g] = r % kGroup == 0 || from[r] < low[g] ? from[r] : low[g];
        }
    }
};

// Hides lanes [low, high) of the block at `start` that the rows of a group do not see. `gap`: null without.
EK_INLINE void hide(float* scores, long size, const int32_t* from, const int32_t* to, const int32_t* gap, long start,
                    long low, long high) {
    for (long i = 0; i < size; i++, scores += kBlock) {
        const long a = smaller(larger(from[i] - start, low), high), b = larger(smaller(to[i] - start, high), a);
        if (a > low) fill(scores + low, a - low, kHidden);
        if (b < high) fill(scores + b, high - b, kHidden);
        if (gap == nullptr) continue;
        const long c = larger(gap[2 * i] - start, a), d = smaller(gap[2 * i + 1] - start, b);
        for (long j = c; j < d; j++) scores[j] = kHidden;
    }
}

// Whether no row of a group sees any of the columns [low, high), because of its gap.
EK_INLINE bool covered(const int32_t* gap, long size, long low, long high) {
    for (long i = 0; i < size; i++)
        if (gap[2 * i] > low || gap[2 * i + 1] < high) return false;
    return true;
}

}  // namespace
}  // namespace EK_NS
