// What decoding of a token is made of: the decoder, the memory that threads share, how a product is cut into
// tasks, and what a vector is made into before it is multiplied.
#pragma once

#include "decode_codes.h"
#include "decode_numbers.h"

namespace EK_NS {

// How the codes of a matrix are to be read: see `Coded` for kWholeNumbers, else `Numbers`. Before, its inputs are
// rotated in blocks, and rounded: to whole numbers up to 127 times a scale, or to E4M3 numbers times a scale, which
// without one every `tile` of them have their own.
struct DecodeCodes {
    const void *scales, *given;
    long group, bits, scale_type, kind;
    long rotation, rounding, tile;
    double input_scale;
};
enum { kNotRounded = 0, kInt8, kE4m3 };

// One layer: matrices [in, out], biases may be null; keys and values [rows][key heads][capacity][dim].
struct DecodeLayer {
    const void *attention_norm, *qkv, *qkv_bias, *out, *out_bias;
    const void *mlp_norm, *gate_up, *gate_up_bias, *down, *down_bias;
    void *keys, *values;
    const float *key_scales, *value_scales;  // [key heads][dim] keys and values are rounded as inputs are; may be null
    DecodeCodes qkv_codes, out_codes, gate_up_codes, down_codes;
};

struct Decode {
    const DecodeLayer* layers;
    const void *embedding, *final_norm, *head, *head_bias;
    DecodeCodes head_codes;      // the head in panels, [panels][hidden][panel], if matrices are codes
    const int64_t* ids;          // [rows] tokens
    const int32_t* slots;        // [rows] rows of the cache
    const int32_t* attend_from;  // [rows] first column that a row sees
    const float* turns;          // [columns][dim / 2][2] cosine and sine by position
    float* logits;               // [rows][vocab]
    void* workspace;
    long num_layers, rows, hidden, heads, key_heads, dim, inner, vocab;
    long column, capacity;  // where the new keys go; columns of the cache
    long panel;             // columns of a panel of the head; 0 where matrices are numbers
    long unit;              // parts of inputs begin at multiples of it
    int type, cache_type, head_transposed;
    float epsilon;
};

namespace {

enum { kMostChunks = 16, kLeastChunk = 128, kParts = 4 };

EK_INLINE long chunk_of(long length) {
    return larger(kLeastChunk, round_up((length + kMostChunks - 1) / kMostChunks, 16));
}

// What threads share; every array begins on a cache line.
struct Shared {
    long* taken;     // number of the next task
    long* done;      // tasks that are done
    long* open;      // tasks up to the last phase that ended
    long* arrived;   // how often a thread found no more task in its phase
    float* x;        // [rows][hidden] residual stream
    void* normed;    // [rows][padded hidden] the same normalised, as an operand
    float *wide, *narrow;  // sums of the parts of a product, alternately
    float* attended;       // [rows][heads][kMostChunks][dim + 2]: sum, largest, weighted values of a chunk
    long bytes;
    Shared(const Decode& d, char* base) {
        base = (char*)(((uintptr_t)base + 63) / 64 * 64);
        bytes = 0;
        auto take = [&](long count, long size) {
            char* p = base + bytes;
            bytes += round_up(count * size, 128);
            return p;
        };
        const long width = larger((d.heads + 2 * d.key_heads) * d.dim, 2 * d.inner);
        taken = (long*)take(16, 8);
        done = (long*)take(16, 8);
        open = (long*)take(16, 8);
        arrived = (long*)take(16, 8);
        x = (float*)take(d.rows * d.hidden, 4);
        normed = take(d.rows * larger(padded(d.hidden), coded_stride(d.hidden)), 4);
        wide = (float*)take(kParts * d.rows * padded(width), 4);
        narrow = (float*)take(kParts * d.rows * padded(d.hidden), 4);
        attended = (float*)take(d.rows * d.heads * kMostChunks * (d.dim + 2), 4);
    }
};

// A product x W cut into tasks: parts of its inputs, and pieces of the columns of each, of whole units.
template <class T, bool CODED>
struct Cut {
    long inputs, columns, part, parts, blocks, units, pieces;
    enum { block = Operand<T>::columns, unit = CODED ? (int)kCodedColumns : (int)block };
    Cut(long num_inputs, long num_columns, long most_parts, long wanted, long part_unit)
        : inputs(num_inputs), columns(num_columns) {
        part = round_up((inputs + most_parts - 1) / most_parts, part_unit);
        parts = (inputs + part - 1) / part;
        blocks = (columns + block - 1) / block;
        units = (columns + unit - 1) / unit;
        pieces = smaller(units, (wanted + parts - 1) / parts);
    }
    long count() const { return parts * pieces; }
    long input(long task) const { return smaller(inputs, task / pieces * part); }
    long input_end(long task) const { return smaller(inputs, (task / pieces + 1) * part); }
    long column(long task) const { return units * (task % pieces) / pieces * unit; }
    long column_end(long task) const { return smaller(columns, units * (task % pieces + 1) / pieces * unit); }
    Region region(const void* weight, long task) const {
        const long size = sizeof(T);
        const char* start = (const char*)weight + (input(task) * columns + column(task)) * size;
        return {start, (column_end(task) - column(task)) * size, columns * size, input_end(task) - input(task)};
    }
    Region region(const void* weight, const DecodeCodes& codes, long task) const {
        if (!CODED) return region(weight, task);
        const long from = input(task), to = input_end(task), whole = codes.kind == kWholeNumbers;
        const long first = whole ? byte_row(from, codes.bits) : stored_row(codes.kind, from);
        const long last = whole ? byte_rows(to, codes.bits) : first + stored_rows(codes.kind, to - from);
        const long width = stored_width(codes.kind);
        const char* start = (const char*)weight + (first * columns + column(task)) * width;
        return {start, (column_end(task) - column(task)) * width, columns * width, EK_LEVEL >= 3 ? last - first : 0};
    }
};

// The kind of operand that a vector becomes: X, made of what `put<P>` writes.
template <class T, bool CODED>
struct Input {
    typedef T put;
    typedef typename Operand<T>::type type;
    static long stride(long n) { return padded(n); }
};
template <class T>
struct Input<T, true> {
    typedef float put;
    typedef CodedOperand type;
    static long stride(long n) { return coded_stride(n); }
};

}  // namespace
}  // namespace EK_NS
