// Numbers of few bits, tile by tile: each tile of a matrix is divided by a scale and rounded to the nearest
// number of a format, which is then kept as a byte or written back as a number.
//
// Formats: e4m3 and e5m2 of OCP's FP8 (largest number instead of infinity), and whole numbers up to `largest`.
// A scale is max |x| of its tile over the largest number, or the least power of two that is not below that.
// Rows may be in groups (experts); no tile reaches over the end of a group.
#include "pool.h"
#include "vec.h"

namespace EK_NS {
namespace {

enum { E4M3 = 0, E5M2 = 1, WHOLE = 2 };
enum { EXACT = 0, POWER_OF_TWO = 1, GIVEN = 2 };
enum { CHUNK = 512, ROWS = 64 };

EK_INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
EK_INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
EK_INLINE long smaller(long a, long b) { return a < b ? a : b; }

// A floating-point byte: 1 bit of sign, 7 - MANTISSA of exponent with BIAS, MANTISSA of mantissa.
template <int MANTISSA, int BIAS, int LAST>
struct Float8 {
    // Spacing of the numbers below the smallest normal one is 2^(1 - BIAS - MANTISSA).
    static constexpr float small_unit = MANTISSA == 3 ? 0x1p-9f : 0x1p-16f;
    static constexpr float smallest_normal = MANTISSA == 3 ? 0x1p-6f : 0x1p-14f;
    static constexpr float largest = MANTISSA == 3 ? 448.0f : 57344.0f;
    static constexpr uint32_t offset = (uint32_t)(127 - BIAS) << MANTISSA;
    static constexpr int shift = 23 - MANTISSA;

    EK_INLINE uint32_t code(float x) {
        const uint32_t bits = bits_of(x), size = bits & 0x7fffffffu;
        const float a = float_of(size), below = a > largest ? largest : a;
        const uint32_t b = bits_of(below);
        const uint32_t normal = ((b + (1u << (shift - 1)) - 1 + ((b >> shift) & 1u)) >> shift) - offset;
        // Added to a number whose last bit is worth small_unit, a small number is rounded to units.
        const float magic = small_unit * 0x1p23f;
        const uint32_t small = bits_of(below + magic) - bits_of(magic);
        const uint32_t found = below < smallest_normal ? small : normal;
        return (size > 0x7f800000u ? 0x7fu : found) | ((bits >> 24) & 0x80u);
    }
    EK_INLINE float value(uint32_t code) {
        const uint32_t size = code & 0x7fu;
        const float normal = float_of((size + offset) << shift);
        const float small = (float)(int32_t)size * small_unit;
        const float found = size < (1u << MANTISSA) ? small : normal;
        const uint32_t bits = size > (uint32_t)LAST ? 0x7fc00000u : bits_of(found);
        return float_of(bits | (code & 0x80u) << 24);
    }
};
typedef Float8<3, 7, 0x7e> Small;
typedef Float8<2, 15, 0x7b> Wide;

// Whole numbers in two's complement.
EK_INLINE uint32_t whole_code(float x, float largest) {
    const float a = x > largest ? largest : x < -largest ? -largest : x;
    // Adding 1.5 * 2^23 leaves the nearest whole number, ties to even, in the low bits.
    const uint32_t code = bits_of(a + 0x1.8p23f) - bits_of(0x1.8p23f);
    return code & 0xffu;
}
EK_INLINE float whole_value(uint32_t code) { return (float)(int8_t)(uint8_t)code; }

// The least power of two that is not below amax / largest; 1 for a tile of zeros, NaN where one is no number.
static float power_of_two(float amax, float largest) {
    if (amax == 0.0f) return 1.0f;
    if (!(amax <= 3.4028235e38f)) return amax - amax;
    int exponent_x, exponent_l;
    const float x = __builtin_frexpf(amax, &exponent_x), l = __builtin_frexpf(largest, &exponent_l);
    int exponent = exponent_x - exponent_l + (x > l ? 1 : 0);
    if (exponent < -100) exponent = -100;
    return __builtin_ldexpf(1.0f, exponent);
}

struct Task {
    int type, format, kind;
    float largest;
    long columns, tile_rows, tile_columns;
    const void* x;
    void* numbers;
    uint8_t* codes;
    float* scales;
    long* counts;
};

template <class F>
EK_INLINE void encode(long n, const float* x, const float* scale, uint8_t* codes, const F& code_of) {
    for (long j = 0; j < n; j++) codes[j] = (uint8_t)code_of(x[j] / scale[j]);
}

template <class F>
EK_INLINE void decode(long n, const uint8_t* codes, const float* scale, float* values, const F& value_of) {
    for (long j = 0; j < n; j++) values[j] = value_of(codes[j]) * scale[j];
}

static void encode_row(const Task& t, long n, const float* x, const float* scale, uint8_t* codes) {
    if (t.format == E4M3) encode(n, x, scale, codes, [](float v) { return Small::code(v); });
    else if (t.format == E5M2) encode(n, x, scale, codes, [](float v) { return Wide::code(v); });
    else {
        const float largest = t.largest;
        encode(n, x, scale, codes, [=](float v) { return whole_code(v, largest); });
    }
}

static void decode_row(const Task& t, long n, const uint8_t* codes, const float* scale, float* values) {
    if (t.format == E4M3) decode(n, codes, scale, values, [](uint32_t c) { return Small::value(c); });
    else if (t.format == E5M2) decode(n, codes, scale, values, [](uint32_t c) { return Wide::value(c); });
    else decode(n, codes, scale, values, [](uint32_t c) { return whole_value(c); });
}

template <class T>
static void widen_row(long n, const T* x, float* out) {
    for (long j = 0; j < n; j += VW) vstore_n(out + j, vload_n(x + j, n - j), n - j);
}
template <class T>
static void narrow_row(long n, const float* x, T* out) {
    for (long j = 0; j < n; j += VW) vstore_n(out + j, vload_n(x + j, n - j), n - j);
}

static void fill_row(long n, float value, float* out) {
    for (long j = 0; j < n; j++) out[j] = value;
}

// Rows of one tile, or some of them where scales are given, and columns [c, c + width), which begin a tile or
// have given scales.
template <class T>
static void round_tile(const Task& t, long row, long rows, long tile, long c, long width, int thread) {
    // Sizes are compared as whole numbers, among which NaN is the largest.
    uint32_t* amax = ek_scratch<uint32_t>(thread, 0, (size_t)width);
    float *wide = ek_scratch<float>(thread, 2, 2 * (size_t)width), *scale = wide + width;
    uint8_t* codes = ek_scratch<uint8_t>(thread, 1, (size_t)width);
    const T* x = (const T*)t.x + row * t.columns + c;
    const long tiles = (t.columns + t.tile_columns - 1) / t.tile_columns;
    float* scales = t.scales + tile * tiles + c / t.tile_columns;
    if (t.kind != GIVEN) {
        for (long j = 0; j < width; j++) amax[j] = 0;
        for (long r = 0; r < rows; r++) {
            widen_row(width, x + r * t.columns, wide);
            for (long j = 0; j < width; j++) {
                const uint32_t size = bits_of(wide[j]) & 0x7fffffffu;
                amax[j] = size > amax[j] ? size : amax[j];
            }
        }
    }
    for (long j = 0, end; j < width; j = end, scales++) {
        end = smaller(width, ((c + j) / t.tile_columns + 1) * t.tile_columns - c);
        if (t.kind != GIVEN) {
            uint32_t most = 0;
            for (long i = j; i < end; i++) most = amax[i] > most ? amax[i] : most;
            const float size = float_of(most);
            *scales = t.kind == POWER_OF_TWO ? power_of_two(size, t.largest) : size / t.largest;
        }
        fill_row(end - j, *scales == 0.0f ? 1.0f : *scales, scale + j);
    }
    if (!t.numbers && !t.codes) return;
    long lost = 0, cut = 0;
    for (long r = 0; r < rows; r++) {
        const long at = (row + r) * t.columns + c;
        widen_row(width, x + r * t.columns, wide);
        uint8_t* to = t.codes ? t.codes + at : codes;
        encode_row(t, width, wide, scale, to);
        if (t.counts) {
            const uint32_t plain = t.format == WHOLE ? 0xffu : 0x7fu;
            for (long j = 0; j < width; j++) {
                lost += (wide[j] != 0.0f) & ((to[j] & plain) == 0);
                const float size = float_of(bits_of(wide[j]) & 0x7fffffffu);
                cut += (t.kind == GIVEN) & (size / scale[j] > t.largest);
            }
        }
        if (t.numbers) {
            decode_row(t, width, to, scale, wide);
            narrow_row(width, wide, (T*)t.numbers + at);
        }
    }
    if (t.counts) {
        __atomic_fetch_add(t.counts, lost, __ATOMIC_RELAXED);
        __atomic_fetch_add(t.counts + 1, cut, __ATOMIC_RELAXED);
    }
}

// Groups of rows in tiles, and tiles in pieces that are worked on together: a whole tile, or less of it.
struct Rows {
    long groups, tile_rows, piece_rows;
    const long* bounds;

    long count(long group, long rows) const { return (bounds[group + 1] - bounds[group] + rows - 1) / rows; }
    long pieces() const {
        long sum = 0;
        for (long g = 0; g < groups; g++) sum += count(g, piece_rows);
        return sum;
    }
    // First row of a piece, the row past its last, and its tile.
    void find(long piece, long* first, long* last, long* tile) const {
        long g = 0;
        *tile = 0;
        for (; piece >= count(g, piece_rows); g++) {
            piece -= count(g, piece_rows);
            *tile += count(g, tile_rows);
        }
        *first = bounds[g] + piece * piece_rows;
        *last = smaller(bounds[g + 1], *first + piece_rows);
        *tile += piece * piece_rows / tile_rows;
    }
};

static long chunk_of(long columns, long tile_columns, bool given) {
    if (tile_columns >= CHUNK) return given ? smaller(columns, CHUNK) : tile_columns;
    return smaller(columns, CHUNK / tile_columns * tile_columns);
}

static long piece_of(long tile_rows, bool given) {
    return given && tile_rows > ROWS && tile_rows % ROWS == 0 ? (long)ROWS : tile_rows;
}

}  // namespace
}  // namespace EK_NS

using namespace EK_NS;

// Rounds x [bounds[groups]][columns]. Types: 0 fp32, 1 bf16, of x and numbers. `numbers`, `codes` and `counts` may
// be null. scales [tiles of rows][tiles of columns], read with kind 2, else written. counts: += numbers that became
// 0, += numbers beyond the largest.
EK_EXPORT(ek_round_tiles)(int type, int format, float largest, int kind, long groups, const long* bounds,
                          long columns, long tile_rows, long tile_columns, const void* x, void* numbers,
                          uint8_t* codes, float* scales, long* counts) {
    const Task t = {type, format, kind, largest, columns, tile_rows, tile_columns, x, numbers, codes, scales, counts};
    const Rows rows = {groups, tile_rows, piece_of(tile_rows, kind == GIVEN), bounds};
    const long pieces = rows.pieces(), chunk = chunk_of(columns, tile_columns, kind == GIVEN);
    if (pieces <= 0 || columns <= 0) return;
    const long chunks = (columns + chunk - 1) / chunk;
    const long together = rows.piece_rows >= ROWS ? 1 : ROWS / rows.piece_rows;
    ek_parallel((pieces + together - 1) / together * chunks, [&](long task, int thread) {
        const long c = task % chunks * chunk, start = task / chunks * together;
        for (long piece = start; piece < smaller(pieces, start + together); piece++) {
            long first, last, tile;
            rows.find(piece, &first, &last, &tile);
            const long width = smaller(chunk, columns - c);
            if (type == EK_BF16) round_tile<bf16>(t, first, last - first, tile, c, width, thread);
            else round_tile<float>(t, first, last - first, tile, c, width, thread);
        }
    });
}

// The numbers of codes [bounds[groups]][columns].
EK_EXPORT(ek_tile_numbers)(int type, int format, long groups, const long* bounds, long columns, long tile_rows,
                           long tile_columns, const uint8_t* codes, const float* scales, void* numbers) {
    Task t = {};
    t.format = format;
    const Rows rows = {groups, tile_rows, piece_of(tile_rows, true), bounds};
    const long pieces = rows.pieces(), wide_tiles = (columns + tile_columns - 1) / tile_columns;
    if (pieces <= 0 || columns <= 0) return;
    const long together = rows.piece_rows >= ROWS ? 1 : ROWS / rows.piece_rows;
    ek_parallel((pieces + together - 1) / together, [&](long task, int thread) {
        float *scale = ek_scratch<float>(thread, 0, 2 * (size_t)columns), *wide = scale + columns;
        for (long piece = task * together; piece < smaller(pieces, (task + 1) * together); piece++) {
            long first, last, tile;
            rows.find(piece, &first, &last, &tile);
            for (long j = 0; j < columns; j += tile_columns) {
                const float found = scales[tile * wide_tiles + j / tile_columns];
                fill_row(smaller(tile_columns, columns - j), found == 0.0f ? 1.0f : found, scale + j);
            }
            for (long r = first; r < last; r++) {
                decode_row(t, columns, codes + r * columns, scale, wide);
                if (type == EK_BF16) narrow_row(columns, wide, (bf16*)numbers + r * columns);
                else narrow_row(columns, wide, (float*)numbers + r * columns);
            }
        }
    });
}
