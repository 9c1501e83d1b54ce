// Products of a few vectors with a large matrix, as decoding needs them: the matrix is read once, from
// memory, and everything is arranged so that nothing but this reading takes time.
//
//   columns  y[c] = sum_k x[k] W[k][c]   weights [in, out]: two rows of W at a time over many columns
//   rows     y[v] = sum_k x[k] W[v][k]   the tied output table, and the keys of a cache
//
// Up to eight vectors share what was read. A sum runs over k in one order, whatever the number of
// vectors and of threads and wherever a range of columns begins. With bf16 matrices the vectors are
// rounded to bf16 too, as they are where operators store their results; sums are fp32.
//
// Weights are asked for 16 KiB before they are needed, line by line in the order of the memory and beyond
// the end of a task into the next one (`Ahead`): a processor fetches ahead by itself only what looks like
// one stream, and not across the end of a page.
#pragma once

#include "pool.h"
#include "vec.h"

#define EK_MEMBER inline __attribute__((always_inline))
#define EK_APART static __attribute__((noinline))

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
    kFewRows = 2, kManyRows = 8,      // rows of W that one pass over the columns takes in, by vectors
    kLead = 256,                       // lines asked for in advance
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

// Asks for the memory of one region after the other. Loops work on a copy of their own, which stays in
// registers.
struct Ahead {
    const char* at = nullptr;
    const char* end = nullptr;  // of this run
    Region now{nullptr, 0, 0, 0}, next{nullptr, 0, 0, 0};
    long lines = 0;  // asked for and not used yet

    // A region that follows; one that is still waiting is given up.
    EK_MEMBER void append(const Region& region) {
        next = region;
        if (now.rows <= 0) enter();
    }
    EK_MEMBER void prime() {
        if (lines < kLead) ask(kLead - lines);
    }
    // These many lines are used: ask for as many.
    EK_MEMBER void step(long count) {
        if (at + 64 * count < end) {
            for (long i = 0; i < count; i++) ask_for(at + 64 * i);
            at += 64 * count;
        } else {
            lines -= count;
            ask(count);
        }
    }

  private:
    EK_MEMBER void enter() {
        now = next;
        next = Region{nullptr, 0, 0, 0};
        at = now.start;
        end = at + now.run;
    }
    EK_MEMBER void ask(long count) {
        for (; count > 0 && now.rows > 0; count--, lines++) {
            ask_for(at);
            at += 64;
            if (at < end) continue;
            now.start += now.stride;
            at = now.start;
            end = at + now.run;
            if (--now.rows == 0) enter();
        }
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

// `steps` rows of W over all columns, for R vectors whose sums lie `sums_stride` apart from block to block.
// A function of its own for each R, so that each has all registers.
template <class T, int R, int STEPS>
EK_APART void sweep(const T* w, long stride, const typename Operand<T>::type* x, long x_stride, long steps,
                    long columns, float* sums, long sums_stride, Ahead* ahead) {
    const long block = Operand<T>::columns, lines = (block * sizeof(T) + 63) / 64;
    if (STEPS) steps = STEPS;
    long c = 0;
    if (ahead == nullptr) {
        for (; c + block <= columns; c += block, sums += sums_stride)
            column_block<T, R, true>(w + c, stride, x, x_stride, steps, block, sums);
    } else {
        Ahead mine = *ahead;
        for (; c + block <= columns; c += block, sums += sums_stride) {
            if (block * sizeof(T) >= 64 || c * sizeof(T) % 64 == 0) mine.step(lines * steps);
            column_block<T, R, true>(w + c, stride, x, x_stride, steps, block, sums);
        }
        if (c < columns) mine.step(((columns - c) * sizeof(T) + 63) / 64 * steps);
        *ahead = mine;
    }
    if (c < columns) column_block<T, R, false>(w + c, stride, x, x_stride, steps, columns - c, sums);
}

// Sums of `vectors` vectors x [vectors][x_stride] over `columns` columns of w [k][stride], to `sums`
// [blocks][vectors][block]: see `column_sums`.
template <class T>
static void multiply_columns(const T* w, long stride, const typename Operand<T>::type* x, long x_stride, long vectors,
                             long k, long columns, float* sums, Ahead* ahead) {
    const long block = Operand<T>::columns, next = vectors * block;
    // What is not asked for in advance is small: its sums stay in registers over all rows.
    const long many = ahead == nullptr ? k : vectors >= 4 ? kManyRows : kFewRows;
    memset(sums, 0, sizeof(float) * round_up(columns, block) * vectors);
    for (long k0 = 0; k0 < k; k0 += many, w += many * stride) {
        const long steps = smaller(many, k - k0);
        for (long r = 0; r < vectors;) {
            const typename Operand<T>::type* from = x + r * x_stride + k0;
            float* to = sums + r * block;
            const long left = vectors - r;
            Ahead* first = r == 0 ? ahead : nullptr;
            if (kTile == 8 && left >= 8) {
                sweep<T, kTile, 0>(w, stride, from, x_stride, steps, columns, to, next, first);
                r += 8;
            } else if (left >= 4) {
                sweep<T, 4, 0>(w, stride, from, x_stride, steps, columns, to, next, first);
                r += 4;
            } else if (left >= 2) {
                sweep<T, 2, 0>(w, stride, from, x_stride, steps, columns, to, next, first);
                r += 2;
            } else if (steps == kFewRows) {
                sweep<T, 1, kFewRows>(w, stride, from, x_stride, steps, columns, to, next, first);
                r += 1;
            } else {
                sweep<T, 1, 0>(w, stride, from, x_stride, steps, columns, to, next, first);
                r += 1;
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
EK_INLINE void row_block(const T* w, long stride, long count, const float* x, long x_stride, long k, bool fetch,
                         float* out) {
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
            if (fetch) ask_for(rows[v] + 16 * stride + i);
            for (int r = 0; r < R; r++) sums[v * R + r] = vfma(u, s[r], sums[v * R + r]);
        }
    }
    lane_sums(sums, out);
}

#if EK_LEVEL >= 3
template <class T, int R>
EK_INLINE void row_block(const bf16* w, long stride, long count, const bf16* x, long x_stride, long k, bool fetch,
                         float* out) {
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
            if (fetch) ask_for(rows[v] + 16 * stride + i);
            for (int r = 0; r < R; r++) sums[v * R + r] = _mm512_dpbf16_ps(sums[v * R + r], u, s[r]);
        }
    }
    lane_sums(sums, out);
}
#endif

template <class T, int R>
EK_APART void row_tile(const T* w, long stride, long count, const typename Operand<T>::type* x, long x_stride,
                        long k, bool fetch, float* out, long out_stride) {
    constexpr long V = 16 / R;
    for (long v = 0; v < count; v += V) {
        const long n = smaller(V, count - v);
        float sums[16];
        row_block<T, R>(w + v * stride, stride, n, x, x_stride, k, fetch, sums);
        for (int r = 0; r < R; r++)
            for (long i = 0; i < n; i++) out[r * out_stride + v + i] = sums[i * R + r];
    }
}

// out [vectors][out_stride] = x [vectors][x_stride] times the transposed w [count][stride].
template <class T>
static void multiply_rows(const T* w, long stride, long count, const typename Operand<T>::type* x, long x_stride,
                          long vectors, long k, float* out, long out_stride) {
    for (long v = 0; v < count; v += 16) {
        const long n = smaller(16, count - v);
        const bool fetch = v + 16 < count;
        for (long r = 0; r < vectors;) {
            const typename Operand<T>::type* mine = x + r * x_stride;
            float* to = out + r * out_stride + v;
            const long left = vectors - r;
            const T* part = w + v * stride;
            if (left >= 4) {
                row_tile<T, 4>(part, stride, n, mine, x_stride, k, fetch && r == 0, to, out_stride);
                r += 4;
            } else if (left >= 2) {
                row_tile<T, 2>(part, stride, n, mine, x_stride, k, fetch && r == 0, to, out_stride);
                r += 2;
            } else {
                row_tile<T, 1>(part, stride, n, mine, x_stride, k, fetch && r == 0, to, out_stride);
                r += 1;
            }
        }
    }
}

}  // namespace
}  // namespace EK_NS
