// Products of a few vectors with a matrix of codes, for decoding: as `multiply_columns`, with the numbers
//
//   W[k][c] = scale[k / group][c] (u[k][c] - zero)    u unsigned, of 8, 4 or 2 bits
//
// Codes are used where they are: a byte holds 8 / bits rows of a column, and bytes lie row by row. With VNNI a
// vector x enters as whole numbers of 16 bits, q = x / s with the largest |q| 32512, in two halves of 8 bits:
//
//   sum_k u q = 256 sum_k u high + sum_k u low
//
// Whole numbers are added exactly, so nothing is rounded but the vector, by 2^-16 of its largest number (bf16
// rounds each number by up to 2^-9 of itself). Elsewhere vectors and sums are fp32. Sums of a group of rows
// get its scale and are added in fp32, in the order of the groups.
#pragma once

#include "decode_products.h"

namespace EK_NS {
namespace {

// Numbers as whole numbers up to 127 of their scales.
EK_INLINE vf rounded(vf x, vf scale) {
    return vmul(scale, vround(vmax(vmin(vdiv(x, scale), vset(127.0f)), vset(-127.0f))));
}

struct Coded {
    const uint8_t* codes;  // [rows * bits / 8, rounded up][columns]
    const void* scales;    // [(rows + group - 1) / group][columns]
    long columns, group, bits, scale_type;
};

// Scales of n <= VW columns from number `at` on.
EK_INLINE vf scales_at(const Coded& w, long at, long n) {
    return w.scale_type == EK_BF16 ? vload_n((const bf16*)w.scales + at, n) : vload_n((const float*)w.scales + at, n);
}

// Columns that are worked on at once. Groups end at multiples of 16 rows, or with the matrix.
enum { kCodedColumns = EK_LEVEL >= 3 ? 64 : 2 * VW };

EK_INLINE long byte_row(long k, long bits) { return k * bits / 8; }
EK_INLINE long byte_rows(long steps, long bits) { return (steps * bits + 7) / 8; }

#if EK_LEVEL >= 3
// An operand: of every four numbers in the order of the codes four high and four low halves, then the scale.
typedef int8_t CodedOperand;
EK_INLINE long coded_stride(long n) { return 4 * round_up(n, 64) + 64; }  // or as many numbers in fp32

// Numbers of `k`, k + 1, ... that meet in a product: those of one place in four bytes above each other.
EK_INLINE __m128i meeting(long bits) {
    if (bits == 4) return _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    if (bits == 2) return _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// `n` numbers (zeros up to the padded length) as an operand; with a scale given, only whole numbers up to 127 of it.
static void make_operand(const float* from, long n, long bits, float given, CodedOperand* to) {
    vf largest = vzero();
    for (long i = 0; i < n; i += VW) largest = vmax(largest, _mm512_abs_ps(vload(from + i)));
    const float most = vlargest(largest), scale = given > 0.0f ? given : most > 0.0f ? most / 32512.0f : 1.0f;
    const __m128i order = meeting(bits);
    for (long i = 0; i < padded(n); i += VW) {
        const vf scaled = vdiv(vload(from + i), vset(scale)), end = vset(given > 0.0f ? 127.0f : 32512.0f);
        const __m512i q = _mm512_cvtps_epi32(vmax(vmin(scaled, end), vsub(vzero(), end)));
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
        const __m512i low = _mm512_sub_epi32(q, _mm512_slli_epi32(high, 8));
        const __m128i h = _mm_shuffle_epi8(_mm512_cvtepi32_epi8(high), order);
        const __m128i l = _mm_shuffle_epi8(_mm512_cvtepi32_epi8(low), order);
        _mm_storeu_si128((__m128i*)(to + 2 * i), _mm_unpacklo_epi32(h, l));
        _mm_storeu_si128((__m128i*)(to + 2 * i + 16), _mm_unpackhi_epi32(h, l));
    }
    memcpy(to + 2 * padded(n), &scale, 4);
}

// Unsigned codes of 4 byte rows by columns: [4] vectors of 16 columns, each with its four bytes together.
// Column 16 L + 4 v + i is in place i of quarter L of vector v.
template <bool WHOLE>
EK_INLINE void unpack_bytes(const uint8_t* w, long stride, long count, __mmask64 mask, bool is_signed, __m512i* out) {
    __m512i row[4];
    for (int i = 0; i < 4; i++) {
        row[i] = i >= count ? _mm512_setzero_si512()
                 : WHOLE    ? _mm512_loadu_si512(w + i * stride)
                            : _mm512_maskz_loadu_epi8(mask, w + i * stride);
        if (is_signed) row[i] = _mm512_xor_si512(row[i], _mm512_set1_epi8((char)0x80));
    }
    const __m512i a = _mm512_unpacklo_epi8(row[0], row[1]), b = _mm512_unpackhi_epi8(row[0], row[1]);
    const __m512i c = _mm512_unpacklo_epi8(row[2], row[3]), d = _mm512_unpackhi_epi8(row[2], row[3]);
    out[0] = _mm512_unpacklo_epi16(a, c);
    out[1] = _mm512_unpackhi_epi16(a, c);
    out[2] = _mm512_unpacklo_epi16(b, d);
    out[3] = _mm512_unpackhi_epi16(b, d);
}

// One block of columns, 4 byte rows or fewer: sums [R][2][4][16] += u q.
template <int BITS, bool WHOLE>
EK_INLINE void coded_block(const uint8_t* w, long stride, long count, __mmask64 mask, const CodedOperand* x,
                           long x_stride, long vectors, int32_t* sums) {
    enum { EACH = 8 / BITS };
    __m512i bytes[4], u[EACH][4];
    unpack_bytes<WHOLE>(w, stride, count, mask, BITS == 8, bytes);
    for (int j = 0; j < EACH; j++)
        for (int v = 0; v < 4; v++)
            u[j][v] = BITS == 8 ? bytes[v]
                                : _mm512_and_si512(_mm512_srli_epi16(bytes[v], j * BITS),
                                                   _mm512_set1_epi8((1 << (BITS & 7)) - 1));
    for (long r = 0; r < vectors; r++, x += x_stride, sums += 128) {
        __m512i s[8];
        for (int i = 0; i < 8; i++) s[i] = _mm512_loadu_si512(sums + 16 * i);
        for (int j = 0; j < EACH; j++) {
            int high, low;
            memcpy(&high, x + 8 * j, 4);
            memcpy(&low, x + 8 * j + 4, 4);
            const __m512i h = _mm512_set1_epi32(high), l = _mm512_set1_epi32(low);
            for (int v = 0; v < 4; v++) {
                s[v] = _mm512_dpbusd_epi32(s[v], u[j][v], h);
                s[4 + v] = _mm512_dpbusd_epi32(s[4 + v], u[j][v], l);
            }
        }
        for (int i = 0; i < 8; i++) _mm512_storeu_si512(sums + 16 * i, s[i]);
    }
}

// As many rows as 4 byte rows hold, or fewer, over all columns: few enough that they are asked for in time.
template <int BITS>
EK_APART void coded_sweep(const uint8_t* w, long stride, long steps, long columns, const CodedOperand* x,
                          long x_stride, long vectors, int32_t* sums, Ahead* ahead) {
    const long count = byte_rows(steps, BITS);
    Ahead mine = *ahead;
    long c = 0;
    for (; c + 64 <= columns; c += 64, sums += 128 * vectors) {
        mine.step(count);
        if (count == 4) coded_block<BITS, true>(w + c, stride, count, ~0ull, x, x_stride, vectors, sums);
        else coded_block<BITS, false>(w + c, stride, count, ~0ull, x, x_stride, vectors, sums);
    }
    if (c < columns) {
        mine.step(count);
        const __mmask64 mask = (1ull << (columns - c)) - 1ull;
        coded_block<BITS, false>(w + c, stride, count, mask, x, x_stride, vectors, sums);
    }
    *ahead = mine;
}

// Sums of a group to numbers: out [blocks][vectors][32] += scale s (u q - zero q), in the order of the columns.
static void coded_fold(const int32_t* sums, const Coded& w, long scales, long columns, const CodedOperand* x,
                       long x_stride, long size, long first, long steps, long vectors, float* out) {
    const int doubled = w.bits == 2, zero = w.bits == 8 ? 128 : w.bits == 4 ? 8 : 3;
    for (long r = 0; r < vectors; r++) {
        const CodedOperand* mine = x + r * x_stride;
        float scale;
        memcpy(&scale, mine + 2 * padded(size), 4);
        __m256i both = _mm256_setzero_si256();
        for (long i = first; i < first + steps; i += 16)
            both = _mm256_dpbusd_epi32(both, _mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i*)(mine + 2 * i)));
        int32_t part[8];
        _mm256_storeu_si256((__m256i*)part, both);
        const __m512i high = _mm512_set1_epi32(zero * (part[0] + part[2] + part[4] + part[6]));
        const __m512i low = _mm512_set1_epi32(zero * (part[1] + part[3] + part[5] + part[7]));
        const vf factor = vset(doubled ? 0.5f * scale : scale);
        for (long c = 0; c < columns; c += 64) {
            const int32_t* from = sums + (c / 64 * vectors + r) * 128;
            vf v[4];
            for (int i = 0; i < 4; i++) {
                const __m512i a = _mm512_slli_epi32(_mm512_loadu_si512(from + 16 * i), doubled);
                const __m512i b = _mm512_slli_epi32(_mm512_loadu_si512(from + 64 + 16 * i), doubled);
                v[i] = vmul(factor, vfma(_mm512_cvtepi32_ps(_mm512_sub_epi32(a, high)), vset(256.0f),
                                         _mm512_cvtepi32_ps(_mm512_sub_epi32(b, low))));
            }
            const vf p = _mm512_shuffle_f32x4(v[0], v[1], 0x88), q = _mm512_shuffle_f32x4(v[0], v[1], 0xdd);
            const vf s = _mm512_shuffle_f32x4(v[2], v[3], 0x88), t = _mm512_shuffle_f32x4(v[2], v[3], 0xdd);
            const vf ordered[4] = {_mm512_shuffle_f32x4(p, s, 0x88), _mm512_shuffle_f32x4(q, t, 0x88),
                                   _mm512_shuffle_f32x4(p, s, 0xdd), _mm512_shuffle_f32x4(q, t, 0xdd)};
            for (int i = 0; i < 4 && c + 16 * i < columns; i++) {
                float* to = out + ((c / 32 + i / 2) * vectors + r) * 32 + i % 2 * 16;
                const long n = columns - c - 16 * i;
                vstore(to, vfma(ordered[i], scales_at(w, scales + c + 16 * i, n), vload(to)));
            }
        }
    }
}

EK_INLINE void coded_rows(const Coded& w, const uint8_t* codes, long steps, long columns, const CodedOperand* x,
                          long x_stride, long vectors, int32_t* sums, Ahead* ahead) {
    if (w.bits == 8) coded_sweep<8>(codes, w.columns, steps, columns, x, x_stride, vectors, sums, ahead);
    else if (w.bits == 4) coded_sweep<4>(codes, w.columns, steps, columns, x, x_stride, vectors, sums, ahead);
    else coded_sweep<2>(codes, w.columns, steps, columns, x, x_stride, vectors, sums, ahead);
}

// Sums over rows [k, k + inputs) of W of `columns` columns from `c` on: to `out` [blocks][vectors][32]. Operands x
// hold `size` numbers each, that of row k at place `at`. `scratch` has room for 2 * vectors * columns (rounded up
// to whole units) numbers.
static void multiply_coded(const Coded& w, long k, long inputs, long c, long columns, const CodedOperand* x,
                           long x_stride, long vectors, long size, long at, float* out, void* scratch, Ahead* ahead) {
    int32_t* sums = (int32_t*)scratch;
    memset(out, 0, sizeof(float) * round_up(columns, 32) * vectors);
    for (long first = 0; first < inputs;) {
        const long group = (k + first) / w.group, last = smaller(inputs, (group + 1) * w.group - k);
        memset(sums, 0, sizeof(int32_t) * 2 * round_up(columns, 64) * vectors);
        const long pass = 4 * 8 / w.bits;
        for (long i = first; i < last; i += pass)
            coded_rows(w, w.codes + byte_row(k + i, w.bits) * w.columns + c, smaller(pass, last - i), columns,
                       x + 2 * (at + i), x_stride, vectors, sums, ahead);
        coded_fold(sums, w, group * w.columns + c, columns, x, x_stride, size, at + first, last - first,
                   vectors, out);
        first = last;
    }
}

#else

typedef float CodedOperand;
EK_INLINE long coded_stride(long n) { return round_up(n, 64); }

// VW codes, as numbers.
EK_INLINE vf coded_values(const uint8_t* p, int shift, int bits) {
    const float zero = bits == 8 ? 0.0f : bits == 4 ? 8.0f : 1.5f;
#if EK_LEVEL == 2
    const __m128i bytes = _mm_loadu_si128((const __m128i*)p);
    if (bits == 8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    const __m512i moved = _mm512_srl_epi32(_mm512_cvtepu8_epi32(bytes), _mm_cvtsi32_si128(shift));
    return vsub(_mm512_cvtepi32_ps(_mm512_and_si512(moved, _mm512_set1_epi32((1 << bits) - 1))), vset(zero));
#elif EK_LEVEL == 1
    const __m128i bytes = _mm_loadl_epi64((const __m128i*)p);
    if (bits == 8) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    const __m256i moved = _mm256_srl_epi32(_mm256_cvtepu8_epi32(bytes), _mm_cvtsi32_si128(shift));
    return vsub(_mm256_cvtepi32_ps(_mm256_and_si256(moved, _mm256_set1_epi32((1 << bits) - 1))), vset(zero));
#else
    float x[VW];
    for (int i = 0; i < VW; i++) x[i] = bits == 8 ? (float)(int8_t)p[i] : (float)(p[i] >> shift & ((1 << bits) - 1)) - zero;
    return vload(x);
#endif
}

static void multiply_coded(const Coded& w, long k, long inputs, long c, long columns, const CodedOperand* x,
                           long x_stride, long vectors, long, long at, float* out, void*, Ahead*) {
    const long each = 8 / w.bits;
    memset(out, 0, sizeof(float) * round_up(columns, 2 * VW) * vectors);
    for (long b = 0; b < columns; b += VW) {
        const long n = smaller(VW, columns - b);
        for (long first = 0; first < inputs;) {
            const long group = (k + first) / w.group, last = smaller(inputs, (group + 1) * w.group - k);
            const vf scale = scales_at(w, group * w.columns + c + b, n);
            for (long r = 0; r < vectors; r++) {
                vf sum = vzero();
                for (long i = first; i < last; i++) {
                    const uint8_t* from = w.codes + byte_row(k + i, w.bits) * w.columns + c + b;
                    uint8_t part[VW];
                    if (n < VW) memcpy(part, from, n);
                    const vf u = coded_values(n < VW ? part : from, (int)((k + i) % each * w.bits), (int)w.bits);
                    sum = vfma(u, vset(x[r * x_stride + at + i]), sum);
                }
                float* to = out + (b / (2 * VW) * vectors + r) * 2 * VW + b % (2 * VW);
                vstore(to, vfma(sum, scale, vload(to)));
            }
            first = last;
        }
    }
}
#endif

}  // namespace
}  // namespace EK_NS
