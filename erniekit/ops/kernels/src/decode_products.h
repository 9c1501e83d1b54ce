// Products of a few vectors with a large matrix, as decoding needs them: the matrix is read once, from
// memory, and everything is arranged so that nothing but this reading takes time.
//
//   columns  y[c] = sum_k x[k] W[k][c]   weights [in, out]: four rows of W at a time over many columns
//   rows     y[v] = sum_k x[k] W[v][k]   the tied output table, and the keys of a cache
//
// Up to eight vectors share what was read. A sum runs over k in one order, whatever the number of
// vectors and of threads and wherever a range of columns begins. With bf16 matrices the vectors are
// rounded to bf16 too, as they are where operators store their results; sums are fp32.
//
// What is read is asked for long before it is needed, line by line in the order of the memory and beyond
// the end of a task into the next one (`Ahead`): processors fetch ahead by themselves only what looks
// like one stream, and four rows at a time do not.
#pragma once

#include "pool.h"
#include "vec.h"

#define EK_INLINE_MEMBER inline __attribute__((always_inline))
#ifndef EK_LEAD
#define EK_LEAD 256
#endif

namespace EK_NS {
namespace {

// Where bf16 pairs are multiplied by one instruction vectors stay bf16, elsewhere they are widened.
template <class T>
struct Operand {
    typedef float type;
    enum { pairs = 0, columns = 2 * VW, step = VW };
};
#if EK_LEVEL >= 3
template <>
struct Operand<bf16> {
    typedef bf16 type;
    enum { pairs = 1, columns = 32, step = 32 };
};
#endif

enum {
    kFewRows = 4, kManyRows = 16,      // rows of W that one pass over the columns takes in, by vectors
    kLead = EK_LEAD,                   // lines asked for in advance
    kTile = EK_LEVEL >= 2 ? 8 : 4,     // vectors that share a pass, at most
    kPad = 32                          // vectors are filled up with zeros to a multiple of this
};

EK_INLINE long round_up(long n, long unit) { return (n + unit - 1) / unit * unit; }
EK_INLINE long smaller(long a, long b) { return a < b ? a : b; }
EK_INLINE long larger(long a, long b) { return a > b ? a : b; }
EK_INLINE long padded(long n) { return round_up(n, kPad); }
EK_INLINE void ask_for(const void* p) { __builtin_prefetch(p, 0, 3); }

// Runs of memory of one length: rows of a range of columns.
struct Region {
    const char* start;
    long run, stride, rows;  // bytes, bytes, number
};

// Asks for the memory of one region after the other.
struct Ahead {
    const char* at = nullptr;
    const char* end = nullptr;  // of this run
    Region now{nullptr, 0, 0, 0}, next{nullptr, 0, 0, 0};
    long lines = 0;  // asked for and not used yet

    EK_INLINE_MEMBER bool any() const { return now.rows > 0; }
    void enter() {
        now = next;
        next.rows = 0;
        at = now.start;
        end = at + now.run;
    }
    // A region that follows; one that is still waiting is given up.
    void append(const Region& region) {
        next = region;
        if (!any()) enter();
    }
    EK_INLINE_MEMBER void ask() {
        ask_for(at);
        at += 64;
        if (at < end) return;
        now.start += now.stride;
        at = now.start;
        end = at + now.run;
        if (--now.rows == 0) enter();
    }
    void prime() {
        for (; lines < kLead && any(); lines++) ask();
    }
    // A line is used: ask for another.
    EK_INLINE_MEMBER void step() {
        if (any()) ask();
        else if (lines > 0) lines--;
    }
};

// A vector as the type T stores it, in fp32.
template <class T>
EK_INLINE vf stored(vf x) {
    if (sizeof(T) == 4) return x;
    bf16 part[VW];
    vstore(part, x);
    return vload(part);
}

// Write n <= VW numbers of a vector for products with matrices of type T.
template <class T>
EK_INLINE void put(typename Operand<T>::type* p, vf x, long n) {
    if (Operand<T>::pairs) vstore_n(p, x, n);
    else vstore_n(p, stored<T>(x), n);
}

template <class X>
EK_INLINE void clear_rest(X* x, long n) {
    for (long i = n; i < padded(n); i++) x[i] = 0;
}

// ---- columns -------------------------------------------------------------------------------
// R vectors, `steps` rows of W, one block of columns (n of them): sums += x W. Sums of a block are
// [R][columns] in an order of its own, see `column_sums`.
template <class T, int R, bool WHOLE>
EK_INLINE void column_block(const T* w, long stride, const float* x, long x_stride, long steps, long n, float* sums) {
    vf a[R], b[R];
    for (int r = 0; r < R; r++) a[r] = vload(sums + r * 2 * VW), b[r] = vload(sums + r * 2 * VW + VW);
    for (long k = 0; k < steps; k++, w += stride) {
        const vf u = WHOLE ? vload(w) : vload_n(w, n);
        const vf v = WHOLE ? vload(w + VW) : n > VW ? vload_n(w + VW, n - VW) : vzero();
        for (int r = 0; r < R; r++) {
            const vf s = vset(x[r * x_stride + k]);
            a[r] = vfma(u, s, a[r]);
            b[r] = vfma(v, s, b[r]);
        }
    }
    for (int r = 0; r < R; r++) vstore(sums + r * 2 * VW, a[r]), vstore(sums + r * 2 * VW + VW, b[r]);
}

#if EK_LEVEL >= 3
template <class T, int R, bool WHOLE>
EK_INLINE void column_block(const bf16* w, long stride, const bf16* x, long x_stride, long steps, long n, float* sums) {
    const __mmask32 mask = WHOLE ? 0xffffffffu : (__mmask32)((1ul << n) - 1ul);
    vf a[R], b[R];
    for (int r = 0; r < R; r++) a[r] = vload(sums + r * 32), b[r] = vload(sums + r * 32 + 16);
    for (long k = 0; k < steps; k += 2, w += 2 * stride) {
        const __m512i u = WHOLE ? _mm512_loadu_si512(w) : _mm512_maskz_loadu_epi16(mask, w);
        const bf16* second = w + stride;
        const __m512i v = k + 1 == steps ? _mm512_setzero_si512()
                          : WHOLE        ? _mm512_loadu_si512(second)
                                         : _mm512_maskz_loadu_epi16(mask, second);
        const __m512bh low = (__m512bh)_mm512_unpacklo_epi16(u, v), high = (__m512bh)_mm512_unpackhi_epi16(u, v);
        for (int r = 0; r < R; r++) {
            int pair;
            memcpy(&pair, x + r * x_stride + k, 4);
            const __m512bh s = (__m512bh)_mm512_set1_epi32(pair);
            a[r] = _mm512_dpbf16_ps(a[r], low, s);
            b[r] = _mm512_dpbf16_ps(b[r], high, s);
        }
    }
    for (int r = 0; r < R; r++) vstore(sums + r * 32, a[r]), vstore(sums + r * 32 + 16, b[r]);
}
#endif

// Sums of a block in the order of its columns, in two vectors.
template <class T>
EK_INLINE void column_sums(const float* sums, vf* a, vf* b) {
    *a = vload(sums);
    *b = vload(sums + VW);
#if EK_LEVEL >= 3
    if (!Operand<T>::pairs) return;
    // Unpacking left columns 0-3, 8-11, 16-19, 24-27 in the first half of a block.
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const vf low = *a, high = *b;
    *a = _mm512_permutex2var_ps(low, first, high);
    *b = _mm512_permutex2var_ps(low, second, high);
#endif
}

template <class T, int R>
EK_INLINE void column_tile(const T* w, long stride, const typename Operand<T>::type* x, long x_stride, long steps,
                           long n, float* sums) {
    if (n < Operand<T>::columns) column_block<T, R, false>(w, stride, x, x_stride, steps, n, sums);
    else if (steps == kFewRows) column_block<T, R, true>(w, stride, x, x_stride, kFewRows, n, sums);
    else column_block<T, R, true>(w, stride, x, x_stride, steps, n, sums);
}

// Sums of `vectors` vectors x [vectors][x_stride] over `columns` columns of w [k][stride], to `sums`
// [blocks][vectors][block]: see `column_sums`.
template <class T>
static void multiply_columns(const T* w, long stride, const typename Operand<T>::type* x, long x_stride, long vectors,
                             long k, long columns, float* sums, Ahead* ahead) {
    const long block = Operand<T>::columns, many = vectors >= 4 ? kManyRows : kFewRows;
    memset(sums, 0, sizeof(float) * round_up(columns, block) * vectors);
    for (long k0 = 0; k0 < k; k0 += many) {
        const long steps = smaller(many, k - k0);
        for (long c = 0; c < columns; c += block) {
            const T* part = w + k0 * stride + c;
            const long n = smaller(block, columns - c);
            float* out = sums + c * vectors;
            if (ahead != nullptr && c * sizeof(T) % 64 == 0)
                for (long i = 0; i < steps; i++)
                    for (long j = 0; j < n * (long)sizeof(T); j += 64) ahead->step();
            for (long r = 0; r < vectors;) {
                const typename Operand<T>::type* mine = x + r * x_stride + k0;
                const long left = vectors - r;
                if (kTile == 8 && left >= 8) {
                    column_tile<T, kTile>(part, stride, mine, x_stride, steps, n, out);
                    r += 8, out += 8 * block;
                } else if (left >= 4) {
                    column_tile<T, 4>(part, stride, mine, x_stride, steps, n, out);
                    r += 4, out += 4 * block;
                } else if (left >= 2) {
                    column_tile<T, 2>(part, stride, mine, x_stride, steps, n, out);
                    r += 2, out += 2 * block;
                } else {
                    column_tile<T, 1>(part, stride, mine, x_stride, steps, n, out);
                    r += 1, out += block;
                }
            }
        }
    }
}

// ---- rows ----------------------------------------------------------------------------------
// The sum of the lanes of each of 16 vectors.
#if EK_LEVEL >= 2
EK_INLINE vf half_sums(vf a, vf b) {  // lanes of a in the lower half, of b in the upper
    return vadd(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
EK_INLINE vf quarter_sums(vf a, vf b) {
    return vadd(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
EK_INLINE void lane_sums(const vf* x, float* out) {
    // Within quarters first: transposing sums of four vectors, then quarters across.
    vf t[4];
    for (int i = 0; i < 4; i++) {
        const vf* y = x + 4 * i;
        const vf ab = vadd(_mm512_unpacklo_ps(y[0], y[1]), _mm512_unpackhi_ps(y[0], y[1]));
        const vf cd = vadd(_mm512_unpacklo_ps(y[2], y[3]), _mm512_unpackhi_ps(y[2], y[3]));
        t[i] = vadd(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    }
    // t[i]: four quarters, each with the sums of vectors 4i .. 4i+3 over its quarter of the lanes.
    const vf left = half_sums(t[0], t[1]), right = half_sums(t[2], t[3]);
    vstore(out, quarter_sums(left, right));
}
#else
EK_INLINE void lane_sums(const vf* x, float* out) {
    for (int i = 0; i < 16; i++) out[i] = vsum(x[i]);
}
#endif

// R vectors with 16 / R rows of W: out [16 / R][R].
template <class T, int R>
EK_INLINE void row_block(const T* w, long stride, long count, const float* x, long x_stride, long k,
                         Ahead* ahead, float* out) {
    constexpr int V = 16 / R;
    vf sums[16];
    for (int i = 0; i < 16; i++) sums[i] = vzero();
    const T* rows[V];
    for (int v = 0; v < V; v++) rows[v] = w + smaller(v, count - 1) * stride;
    for (long i = 0; i < k; i += VW) {
        vf s[R];
        for (int r = 0; r < R; r++) s[r] = vload(x + r * x_stride + i);
        for (int v = 0; v < V; v++) {
            const vf u = vload_n(rows[v] + i, k - i);
            if (ahead != nullptr && i * sizeof(T) % 64 == 0) ahead->step();
            for (int r = 0; r < R; r++) sums[v * R + r] = vfma(u, s[r], sums[v * R + r]);
        }
    }
    lane_sums(sums, out);
}

#if EK_LEVEL >= 3
template <class T, int R>
EK_INLINE void row_block(const bf16* w, long stride, long count, const bf16* x, long x_stride, long k,
                         Ahead* ahead, float* out) {
    constexpr int V = 16 / R;
    vf sums[16];
    for (int i = 0; i < 16; i++) sums[i] = vzero();
    const bf16* rows[V];
    for (int v = 0; v < V; v++) rows[v] = w + smaller(v, count - 1) * stride;
    for (long i = 0; i < k; i += 32) {
        const __mmask32 mask = k - i >= 32 ? 0xffffffffu : (__mmask32)((1ul << (k - i)) - 1ul);
        __m512bh s[R];
        for (int r = 0; r < R; r++) s[r] = (__m512bh)_mm512_loadu_si512(x + r * x_stride + i);
        for (int v = 0; v < V; v++) {
            const __m512bh u = (__m512bh)_mm512_maskz_loadu_epi16(mask, rows[v] + i);
            if (ahead != nullptr && i * sizeof(T) % 64 == 0) ahead->step();
            for (int r = 0; r < R; r++) sums[v * R + r] = _mm512_dpbf16_ps(sums[v * R + r], u, s[r]);
        }
    }
    lane_sums(sums, out);
}
#endif

template <class T, int R>
EK_INLINE void row_tile(const T* w, long stride, long count, const typename Operand<T>::type* x, long x_stride, long k,
                        Ahead* ahead, float* out, long out_stride) {
    constexpr long V = 16 / R;
    for (long v = 0; v < count; v += V) {
        const long n = smaller(V, count - v);
        float sums[16];
        row_block<T, R>(w + v * stride, stride, n, x, x_stride, k, ahead, sums);
        for (int r = 0; r < R; r++)
            for (long i = 0; i < n; i++) out[r * out_stride + v + i] = sums[i * R + r];
    }
}

// out [vectors][out_stride] = x [vectors][x_stride] times the transposed w [count][stride].
template <class T>
static void multiply_rows(const T* w, long stride, long count, const typename Operand<T>::type* x, long x_stride,
                          long vectors, long k, float* out, long out_stride, Ahead* ahead) {
    for (long v = 0; v < count; v += 16) {
        const long n = smaller(16, count - v);
        for (long r = 0; r < vectors;) {
            const typename Operand<T>::type* mine = x + r * x_stride;
            float* to = out + r * out_stride + v;
            const long left = vectors - r;
            const T* part = w + v * stride;
            if (left >= 4) {
                row_tile<T, 4>(part, stride, n, mine, x_stride, k, r == 0 ? ahead : nullptr, to, out_stride);
                r += 4;
            } else if (left >= 2) {
                row_tile<T, 2>(part, stride, n, mine, x_stride, k, r == 0 ? ahead : nullptr, to, out_stride);
                r += 2;
            } else {
                row_tile<T, 1>(part, stride, n, mine, x_stride, k, r == 0 ? ahead : nullptr, to, out_stride);
                r += 1;
            }
        }
    }
}

}  // namespace
}  // namespace EK_NS
