// Products of a few vectors with a matrix of codes that are no whole numbers, for decoding: as `multiply_coded`, with
// numbers made in registers. Vectors and sums are fp32, so only the order of a sum differs from that of a product
// with the matrix in fp32.
//
//   kind       a stored row holds, of a column         number
//   kTable     2 rows, 4 bits each                     scale[k / group] table[code]
//   kFloat8    a row, E4M3                             scale[k / group] value(code)
//   kWords2    4 rows: windows of a word of 15 bits    local[k / 64] super (window - 32)
//   kWords25   7 rows: windows of a word of 16 bits    local[k / 64] super (window - 4)
//
// The last two are the convolutional codes of `ops/ccq.py`. Of ten stored rows of kWords25 the last one holds the
// 64th row of a group and its local scale.
#pragma once

#include "decode_products.h"

namespace EK_NS {
namespace {

enum { kWholeNumbers = 0, kTable, kFloat8, kWords2, kWords25, kLast25 };

struct Numbers {
    long kind;
    const uint8_t* codes;  // [stored rows][columns], of kWords25 of two bytes each
    const void* scales;    // [groups][columns]; of kWords2 4 bits each, [(groups + 1) / 2][columns]
    const float* given;    // the table; or [3][columns]: super, scale and zero point of words, or [1][columns]: super
    long columns, group, scale_type;
};

// Stored rows that are worked on at once, and rows that one holds.
template <int KIND>
struct Kind {
    enum {
        each = KIND == kTable ? 2 : KIND == kWords2 ? 4 : KIND == kWords25 ? 7 : 1,
        stored = KIND == kTable || KIND == kFloat8 ? 4 : KIND == kWords2 ? 2 : 1,
        width = KIND == kWords25 || KIND == kLast25 ? 2 : 1  // bytes of a column
    };
};

EK_INLINE long stored_row(long kind, long k) {
    return kind == kTable ? k / 2 : kind == kFloat8 ? k : kind == kWords2 ? k / 4 : k / 64 * 10;
}
EK_INLINE long stored_rows(long kind, long rows) {
    return kind == kTable    ? (rows + 1) / 2
           : kind == kFloat8 ? rows
           : kind == kWords2 ? (rows + 3) / 4
                             : (rows + 63) / 64 * 10;
}
EK_INLINE long stored_width(long kind) { return kind == kWords25 ? 2 : 1; }

typedef int32_t ints __attribute__((vector_size(4 * VW)));

#if EK_LEVEL >= 2
template <bool WHOLE>
EK_INLINE __m128i load_bytes(const uint8_t* p, long n) {
    return WHOLE || n >= VW ? _mm_loadu_si128((const __m128i*)p) : _mm_maskz_loadu_epi8(vmask(n), p);
}
template <bool WHOLE>
EK_INLINE ints byte_codes(const uint8_t* p, long n) {
    return (ints)_mm512_cvtepu8_epi32(load_bytes<WHOLE>(p, n));
}
template <bool WHOLE>
EK_INLINE ints word_codes(const uint8_t* p, long n) {
    return (ints)_mm512_cvtepu16_epi32(WHOLE || n >= VW ? _mm256_loadu_si256((const __m256i*)p)
                                                        : _mm256_maskz_loadu_epi16(vmask(n), p));
}
#else
template <class U, bool WHOLE>
EK_INLINE ints codes_of(const uint8_t* p, long n) {
    typedef U few __attribute__((vector_size(sizeof(U) * VW)));
    few x;
    if (WHOLE || n >= VW) {
        memcpy(&x, p, sizeof x);
    } else {
        memset(&x, 0, sizeof x);
        memcpy(&x, p, sizeof(U) * n);
    }
    return __builtin_convertvector(x, ints);
}
template <bool WHOLE>
EK_INLINE ints byte_codes(const uint8_t* p, long n) { return codes_of<uint8_t, WHOLE>(p, n); }
template <bool WHOLE>
EK_INLINE ints word_codes(const uint8_t* p, long n) { return codes_of<uint16_t, WHOLE>(p, n); }
#endif

EK_INLINE vf as_numbers(ints x) { return (vf)x; }
EK_INLINE ints all(int32_t x) { return x - ints{}; }

// ---- the numbers of one stored row, VW columns --------------------------------------------------
EK_INLINE vf table_values(ints code, const float* table) {
#if EK_LEVEL >= 2
    return _mm512_permutexvar_ps((__m512i)code, _mm512_loadu_ps(table));  // by the low 4 bits
#elif EK_LEVEL == 1
    const vf low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)code);
    const vf high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)code);
    return _mm256_blendv_ps(low, high, (vf)(code << 28));  // bit 3 as the sign
#else
    return vf{table[code[0] & 15], table[code[1] & 15], table[code[2] & 15], table[code[3] & 15]};
#endif
}

// E4M3 times 2^-8: as numbers of 16 bits, whose exponents have a bit more and another zero.
template <bool WHOLE>
EK_INLINE vf float8_values(const uint8_t* p, long n) {
#if EK_LEVEL >= 2
    const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(load_bytes<WHOLE>(p, n)), 7);
    return _mm512_cvtph_ps(_mm256_and_si256(wide, _mm256_set1_epi16((short)0xbfff)));
#else
    const ints code = byte_codes<WHOLE>(p, n), size = code & 0x7f;
    const vf small = vmul(__builtin_convertvector(size, vf), vset(0x1p-17f));
    const ints normal = (size << 20) + (112 << 23);
    return as_numbers((size < 8 ? (ints)small : normal) | (code & 0x80) << 24);
#endif
}

// The product alone, which no compiler may join with a sum.
EK_INLINE vf rounded_product(vf a, vf b) {
    vf product = vmul(a, b);
#if defined(__x86_64__)
#if EK_LEVEL >= 2
    __asm__("" : "+v"(product));
#else
    __asm__("" : "+x"(product));
#endif
#elif defined(__aarch64__)
    __asm__("" : "+w"(product));
#endif
    return product;
}

EK_INLINE ints floored(vf x) {
#if EK_LEVEL >= 2
    return (ints)_mm512_cvt_roundps_epi32(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    const ints cut = __builtin_convertvector(x, ints);
    return cut + (ints)(__builtin_convertvector(cut, vf) > x);
#endif
}

// A window of BITS bits from bit `shift` on, less half of what it can hold: laid into the mantissa of a number whose
// last of these bits is worth 1.
template <int BITS, int SHIFT>
EK_INLINE vf window(ints word) {
    const int place = 23 - BITS;
    const ints moved = place >= SHIFT ? word << (place >= SHIFT ? place - SHIFT : 0)
                                      : (ints)(word >> (place >= SHIFT ? 0 : SHIFT - place));
    const int mask = ((1 << BITS) - 1) << place, one = (127 + BITS) << 23;
    return vsub(as_numbers((moved & mask) | one), vset(1.5f * (1 << BITS)));
}

template <int KIND, bool WHOLE>
EK_INLINE void make(const Numbers& w, const uint8_t* p, long c, long n, vf* out, long step) {
    if (KIND == kTable) {
        const ints both = byte_codes<WHOLE>(p, n);
        out[0] = table_values(both, w.given);
        out[step] = table_values(both >> 4, w.given);
    } else if (KIND == kFloat8) {
        out[0] = float8_values<WHOLE>(p, n);
    } else if (KIND == kWords2) {
        const float *scale = w.given + w.columns + c, *zero = scale + w.columns;
        const vf s = WHOLE ? vload(scale) : vload_n(scale, n), z = WHOLE ? vload(zero) : vload_n(zero, n);
        const vf code = __builtin_convertvector(byte_codes<WHOLE>(p, n), vf);
        const ints word = floored(vadd(vadd(rounded_product(code, s), z), vset(0.5f)));
        out[0] = window<6, 9>(word), out[step] = window<6, 6>(word);
        out[2 * step] = window<6, 3>(word), out[3 * step] = window<6, 0>(word);
    } else {
        const ints word = word_codes<WHOLE>(p, n);
        out[0] = window<3, 13>(word);
        if (KIND == kLast25) return;
        out[step] = window<3, 11>(word), out[2 * step] = window<3, 9>(word), out[3 * step] = window<3, 6>(word);
        out[4 * step] = window<3, 4>(word), out[5 * step] = window<3, 2>(word), out[6 * step] = window<3, 0>(word);
    }
}

// ---- sums ---------------------------------------------------------------------------------------
// STORED rows of 2 VW columns, n of them there: sums [vectors][2 VW] += numbers times x.
template <int KIND, int STORED, bool WHOLE>
EK_INLINE void numbers_block(const Numbers& w, const uint8_t* p, long c, long n, const float* x, long x_stride,
                             long vectors, float* sums) {
    enum { EACH = Kind<KIND>::each, WIDTH = Kind<KIND>::width };
    vf made[STORED * EACH][2];
    for (int i = 0; i < STORED; i++, p += w.columns * WIDTH) {
        make<KIND, WHOLE>(w, p, c, n, &made[i * EACH][0], 2);
        if (WHOLE || n > VW) make<KIND, WHOLE>(w, p + VW * WIDTH, c + VW, n - VW, &made[i * EACH][1], 2);
        else for (int j = 0; j < EACH; j++) made[i * EACH + j][1] = vzero();
    }
    for (long r = 0; r < vectors; r++, x += x_stride, sums += 2 * VW) {
        vf a = vload(sums), b = vload(sums + VW);
        for (int j = 0; j < STORED * EACH; j++) {
            const vf s = vset(x[j]);
            a = vfma(made[j][0], s, a);
            b = vfma(made[j][1], s, b);
        }
        vstore(sums, a);
        vstore(sums + VW, b);
    }
}

template <int KIND, int STORED>
EK_APART void numbers_sweep(const Numbers& w, const uint8_t* p, long c, long columns, const float* x, long x_stride,
                            long vectors, float* sums, Ahead* ahead) {
    enum { WIDTH = Kind<KIND>::width };
    Ahead mine = *ahead;
    long i = 0;
    for (; i + 2 * VW <= columns; i += 2 * VW, sums += vectors * 2 * VW) {
        if (EK_LEVEL >= 3 && i * WIDTH % 64 == 0) mine.step(STORED);
        numbers_block<KIND, STORED, true>(w, p + i * WIDTH, c + i, 2 * VW, x, x_stride, vectors, sums);
    }
    if (i < columns) {
        if (EK_LEVEL >= 3 && i * WIDTH % 64 == 0) mine.step(STORED);
        numbers_block<KIND, STORED, false>(w, p + i * WIDTH, c + i, columns - i, x, x_stride, vectors, sums);
    }
    *ahead = mine;
}

// Rows [k, k + steps) of one group over `columns` columns: sums [blocks][vectors][2 VW] += numbers times x.
template <int KIND>
static void numbers_rows(const Numbers& w, long k, long steps, long c, long columns, const float* x, long x_stride,
                         long vectors, float* sums, Ahead* ahead) {
    enum { EACH = Kind<KIND>::each, STORED = Kind<KIND>::stored, WIDTH = Kind<KIND>::width };
    const long stride = w.columns * WIDTH;
    const uint8_t* p = w.codes + stored_row(KIND, k) * stride + c * WIDTH;
    long left = KIND == kWords25 ? 9 : stored_rows(KIND, steps);
    for (; left >= STORED; left -= STORED, p += STORED * stride, x += STORED * EACH)
        numbers_sweep<KIND, STORED>(w, p, c, columns, x, x_stride, vectors, sums, ahead);
    for (; left > 0; left--, p += stride, x += EACH)
        numbers_sweep<KIND, 1>(w, p, c, columns, x, x_stride, vectors, sums, ahead);
    if (KIND == kWords25) numbers_sweep<kLast25, 1>(w, p, c, columns, x, x_stride, vectors, sums, ahead);
}

// Scales of a group for VW columns from c on, n of them there.
EK_INLINE vf group_scales(const Numbers& w, long group, long c, long n) {
    if (w.kind == kTable || w.kind == kFloat8) {
        const long at = group * w.columns + c;
        const vf scales = w.scale_type == EK_BF16 ? vload_n((const bf16*)w.scales + at, n)
                                                  : vload_n((const float*)w.scales + at, n);
        return w.kind == kFloat8 ? vmul(scales, vset(256.0f)) : scales;
    }
    ints local;
    if (w.kind == kWords2) {
        local = byte_codes<false>((const uint8_t*)w.scales + group / 2 * w.columns + c, n);
        local = (group % 2 ? local : local >> 4) & 15;
    } else {
        local = word_codes<false>(w.codes + ((group * 10 + 9) * w.columns + c) * 2, n) & 0x1fff;
    }
    return vmul(__builtin_convertvector(local, vf), vload_n(w.given + c, n));
}

// Sums over rows [k, k + inputs) of W of `columns` columns from c on: to `out` [blocks][vectors][2 VW]. Of vectors x
// the number of row k comes first; behind the last row zeros fill up a group of 64. Rows of kWords2 and kWords25
// begin with a group. `sums` has room for vectors * columns numbers, in whole blocks.
static void multiply_numbers(const Numbers& w, long k, long inputs, long c, long columns, const float* x,
                             long x_stride, long vectors, float* out, float* sums, Ahead* ahead) {
    const long size = round_up(columns, 2 * VW) * vectors;
    memset(out, 0, sizeof(float) * size);
    for (long first = 0; first < inputs;) {
        const long group = (k + first) / w.group, last = smaller(inputs, (group + 1) * w.group - k);
        const auto rows = w.kind == kTable    ? numbers_rows<kTable>
                          : w.kind == kFloat8 ? numbers_rows<kFloat8>
                          : w.kind == kWords2 ? numbers_rows<kWords2>
                                              : numbers_rows<kWords25>;
        memset(sums, 0, sizeof(float) * size);
        rows(w, k + first, last - first, c, columns, x + first, x_stride, vectors, sums, ahead);
        for (long i = 0; i < columns; i += 2 * VW)
            for (int half = 0; half < 2; half++) {
                const long at = i + half * VW;
                if (at >= columns) break;
                const vf scales = group_scales(w, group, c + at, columns - at);
                for (long r = 0; r < vectors; r++) {
                    const long place = (i / (2 * VW) * vectors + r) * 2 * VW + half * VW;
                    vstore(out + place, vfma(scales, vload(sums + place), vload(out + place)));
                }
            }
        first = last;
    }
}

// ---- inputs -------------------------------------------------------------------------------------
// The nearest E4M3 number within 448, ties to even.
EK_INLINE vf nearest_float8(vf x) {
    const vf cut = vmax(vmin(x, vset(448.0f)), vset(-448.0f));
    const ints bits = (ints)cut, size = bits & 0x7fffffff;
    const ints normal = (size + 0x7ffff + ((size >> 20) & 1)) & ~0xfffff;
    // Added to a number whose last bit is worth 2^-9, a small number is rounded to such units.
    const vf small = vsub(vadd(as_numbers(size), vset(0x1p14f)), vset(0x1p14f));
    const ints found = size < (121 << 23) ? (ints)small : normal;
    return as_numbers(found | (bits & (int)0x80000000));
}

// x H of n numbers in blocks of `size`, a power of two: sums and differences.
static void rotate(float* x, long n, long size) {
    const float scale = 1.0f / __builtin_sqrtf((float)size);
    for (float* at = x; at < x + n; at += size) {
        for (long half = 1; half < size; half *= 2)
            for (long i = 0; i < size; i += 2 * half)
                for (long j = i; j < i + half; j++) {
                    const float a = at[j], b = at[j + half];
                    at[j] = a + b;
                    at[j + half] = a - b;
                }
        for (long i = 0; i < size; i++) at[i] *= scale;
    }
}

// n numbers (zeros behind them) rounded to E4M3 numbers of a scale; without one, every `tile` have their own.
static void round_float8(float* x, long n, float given, long tile) {
    if (given > 0.0f) tile = n;
    for (long first = 0; first < n; first += tile) {
        const long last = smaller(n, first + tile);
        float scale = given;
        if (!(given > 0.0f)) {
            float most = 0.0f;
            for (long i = first; i < last; i++) most = __builtin_fmaxf(most, __builtin_fabsf(x[i]));
            scale = most > 0.0f ? most / 448.0f : 1.0f;
        }
        for (long i = first; i < last; i += VW) {
            const long count = smaller(VW, last - i);
            vstore_n(x + i, vmul(nearest_float8(vdiv(vload_n(x + i, count), vset(scale))), vset(scale)), count);
        }
    }
}

}  // namespace
}  // namespace EK_NS
