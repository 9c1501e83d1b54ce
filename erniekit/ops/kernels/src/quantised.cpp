// Products with a matrix that lies in memory as codes of 8, 4 or 2 bits and scales of groups of its rows.
//
// A task makes numbers of one panel of the matrix (PANEL columns, or rows where the product is with the
// transposed matrix) and multiplies all its rows of A with it: beside the codes no more than a panel a
// thread is ever there. A number is value(code) * scale in fp32, rounded once to the type of A, so the
// result is that of `multiply` with the whole matrix made into numbers before.
#include "gemm.h"

namespace EK_NS {
namespace {

// A multiple of what `multiply` takes at once, at every level; ROWS are worth making a panel again.
enum { PANEL = 96, ROWS = 256, TASKS = 16 };

struct Codes {
    int bits;                   // a byte holds 8 / bits rows of a column, the first in its lowest bits
    long rows, columns, group;  // rows that share a scale
    const uint8_t* codes;       // [rows * bits / 8, rounded up][columns]
    int scale_type;             // 0 fp32, 1 bf16
    const void* scales;         // [(rows + group - 1) / group][columns]
    const float* table;         // [1 << bits] numbers of the codes; null: they are signed numbers of 8 bits
};

EK_INLINE long smaller(long a, long b) { return a < b ? a : b; }
EK_INLINE const void* past(const void* data, int type, long elements) {
    return (const char*)data + elements * (type == EK_BF16 ? 2 : 4);
}
EK_INLINE void* past(void* data, int type, long elements) { return (void*)past((const void*)data, type, elements); }

#if EK_LEVEL >= 2
typedef __m512 Table;
EK_INLINE Table load_table(const float* table) { return _mm512_loadu_ps(table); }
EK_INLINE vf values8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
EK_INLINE vf values_of(const uint8_t* p, const float* table) {
    return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)), table, 4);
}
EK_INLINE vf values4(const uint8_t* p, int shift, Table table) {
    const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm512_permutexvar_ps(_mm512_srl_epi32(both, _mm_cvtsi32_si128(shift)), table);
}
#elif EK_LEVEL == 1
struct Table { __m256 low, high; };
EK_INLINE Table load_table(const float* table) {
    return Table{_mm256_loadu_ps(table), _mm256_loadu_ps(table + 8)};
}
EK_INLINE vf values8(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
EK_INLINE vf values_of(const uint8_t* p, const float* table) {
    return _mm256_i32gather_ps(table, _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)), 4);
}
EK_INLINE vf values4(const uint8_t* p, int shift, const Table& table) {
    const __m256i both = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
    const __m256i place = _mm256_srl_epi32(both, _mm_cvtsi32_si128(shift));
    const __m256 high = _mm256_castsi256_ps(_mm256_slli_epi32(place, 28));  // bit 3 as the sign
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, place), _mm256_permutevar8x32_ps(table.high, place),
                            high);
}
#else
typedef const float* Table;
EK_INLINE Table load_table(const float* table) { return table; }
EK_INLINE vf values8(const uint8_t* p) {
    return vf{(float)(int8_t)p[0], (float)(int8_t)p[1], (float)(int8_t)p[2], (float)(int8_t)p[3]};
}
EK_INLINE vf values_of(const uint8_t* p, const float* table) {
    return vf{table[p[0]], table[p[1]], table[p[2]], table[p[3]]};
}
EK_INLINE vf values4(const uint8_t* p, int shift, Table table) {
    return vf{table[p[0] >> shift & 15], table[p[1] >> shift & 15], table[p[2] >> shift & 15],
              table[p[3] >> shift & 15]};
}
#endif

// Rows [row, row + rows) and columns [column, column + columns) as numbers, `stride` apart.
template <class T, class S>
static void numbers(const Codes& w, long row, long rows, long column, long columns, T* out, long stride) {
    const bool wide = w.bits == 8, is_signed = w.table == nullptr;
    const long each = 8 / w.bits;
    float small[16] = {0};  // of fewer bits: what lies above them in a place counts for nothing
    for (int i = 0; !wide && i < 16; i++) small[i] = w.table[i & ((1 << w.bits) - 1)];
    const Table table = load_table(small);
    for (long r = row; r < row + rows; r++, out += stride) {
        const uint8_t* codes = w.codes + r / each * w.columns + column;
        const S* scales = (const S*)w.scales + r / w.group * w.columns + column;
        const int shift = (int)(r % each) * w.bits;
        long j = 0;
        for (; j + VW <= columns; j += VW) {
            const vf value = is_signed ? values8(codes + j)
                             : wide    ? values_of(codes + j, w.table)
                                       : values4(codes + j, shift, table);
            vstore(out + j, vmul(value, vload(scales + j)));
        }
        for (; j < columns; j++) {
            const float value = is_signed ? (float)(int8_t)codes[j]
                                : wide    ? w.table[codes[j]]
                                          : small[codes[j] >> shift & 15];
            store1(out + j, value * load1(scales + j));
        }
    }
}

template <class T>
static void numbers(const Codes& w, long row, long rows, long column, long columns, T* out, long stride) {
    if (w.scale_type == EK_BF16) numbers<T, bf16>(w, row, rows, column, columns, out, stride);
    else numbers<T, float>(w, row, rows, column, columns, out, stride);
}

struct Rows {
    int type;
    long m;         // rows of A and C
    const void* a;  // [m][rows], or [m][columns] when turned
    void* c;        // [m][columns], or [m][rows] when turned
    const void* bias;
    bool turned;
};

// Rows [first, first + count) of A times one panel.
static void panel_product(const Codes& w, const Rows& x, long panel, long first, long count, int thread) {
    const long outer = x.turned ? w.rows : w.columns, inner = x.turned ? w.columns : w.rows;
    const long start = panel * PANEL, width = smaller(PANEL, outer - start);
    const long stride = x.turned ? inner : (long)PANEL;
    const long row = x.turned ? start : 0, rows = x.turned ? width : inner;
    const long column = x.turned ? 0 : start, columns = x.turned ? inner : width;
    void* made = ek_scratch<char>(thread, 5, (size_t)PANEL * inner * (x.type == EK_BF16 ? 2 : 4));
    if (x.type == EK_BF16) numbers(w, row, rows, column, columns, (bf16*)made, stride);
    else numbers(w, row, rows, column, columns, (float*)made, stride);
    Product product = {};
    product.m = count;
    product.n = width;
    product.k = inner;
    product.type = product.c_type = x.type;
    product.a = Matrix{past(x.a, x.type, first * inner), inner, false};
    product.b = Matrix{made, stride, x.turned};
    product.c = past(x.c, x.type, first * outer + start);
    product.c_stride = outer;
    product.beta = 0.0f;
    product.bias = x.bias ? past(x.bias, x.type, start) : nullptr;
    multiply(product);
}

static Codes of_group(const Codes& all, long g) {
    Codes w = all;
    w.codes += g * ((all.rows * all.bits + 7) / 8) * all.columns;
    w.scales = past(all.scales, all.scale_type, g * ((all.rows + all.group - 1) / all.group) * all.columns);
    return w;
}

}  // namespace
}  // namespace EK_NS

using namespace EK_NS;

// C [M,N] = A [M,K] W [K,N] + bias, or with `turned` C [M,K] = A [M,N] W^T. Types: 0 fp32, 1 bf16, of A, C, bias,
// and of scales.
EK_EXPORT(ek_quantised_gemm)(int type, int bits, long m, long k, long n, long group, const void* a,
                             const uint8_t* codes, int scale_type, const void* scales, const float* table,
                             int turned, void* c, const void* bias) {
    if (m <= 0) return;
    const Codes w = {bits, k, n, group, codes, scale_type, scales, table};
    const Rows x = {type, m, a, c, bias, turned != 0};
    const long panels = ((turned ? k : n) + PANEL - 1) / PANEL;
    long splits = 1;
    while (panels * splits < TASKS && m >= 2 * ROWS * splits) splits *= 2;
    const long rows = (m + splits - 1) / splits;
    ek_parallel(panels * splits, [&](long task, int thread) {
        const long first = task / panels * rows, count = smaller(rows, m - first);
        if (count > 0) panel_product(w, x, task % panels, first, count, thread);
    });
}

// The same for rows [from[g], from[g + 1]) of A and matrix g of [groups][K][N].
EK_EXPORT(ek_quantised_grouped_gemm)(int type, int bits, long groups, const long* from, long k, long n, long group,
                                     const void* a, const uint8_t* codes, int scale_type, const void* scales,
                                     const float* table, int turned, void* c) {
    const Codes all = {bits, k, n, group, codes, scale_type, scales, table};
    const long outer = turned ? k : n, inner = turned ? n : k, panels = (outer + PANEL - 1) / PANEL;
    ek_parallel(groups * panels, [&](long task, int thread) {
        const long g = task / panels, count = from[g + 1] - from[g];
        if (count <= 0) return;
        const Rows x = {type, count, past(a, type, from[g] * inner), past(c, type, from[g] * outer), nullptr,
                        turned != 0};
        panel_product(of_group(all, g), x, task % panels, 0, count, thread);
    });
}
