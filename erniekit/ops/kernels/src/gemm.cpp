// See gemm.h.
#include "gemm.h"

#include "onednn.h"

namespace EK_NS {
namespace {

#if EK_LEVEL >= 3
#ifndef EK_MR
#define EK_MR 8
#define EK_NV 3
#endif
enum { MR = EK_MR, NV = EK_NV };
#elif EK_LEVEL == 2
enum { MR = 8, NV = 3 };
#elif EK_LEVEL == 1
enum { MR = 6, NV = 2 };
#else
enum { MR = 4, NV = 2 };
#endif
enum { NR = NV * VW };
// Rows of K in a panel at most: NR columns of so many units are half of a 1 MB cache.
enum { KC = 2048 };

typedef uint32_t unit;

EK_INLINE bool pairs(int type) { return EK_LEVEL >= 3 && type == EK_BF16; }
EK_INLINE long units(int type, long k) { return pairs(type) ? (k + 1) / 2 : k; }
EK_INLINE long smaller(long a, long b) { return a < b ? a : b; }

EK_INLINE unit pair_of(bf16 low, bf16 high) { return (unit)low | (unit)high << 16; }
EK_INLINE unit wide_of(float x) {
    unit bits;
    memcpy(&bits, &x, 4);
    return bits;
}

// ---- the inner loop --------------------------------------------------------------------------
// acc[r][j] += sum over p of A(r, p) B(p, j), A(r, p) at a + r row + p step (bytes).
template <int R, int V, bool PAIRS>
EK_INLINE void accumulate(vf (&acc)[R][V], const char* a, long row, long step, const unit* b, long count) {
    for (long p = 0; p < count; p++) {
#if EK_LEVEL >= 3
        if (PAIRS) {
            __m512bh columns[V];
            for (int j = 0; j < V; j++) columns[j] = (__m512bh)_mm512_loadu_si512(b + j * VW);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                int both;
                memcpy(&both, a + r * row, 4);
                const __m512bh x = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
                for (int j = 0; j < V; j++) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], x, columns[j]);
            }
        } else
#endif
        {
            vf columns[V];
            for (int j = 0; j < V; j++) columns[j] = vload((const float*)b + j * VW);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                float one;
                memcpy(&one, a + r * row, 4);
                const vf x = vset(one);
#pragma GCC unroll 4
                for (int j = 0; j < V; j++) acc[r][j] = vfma(x, columns[j], acc[r][j]);
            }
        }
        a += step;
        b += NR;
    }
}

// Where a tile of C goes; `first` and `last` say which block of K this is.
struct Tile {
    float* sums;  // fp32 partial sums [rows][sums_stride] when K has several blocks
    long sums_stride;
    bool first, last;
    char* c;
    long c_stride;
    int c_type;
    bool add;
    const char* bias;
    int bias_type;
    long columns;
};

template <class T>
EK_INLINE vf bias_at(const T* bias, long column, long left) { return vload_n(bias + column, left); }

template <int R, int V, bool PAIRS>
static void tile(const char* a, long row, long step, const unit* b, long count, const Tile& t) {
    vf acc[R][V];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j++) acc[r][j] = t.first ? vzero() : vload(t.sums + r * t.sums_stride + j * VW);
    accumulate<R, V, PAIRS>(acc, a, row, step, b, count);
    if (!t.last) {
        for (int r = 0; r < R; r++)
            for (int j = 0; j < V; j++) vstore(t.sums + r * t.sums_stride + j * VW, acc[r][j]);
        return;
    }
    for (int j = 0; j < V; j++) {
        const long left = t.columns - j * VW;
        if (left <= 0) break;
        if (t.bias) {
            const vf bias = t.bias_type == EK_BF16 ? bias_at((const bf16*)t.bias, j * VW, left)
                                                   : bias_at((const float*)t.bias, j * VW, left);
            for (int r = 0; r < R; r++) acc[r][j] = vadd(acc[r][j], bias);
        }
        for (int r = 0; r < R; r++) {
            if (t.c_type == EK_BF16) {
                vstore_n((bf16*)t.c + r * t.c_stride + j * VW, acc[r][j], left);
            } else {
                float* c = (float*)t.c + r * t.c_stride + j * VW;
                vstore_n(c, t.add ? vadd(vload_n(c, left), acc[r][j]) : acc[r][j], left);
            }
        }
    }
}

typedef void (*TileFunction)(const char*, long, long, const unit*, long, const Tile&);
template <int V, bool PAIRS>
EK_INLINE TileFunction tile_of(long rows) {
    switch (rows) {
        case 1: return tile<1, V, PAIRS>;
        case 2: return tile<2, V, PAIRS>;
        case 3: return tile<3, V, PAIRS>;
        case 4: return tile<4, V, PAIRS>;
#if EK_LEVEL >= 1
        case 5: return tile<5, V, PAIRS>;
        case 6: return tile<6, V, PAIRS>;
#endif
#if EK_LEVEL >= 2
        case 7: return tile<7, V, PAIRS>;
        case 8: return tile<8, V, PAIRS>;
#endif
#if EK_LEVEL >= 3 && EK_MR > 8
        case 9: return tile<9, V, PAIRS>;
        case 10: return tile<10, V, PAIRS>;
        case 11: return tile<11, V, PAIRS>;
        case 12: return tile<12, V, PAIRS>;
#endif
    }
    return nullptr;
}

// A last panel of few columns is computed with as few vectors as hold them.
template <bool PAIRS>
EK_INLINE TileFunction tile_function(long rows, long columns) {
    if (columns <= VW) return tile_of<1, PAIRS>(rows);
    if (NV > 2 && columns <= 2 * VW) return tile_of<2, PAIRS>(rows);
    return tile_of<NV, PAIRS>(rows);
}

// ---- copies ------------------------------------------------------------------------------------
#if EK_LEVEL >= 3
// Two rows of 16 bf16 as 16 pairs.
EK_INLINE __m512i zip(__m256i even, __m256i odd) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

EK_INLINE void transpose16(__m512i (&x)[16]) {
    __m512i y[16];
    for (int i = 0; i < 8; i++) {
        y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        x[4 * i] = _mm512_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
        x[4 * i + 1] = _mm512_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
        x[4 * i + 2] = _mm512_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
        x[4 * i + 3] = _mm512_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[4 + i], 0x88);
        y[4 + i] = _mm512_shuffle_i32x4(x[i], x[4 + i], 0xdd);
        y[8 + i] = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0x88);
        y[12 + i] = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[8 + i], 0x88);
        x[8 + i] = _mm512_shuffle_i32x4(y[i], y[8 + i], 0xdd);
        x[4 + i] = _mm512_shuffle_i32x4(y[4 + i], y[12 + i], 0x88);
        x[12 + i] = _mm512_shuffle_i32x4(y[4 + i], y[12 + i], 0xdd);
    }
}
#endif

// Units [count][width] of `lines` (<= width) lines; the line i at K position k is data[k stride + i]
// when `along` (K runs down the memory), else data[i stride + k]. The rest is zero.
template <int WIDTH>
static void copy_lines(int type, const void* data, long stride, bool along, long lines, long k, unit* out) {
    const long count = units(type, k);
#if EK_LEVEL >= 3
    if (type == EK_BF16) {
        const bf16* from = (const bf16*)data;
        if (along) {
            for (long p = 0; p < count; p++, out += WIDTH) {
                const bf16* even = from + 2 * p * stride;
                const bf16* odd = even + stride;
                const bool whole = 2 * p + 1 < k;
                for (long i = 0; i < WIDTH; i += 16) {
                    const long here = lines - i;
                    const __mmask16 in = here >= 16 ? 0xffff : here <= 0 ? 0 : vmask(here);
                    const __m256i x = _mm256_maskz_loadu_epi16(in, even + i);
                    const __m256i y = _mm256_maskz_loadu_epi16(whole ? in : 0, odd + i);
                    const __mmask16 fits = WIDTH - i >= 16 ? 0xffff : (__mmask16)((1u << ((WIDTH - i) & 15)) - 1u);
                    _mm512_mask_storeu_epi32(out + i, fits, zip(x, y));
                }
            }
            return;
        }
        if (WIDTH % 16 == 0) {
            for (long p = 0; p < count; p += 16) {
                const long left = smaller(32, k - 2 * p);
                const __mmask32 in = left == 32 ? 0xffffffffu : (__mmask32)((1u << left) - 1u);
                const long deep = smaller(16, count - p);
                for (long i = 0; i < WIDTH; i += 16) {
                    __m512i x[16];
                    for (int j = 0; j < 16; j++)
                        x[j] = _mm512_maskz_loadu_epi16(i + j < lines ? in : 0, from + (i + j) * stride + 2 * p);
                    transpose16(x);
                    for (long j = 0; j < deep; j++) _mm512_storeu_si512(out + (p + j) * WIDTH + i, x[j]);
                }
            }
            return;
        }
        for (long p = 0; p < count; p++)
            for (long i = 0; i < WIDTH; i++) {
                const bf16* at = from + i * stride + 2 * p;
                out[p * WIDTH + i] = i < lines ? pair_of(at[0], 2 * p + 1 < k ? at[1] : (bf16)0) : 0;
            }
        return;
    }
#endif
    if (along) {
        for (long p = 0; p < k; p++, out += WIDTH) {
            long i = 0;
            if (type == EK_BF16) {
                const bf16* from = (const bf16*)data + p * stride;
                for (; i + VW <= smaller(lines, WIDTH); i += VW) vstore((float*)out + i, vload(from + i));
                for (; i < WIDTH; i++) out[i] = i < lines ? wide_of(bf16_to_float(from[i])) : 0;
            } else {
                const unit* from = (const unit*)data + p * stride;
                for (; i + VW <= smaller(lines, WIDTH); i += VW) vstore((float*)out + i, vload((const float*)from + i));
                for (; i < WIDTH; i++) out[i] = i < lines ? from[i] : 0;
            }
        }
        return;
    }
#if EK_LEVEL == 2 || EK_LEVEL >= 3
    if (type == EK_FP32 && WIDTH % 16 == 0) {
        const unit* from = (const unit*)data;
        for (long p = 0; p < k; p += 16) {
            const long deep = smaller(16, k - p);
            const __mmask16 in = deep == 16 ? 0xffff : vmask(deep);
            for (long i = 0; i < WIDTH; i += 16)
                for (int j = 0; j < 16; j++) {
                    const __m512i x = _mm512_maskz_loadu_epi32(i + j < lines ? in : 0, from + (i + j) * stride + p);
                    unit column[16];
                    _mm512_storeu_si512(column, x);
                    for (long q = 0; q < deep; q++) out[(p + q) * WIDTH + i + j] = column[q];
                }
        }
        return;
    }
#endif
    for (long i = 0; i < WIDTH; i++)
        for (long p = 0; p < k; p++) {
            unit x = 0;
            if (i < lines) {
                x = type == EK_BF16 ? wide_of(bf16_to_float(((const bf16*)data)[i * stride + p]))
                                    : ((const unit*)data)[i * stride + p];
            }
            out[p * WIDTH + i] = x;
        }
}

EK_INLINE const char* at(const Matrix& x, int type, long row, long column) {
    const long offset = x.transposed ? column * x.stride + row : row * x.stride + column;
    return (const char*)x.data + offset * (type == EK_BF16 ? 2 : 4);
}

// Columns [column, column + NR) of B at K positions [k, k + depth).
EK_INLINE void copy_b(const Product& x, long column, long k, long depth, unit* out) {
    copy_lines<NR>(x.type, at(x.b, x.type, k, column), x.b.stride, !x.b.transposed, smaller(NR, x.n - column),
                   depth, out);
}

// Rows [row, row + MR) of A at K positions [k, k + depth).
EK_INLINE void copy_a(const Product& x, long row, long k, long depth, unit* out) {
    copy_lines<MR>(x.type, at(x.a, x.type, row, k), x.a.stride, x.a.transposed, smaller(MR, x.m - row), depth,
                   out);
}

// Rows of A can be read where they are.
EK_INLINE bool a_is_direct(const Product& x) {
    if (x.a.transposed) return false;
    return x.type == EK_FP32 || (pairs(x.type) && x.k % 2 == 0);
}

// A panel of B that is wanted next: cache lines that are fetched while tiles are computed, so that its copy
// does not wait for memory. Only a hint: lines past the end of B do no harm.
struct Ahead {
    const char* data;
    long stride;       // bytes from one row in memory to the next
    long rows, lines;  // cache lines in each row
    long share;        // lines to fetch with each tile
    long row, line;    // the next one
};

EK_INLINE Ahead ahead_of(const Product& x, const void* panel, long tiles) {
    const long size = x.type == EK_BF16 ? 2 : 4;
    const long rows = x.b.transposed ? (long)NR : x.k, width = x.b.transposed ? x.k : (long)NR;
    const long lines = (width * size + 63) / 64;
    return {(const char*)panel, x.b.stride * size, rows, lines, (rows * lines + tiles - 1) / tiles, 0, 0};
}

EK_INLINE void fetch(Ahead& ahead) {
    for (long i = 0; i < ahead.share && ahead.row < ahead.rows; i++) {
        __builtin_prefetch(ahead.data + ahead.row * ahead.stride + ahead.line * 64, 0, 2);
        if (++ahead.line == ahead.lines) ahead.line = 0, ahead.row++;
    }
}

struct Plan {
    const Product* x;
    Ahead* ahead;  // or null
    bool direct;
    long panels;       // of B
    long row_blocks;   // tasks along M
    long block_rows;   // a multiple of MR
    const unit* whole_a;  // all of A copied, [K block][M / MR][units][MR], or null
    const unit* whole_b;  // all of B copied, [K block][panel][units][NR], or null
};

EK_INLINE long padded_rows(const Product& x) { return (x.m + MR - 1) / MR * MR; }
EK_INLINE long copied_a(const Product& x, long k) { return padded_rows(x) * units(x.type, k); }
EK_INLINE long copied_b(const Product& x, long k) { return (x.n + NR - 1) / NR * NR * units(x.type, k); }

EK_INLINE void run_tiles(const Plan& plan, long panel, long row, long rows, long k, long depth, const unit* b,
                      const unit* a_block, float* sums) {
    const Product& x = *plan.x;
    const long count = units(x.type, depth);
    Tile t;
    t.sums_stride = NR;
    t.first = k == 0;
    t.last = k + depth == x.k;
    t.c_type = x.c_type;
    t.c_stride = x.c_stride;
    t.add = x.beta != 0.0f;
    t.columns = smaller(NR, x.n - panel * NR);
    t.bias_type = x.type;
    t.bias = x.bias ? (const char*)x.bias + panel * NR * (x.type == EK_BF16 ? 2 : 4) : nullptr;
    for (long r = 0; r < rows; r += MR) {
        const long here = smaller(MR, rows - r);
        t.sums = sums + r * NR;
        t.c = (char*)x.c + ((row + r) * x.c_stride + panel * NR) * (x.c_type == EK_BF16 ? 2 : 4);
        const char* a;
        long row_bytes, step;
        if (plan.direct) {
            a = at(x.a, x.type, row + r, k);
            row_bytes = x.a.stride * (x.type == EK_BF16 ? 2 : 4);
            step = 4;
        } else {
            a = (const char*)(a_block + r * count);
            row_bytes = 4;
            step = 4 * MR;
        }
        const TileFunction f =
            pairs(x.type) ? tile_function<true>(here, t.columns) : tile_function<false>(here, t.columns);
        if (plan.ahead) fetch(*plan.ahead);
        f(a, row_bytes, step, b, count, t);
    }
}

static void run_task(const Plan& plan, long task, int thread) {
    const Product& x = *plan.x;
    const bool by_rows = plan.whole_b != nullptr;
    const long block = by_rows ? task : task % plan.row_blocks;
    const long row = block * plan.block_rows, rows = smaller(plan.block_rows, x.m - row);
    const long first_panel = by_rows ? 0 : task / plan.row_blocks;
    const long last_panel = by_rows ? plan.panels : first_panel + 1;
    const bool several = x.k > KC;
    const long room = (rows + MR - 1) / MR * MR;
    unit* own_b = by_rows ? nullptr : ek_scratch<unit>(thread, 0, (size_t)NR * units(x.type, smaller(KC, x.k)));
    const bool own_a = !plan.direct && plan.whole_a == nullptr;
    unit* a_copy = own_a ? ek_scratch<unit>(thread, 1, (size_t)room * units(x.type, smaller(KC, x.k))) : nullptr;
    float* sums = several ? ek_scratch<float>(thread, 2, (size_t)room * NR * (by_rows ? plan.panels : 1)) : nullptr;
    for (long k = 0; k < x.k; k += KC) {
        const long depth = smaller(KC, x.k - k), count = units(x.type, depth);
        const unit* a_block = nullptr;
        if (own_a) {
            for (long r = 0; r < rows; r += MR) copy_a(x, row + r, k, depth, a_copy + r * count);
            a_block = a_copy;
        } else if (!plan.direct) {
            a_block = plan.whole_a + copied_a(x, k) + row * count;
        }
        for (long panel = first_panel; panel < last_panel; panel++) {
            const unit* b;
            if (by_rows) {
                b = plan.whole_b + copied_b(x, k) + panel * NR * count;
            } else {
                copy_b(x, panel * NR, k, depth, own_b);
                b = own_b;
            }
            run_tiles(plan, panel, row, rows, k, depth, b, a_block,
                      sums + (by_rows && several ? panel * room * NR : 0));
        }
    }
}

EK_INLINE void nothing_to_sum(const Product& x) {
    for (long i = 0; i < x.m; i++)
        for (long j = 0; j < x.n; j++) {
            float y = 0.0f;
            if (x.bias) y = x.type == EK_BF16 ? load1((const bf16*)x.bias + j) : load1((const float*)x.bias + j);
            if (x.c_type == EK_BF16) store1((bf16*)x.c + i * x.c_stride + j, y);
            else {
                float* c = (float*)x.c + i * x.c_stride + j;
                *c = x.beta != 0.0f ? *c + y : y;
            }
        }
}

}  // namespace

// Two shapes of work. By panels: a task copies one panel of B and takes a range of rows past it; A is
// read in place or has been copied whole. By rows: B has been copied whole, and a task takes one block
// of rows (copied, where they do not lie right) past all panels.
void multiply(const Product& x) {
    if (x.m <= 0 || x.n <= 0) return;
    if (x.k <= 0) return nothing_to_sum(x);
    if (x.type == EK_BF16 && ek_onednn_used() && !ek_pool_inside() &&
        ek_onednn_multiply(x.m, x.n, x.k, x.a.data, x.a.stride, x.a.transposed, x.b.data, x.b.stride,
                           x.b.transposed, x.c, x.c_stride, x.c_type, x.beta != 0.0f, x.bias) == 0)
        return;
    Plan plan;
    plan.x = &x;
    plan.ahead = nullptr;
    plan.direct = a_is_direct(x);
    plan.panels = (x.n + NR - 1) / NR;
    plan.whole_a = plan.whole_b = nullptr;
    const long row_tiles = (x.m + MR - 1) / MR;
    const bool by_rows = plan.direct ? false : x.m >= x.n;
    const size_t a_units = (size_t)copied_a(x, x.k), b_units = (size_t)copied_b(x, x.k);
    if (by_rows) {
        // Rows of a task stay in the second-level cache; every core has something to do until the end.
        long tiles = smaller(row_tiles, 384 / MR);
        while (!ek_pool_inside() && tiles > 1 && (row_tiles + tiles - 1) / tiles < 8) tiles = (tiles + 1) / 2;
        plan.block_rows = tiles * MR;
        plan.row_blocks = (row_tiles + tiles - 1) / tiles;
        unit* copy = ek_scratch<unit>(ek_pool_thread(), 3, b_units);
        plan.whole_b = copy;
        const long blocks = (x.k + KC - 1) / KC;
        ek_parallel(plan.panels * blocks, [&](long task, int) {
            const long panel = task % plan.panels, k = task / plan.panels * KC;
            const long depth = smaller(KC, x.k - k);
            copy_b(x, panel * NR, k, depth, copy + copied_b(x, k) + panel * NR * units(x.type, depth));
        });
        ek_parallel(plan.row_blocks, [&](long task, int thread) { run_task(plan, task, thread); });
        return;
    }
    // Few panels are split along the rows, so that every core has something to do until the end.
    // Inside a task there is one core, and every split would copy the panels of B again: there they only
    // keep the sums of long products in the cache.
    long splits = 1;
    if (ek_pool_inside()) splits = (x.m + 1023) / 1024;
    else
        while (plan.panels * splits < 16 && row_tiles >= 16 * splits) splits *= 2;
    plan.block_rows = (row_tiles + splits - 1) / splits * MR;
    plan.row_blocks = (x.m + plan.block_rows - 1) / plan.block_rows;
    if (!plan.direct) {
        unit* copy = ek_scratch<unit>(ek_pool_thread(), 3, a_units);
        plan.whole_a = copy;
        const long blocks = (x.k + KC - 1) / KC;
        ek_parallel(row_tiles * blocks, [&](long task, int) {
            const long r = task % row_tiles * MR, k = task / row_tiles * KC;
            const long depth = smaller(KC, x.k - k);
            copy_a(x, r, k, depth, copy + copied_a(x, k) + r * units(x.type, depth));
        });
    }
    if (x.next_b == nullptr) {
        ek_parallel(plan.panels * plan.row_blocks, [&](long task, int thread) { run_task(plan, task, thread); });
        return;
    }
    for (long panel = 0; panel < plan.panels; panel++) {
        const bool last = panel + 1 == plan.panels;
        Ahead ahead = ahead_of(x, last ? x.next_b : at(x.b, x.type, 0, (panel + 1) * NR), row_tiles);
        plan.ahead = &ahead;
        for (long block = 0; block < plan.row_blocks; block++)
            run_task(plan, panel * plan.row_blocks + block, ek_pool_thread());
    }
}

EK_INLINE const void* past(const void* data, int type, long elements) {
    return (const char*)data + elements * (type == EK_BF16 ? 2 : 4);
}

// Columns of an expert's product that make one task; a multiple of every NR.
enum { TASK_COLUMNS = 4 * NR };

// C rows [from[g], from[g + 1]) = the same rows of A times B[g]. Few and large groups share their
// columns out among the threads, so that no thread waits for the largest group.
static void multiply_rows(long groups, const long* from, const Product& all, long b_size) {
    const long pieces = (all.n + TASK_COLUMNS - 1) / TASK_COLUMNS;
    auto b_of = [&](long task) {
        const long column = task % pieces * TASK_COLUMNS;
        const long offset = all.b.transposed ? column * all.b.stride : column;
        return past(all.b.data, all.type, task / pieces * b_size + offset);
    };
    // What a thread takes next is most likely this many tasks on.
    const long threads = ek_get_threads();
    ek_parallel(groups * pieces, [&](long task, int) {
        const long g = task / pieces, column = task % pieces * TASK_COLUMNS;
        Product x = all;
        x.m = from[g + 1] - from[g];
        if (x.m == 0) return;
        x.n = smaller(TASK_COLUMNS, all.n - column);
        x.a.data = past(all.a.data, all.type, from[g] * all.a.stride);
        x.b.data = b_of(task);
        x.next_b = task + threads < groups * pieces ? b_of(task + threads) : nullptr;
        x.c = (void*)past(all.c, all.c_type, from[g] * all.c_stride + column);
        multiply(x);
    });
}

// C[g] (+)= the transposed rows [from[g], from[g + 1]) of A times the same rows of B.
static void multiply_columns(long groups, const long* from, const Product& all, long c_size) {
    auto of_group = [&](long g) {
        Product x = all;
        x.k = from[g + 1] - from[g];
        if (x.k == 0 && all.beta != 0.0f) return;
        x.a.data = past(all.a.data, all.type, from[g] * all.a.stride);
        x.b.data = past(all.b.data, all.type, from[g] * all.b.stride);
        x.c = (void*)past(all.c, all.c_type, g * c_size);
        multiply(x);
    };
    if (groups >= 16) {
        ek_parallel(groups, [&](long g, int) { of_group(g); });
    } else {
        for (long g = 0; g < groups; g++) of_group(g);
    }
}

}  // namespace EK_NS

using namespace EK_NS;

// Rows [from[g], from[g + 1]) of A [M,K] times B[g] [K,N] (stored [N,K] when b_transposed) into C [M,N].
EK_EXPORT(ek_grouped_gemm)(int type, long groups, const long* from, long n, long k, const void* a, const void* b,
                           int b_transposed, void* c) {
    const Product all = {0, n, k, type, {a, k, false}, {b, b_transposed ? k : n, b_transposed != 0}, c, n, type,
                         0.0f, nullptr};
    multiply_rows(groups, from, all, n * k);
}

// C[g] [M,N] (fp32) = beta C[g] + A[rows of g]^T B[rows of g], A [rows,M] and B [rows,N].
EK_EXPORT(ek_grouped_gemm_gradient)(int type, long groups, const long* from, long m, long n, const void* a,
                                    const void* b, float* c, float beta) {
    const Product all = {m, n, 0, type, {a, m, true}, {b, n, false}, c, n, EK_FP32, beta, nullptr};
    multiply_columns(groups, from, all, m * n);
}

// Types: 0 fp32, 1 bf16. A [M,K] (stored [K,M] when a_transposed), B [K,N] (stored [N,K] when
// b_transposed), strides in elements, C [M,N] in c_type; beta 0 or 1, the latter for an fp32 C only.
EK_EXPORT(ek_gemm)(int type, long m, long n, long k, const void* a, long a_stride, int a_transposed, const void* b,
              long b_stride, int b_transposed, void* c, long c_stride, int c_type, float beta, const void* bias) {
    const Product product = {m, n, k, type, {a, a_stride, a_transposed != 0}, {b, b_stride, b_transposed != 0},
                             c, c_stride, c_type, beta, bias};
    multiply(product);
}
