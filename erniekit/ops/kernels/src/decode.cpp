// One token of every row through all layers of a dense decoder in one call.
//
// Decoding reads every weight once for each token and is as fast as this reading. So nothing else may
// wait: the work of a token is one list of tasks, phase after phase,
//
//   embed | norm, qkv | turn, store, attend | out + residual | norm, gate and up | down + residual | ... | head
//
// numbered through. A thread takes the next number, asks for the first weights of that task, waits until
// the phases before it are done, and computes. There is no barrier of threads: one that sleeps without a
// task holds up nobody. What is small is computed by every thread for itself (norms, joining what was
// attended), what is read by others lies in the workspace. Sums do not depend on how columns are divided.
//
// The residual stream, and all that lies between products, stays fp32; see decode_products.h for what
// enters a product. A row attends to its columns in chunks whose number follows from the row alone.
#include "decode_products.h"

#include <sched.h>

#ifndef EK_PIECES
#define EK_PIECES 2
#endif

namespace EK_NS {

// One layer: matrices [in, out], biases may be null; keys and values [rows][key heads][capacity][dim].
struct DecodeLayer {
    const void *attention_norm, *qkv, *qkv_bias, *out, *out_bias;
    const void *mlp_norm, *gate_up, *gate_up_bias, *down, *down_bias;
    void *keys, *values;
};

struct Decode {
    const DecodeLayer* layers;
    const void *embedding, *final_norm, *head, *head_bias;
    const int64_t* ids;          // [rows] tokens
    const int32_t* slots;        // [rows] rows of the cache
    const int32_t* attend_from;  // [rows] first column that a row sees
    const float* turns;          // [columns][dim / 2][2] cosine and sine by position
    float* logits;               // [rows][vocab]
    void* workspace;
    long num_layers, rows, hidden, heads, key_heads, dim, inner, vocab;
    long column, capacity;  // where the new keys go; columns of the cache
    int type, cache_type, head_transposed;
    float epsilon;
};

namespace {

enum { kMostChunks = 16, kLeastChunk = 64, kPhases = 5, kPatience = 4096 };

EK_INLINE long chunk_of(long length) {
    return larger(kLeastChunk, round_up((length + kMostChunks - 1) / kMostChunks, 16));
}

// What threads share; every array begins on a cache line.
struct Shared {
    long* taken;    // number of the next task
    long* done;     // tasks that are done
    float* x;       // [rows][hidden] residual stream
    float* qkv;     // [rows][width]
    float* parts;   // [rows][heads][kMostChunks][dim + 2]: sum, largest, weighted values of a chunk
    void* widened;  // [rows][padded inner] silu(gate) * up, as an operand
    long bytes;
    Shared(const Decode& d, char* base) {
        base = (char*)(((uintptr_t)base + 63) / 64 * 64);
        bytes = 0;
        auto take = [&](long count, long size) {
            char* p = base + bytes;
            bytes += round_up(count * size, 64);
            return p;
        };
        taken = (long*)take(16, 8);
        done = (long*)take(16, 8);
        x = (float*)take(d.rows * d.hidden, 4);
        qkv = (float*)take(d.rows * (d.heads + 2 * d.key_heads) * d.dim, 4);
        parts = (float*)take(d.rows * d.heads * kMostChunks * (d.dim + 2), 4);
        widened = take(d.rows * padded(d.inner), 4);
    }
};

// `columns` divided among tasks, in whole blocks: two large pieces a thread, then smaller ones.
struct Pieces {
    long columns, block, count;
    static Pieces of(long columns, long block, long wanted) {
        const long blocks = (columns + block - 1) / block;
        return {columns, block, smaller(blocks, wanted)};
    }
    long start(long i) const {
        const long blocks = (columns + block - 1) / block;
        return smaller(columns, blocks * i / count * block);
    }
};

template <class T, class C>
struct Token {
    typedef typename Operand<T>::type X;
    typedef typename Operand<C>::type Y;
    const Decode& d;
    const Shared shared;
    const long width, group;
    Pieces qkv, out, inner, down, head;
    long attended;                   // tasks of attention
    long before[kPhases + 2];        // tasks before each phase of a layer, and in a layer
    long total;

    Token(const Decode& decode, long threads)
        : d(decode),
          shared(decode, (char*)decode.workspace),
          width((decode.heads + 2 * decode.key_heads) * decode.dim),
          group(decode.heads / decode.key_heads) {
        const long block = Operand<T>::columns, wanted = threads == 1 ? 1 : EK_PIECES * threads;
        qkv = Pieces::of(width, block, wanted);
        out = Pieces::of(d.hidden, block, wanted);
        inner = Pieces::of(d.inner, block, wanted);
        down = Pieces::of(d.hidden, block, wanted);
        head = Pieces::of(d.vocab, d.head_transposed ? 16 : block, 8 * wanted);
        attended = 0;
        for (long r = 0; r < d.rows; r++) attended += chunks(r) * d.key_heads;
        const long sizes[kPhases] = {qkv.count, attended, out.count, inner.count, down.count};
        before[0] = 0;
        for (int p = 0; p < kPhases; p++) before[p + 1] = before[p] + sizes[p];
        total = 1 + d.num_layers * before[kPhases] + head.count;
    }

    long length(long r) const { return d.column + 1 - d.attend_from[r]; }
    long chunks(long r) const {
        const long n = length(r), chunk = chunk_of(n);
        return (n + chunk - 1) / chunk;
    }

    // ---- vectors of a phase, made by every thread for itself ------------------------------
    void normalise(const void* weight, X* to) const {
        const T* w = (const T*)weight;
        for (long r = 0; r < d.rows; r++) {
            const float* x = shared.x + r * d.hidden;
            X* row = to + r * padded(d.hidden);
            vf squares = vzero();
            for (long i = 0; i < d.hidden; i += VW) {
                const vf v = vload_n(x + i, d.hidden - i);
                squares = vfma(v, v, squares);
            }
            const vf scale = vset(1.0f / __builtin_sqrtf(vsum(squares) / (float)d.hidden + d.epsilon));
            for (long i = 0; i < d.hidden; i += VW) {
                const long n = d.hidden - i;
                put<T>(row + i, vmul(stored<T>(vmul(vload_n(x + i, n), scale)), vload_n(w + i, n)), n);
            }
            clear_rest(row, d.hidden);
        }
    }

    // Chunks of every head joined: sum_c e^(m_c - m) O_c / sum_c e^(m_c - m) l_c.
    void join(X* to) const {
        const long stride = d.dim + 2, size = d.heads * d.dim;
        for (long r = 0; r < d.rows; r++) {
            X* row = to + r * padded(size);
            const long count = chunks(r);
            for (long h = 0; h < d.heads; h++) {
                const float* parts = shared.parts + (r * d.heads + h) * kMostChunks * stride;
                float most = parts[1], factors[kMostChunks], sum = 0.0f;
                for (long c = 1; c < count; c++) most = most > parts[c * stride + 1] ? most : parts[c * stride + 1];
                for (long c = 0; c < count; c++) {
                    float part[VW];
                    vstore(part, vexp(vset(parts[c * stride + 1] - most)));
                    factors[c] = part[0];
                    sum += part[0] * parts[c * stride];
                }
                const vf scale = vset(1.0f / sum);
                for (long i = 0; i < d.dim; i += VW) {
                    const long n = d.dim - i;
                    vf o = vzero();
                    for (long c = 0; c < count; c++)
                        o = vfma(vset(factors[c]), vload_n(parts + c * stride + 2 + i, n), o);
                    put<T>(row + h * d.dim + i, vmul(o, scale), n);
                }
            }
            clear_rest(row, size);
        }
    }

    // ---- products ---------------------------------------------------------------------------
    // emit(row, column, sums, count) for every block of columns [start, stop) of a product.
    template <class F>
    void product(const void* weight, long stride, const X* x, long k, long start, long stop, int thread,
                 const F& emit) const {
        const long block = Operand<T>::columns;
        float* sums = ek_scratch<float>(thread, 1, round_up(stop - start, block) * d.rows);
        multiply_columns<T>((const T*)weight + start, stride, x, padded(k), d.rows, k, stop - start, sums);
        for (long c = start; c < stop; c += block)
            for (long r = 0; r < d.rows; r++, sums += block) {
                vf a, b;
                column_sums<T>(sums, &a, &b);
                emit(r, c, a, smaller(stop - c, VW));
                if (stop - c > VW) emit(r, c + VW, b, smaller(stop - c - VW, VW));
            }
    }

    static vf biased(vf x, const void* bias, long c, long n) {
        return bias ? vadd(x, vload_n((const T*)bias + c, n)) : x;
    }

    void add_product(const void* weight, const void* bias, const X* x, long k, const Pieces& pieces, long task,
                     int thread) const {
        product(weight, d.hidden, x, k, pieces.start(task), pieces.start(task + 1), thread,
                [&](long r, long c, vf y, long n) {
                    float* to = shared.x + r * d.hidden + c;
                    vstore_n(to, vadd(vload_n(to, n), biased(y, bias, c, n)), n);
                });
    }

    void widen(const DecodeLayer& layer, const X* x, long task, int thread) const {
        const long start = inner.start(task), stop = inner.start(task + 1), size = round_up(stop - start, VW);
        float* gates = ek_scratch<float>(thread, 2, size * d.rows);
        const long stride = 2 * d.inner;
        product(layer.gate_up, stride, x, d.hidden, start, stop, thread, [&](long r, long c, vf y, long n) {
            vstore(gates + r * size + c - start, biased(y, layer.gate_up_bias, c, n));
        });
        const T* up = (const T*)layer.gate_up + d.inner;
        product(up, stride, x, d.hidden, start, stop, thread, [&](long r, long c, vf y, long n) {
            const vf gate = vload(gates + r * size + c - start);
            y = biased(y, layer.gate_up_bias ? (const T*)layer.gate_up_bias + d.inner : nullptr, c, n);
            const vf silu = vdiv(gate, vadd(vset(1.0f), vexp(vsub(vzero(), gate))));
            put<T>((X*)shared.widened + r * padded(d.inner) + c, vmul(silu, y), n);
        });
        if (stop == d.inner)
            for (long r = 0; r < d.rows; r++) clear_rest((X*)shared.widened + r * padded(d.inner), d.inner);
    }

    void logits(const X* x, long task, int thread) const {
        const long start = head.start(task), stop = head.start(task + 1);
        const T *w = (const T*)d.head, *bias = (const T*)d.head_bias;
        if (!d.head_transposed) {
            product(w, d.vocab, x, d.hidden, start, stop, thread, [&](long r, long c, vf y, long n) {
                vstore_n(d.logits + r * d.vocab + c, biased(y, bias, c, n), n);
            });
            return;
        }
        multiply_rows<T>(w + start * d.hidden, d.hidden, stop - start, x, padded(d.hidden), d.rows, d.hidden,
                         d.logits + start, d.vocab);
        for (long r = 0; bias && r < d.rows; r++)
            for (long v = start; v < stop; v++) d.logits[r * d.vocab + v] += load1(bias + v);
    }

    // ---- attention --------------------------------------------------------------------------
    // Pairs (2i, 2i+1) of a head turned by their angles; rounded as the cache stores them.
    void turn(const float* from, const float* turns, float* to) const {
        for (long i = 0; i < d.dim; i += 2) {
            to[i] = from[i] * turns[i] - from[i + 1] * turns[i + 1];
            to[i + 1] = from[i + 1] * turns[i] + from[i] * turns[i + 1];
        }
    }

    void attend(const DecodeLayer& layer, long task, int thread) const {
        long r = 0;
        while (task >= chunks(r) * d.key_heads) task -= chunks(r++) * d.key_heads;
        const long key = task % d.key_heads, chunk = task / d.key_heads, size = chunk_of(length(r));
        const long first = d.attend_from[r] + chunk * size, stop = smaller(first + size, d.column + 1);
        const long count = stop - first, dim = d.dim, lanes = padded(dim), cells = padded(size);
        const long cached = ((long)d.slots[r] * d.key_heads + key) * d.capacity * dim;
        C *keys = (C*)layer.keys + cached, *values = (C*)layer.values + cached;
        const float* mine = shared.qkv + r * width;
        const float* turns = d.turns + length(r) * dim - dim;

        float* scratch = ek_scratch<float>(thread, 3, group * (2 * lanes + 2 * cells + 64) + lanes);
        float* turned = scratch;
        Y* q = (Y*)(turned + lanes);              // [group][lanes]
        float* scores = turned + lanes + group * lanes;  // [group][cells]
        Y* weights = (Y*)(scores + group * cells);       // [group][cells]
        float* sums = scores + 2 * group * cells;        // [blocks][group][block]

        if (stop == d.column + 1) {
            turn(mine + (d.heads + key) * dim, turns, turned);
            const float* v = mine + (d.heads + d.key_heads + key) * dim;
            for (long i = 0; i < dim; i++) {
                store1(keys + d.column * dim + i, turned[i]);
                store1(values + d.column * dim + i, v[i]);
            }
        }
        for (long g = 0; g < group; g++) {
            turn(mine + (key * group + g) * dim, turns, turned);
            for (long i = 0; i < dim; i += VW) put<C>(q + g * lanes + i, vload(turned + i), smaller(VW, dim - i));
            clear_rest(q + g * lanes, dim);
        }
        multiply_rows<C>(keys + first * dim, dim, count, q, lanes, group, dim, scores, cells);
        const vf scale = vset(1.0f / __builtin_sqrtf((float)dim));
        for (long g = 0; g < group; g++) {
            float* row = scores + g * cells;
            for (long i = count; i < round_up(count, VW); i++) row[i] = -__builtin_inff();
            vf largest = vload(row), total = vzero();
            for (long i = VW; i < count; i += VW) largest = vmax(largest, vload(row + i));
            const vf most = vset(vlargest(largest));
            for (long i = 0; i < count; i += VW) {
                const vf p = stored<C>(vexp(vmul(vsub(vload(row + i), most), scale)));
                total = vadd(total, i + VW <= count ? p : only(p, count - i));
                put<C>(weights + g * cells + i, p, count - i);
            }
            if (count % 2) weights[g * cells + count] = 0;
            float* part = shared.parts + ((r * d.heads + key * group + g) * kMostChunks + chunk) * (dim + 2);
            float one[VW];
            vstore(one, vmul(most, scale));
            part[0] = vsum(total);
            part[1] = one[0];
        }
        multiply_columns<C>(values + first * dim, dim, weights, cells, group, count, dim, sums);
        const long block = Operand<C>::columns;
        for (long c = 0; c < dim; c += block)
            for (long g = 0; g < group; g++, sums += block) {
                float* part = shared.parts + ((r * d.heads + key * group + g) * kMostChunks + chunk) * (dim + 2) + 2;
                vf a, b;
                column_sums<C>(sums, &a, &b);
                vstore_n(part + c, a, smaller(VW, dim - c));
                if (dim - c > VW) vstore_n(part + c + VW, b, smaller(VW, dim - c - VW));
            }
    }

    static vf only(vf x, long n) {
        float part[VW];
        vstore(part, x);
        return vload_n(part, n);
    }

    void embed() const {
        for (long r = 0; r < d.rows; r++) {
            const T* from = (const T*)d.embedding + d.ids[r] * d.hidden;
            float* to = shared.x + r * d.hidden;
            for (long i = 0; i < d.hidden; i += VW) vstore_n(to + i, vload_n(from + i, d.hidden - i), d.hidden - i);
        }
    }

    // ---- tasks in their order -----------------------------------------------------------------
    struct Place {
        long layer;  // num_layers: the head
        int phase;   // of the layer
        long task;   // in the phase
        long first;  // tasks before the phase
    };
    Place find(long number) const {
        const long per_layer = before[kPhases], l = (number - 1) / per_layer;
        const long base = 1 + l * per_layer;
        if (l >= d.num_layers) {
            const long first = 1 + d.num_layers * per_layer;
            return {d.num_layers, 0, number - first, first};
        }
        int p = 0;
        while (number - base >= before[p + 1]) p++;
        return {l, p, number - base - before[p], base + before[p]};
    }

    void fetch(const Place& at) const {
        const T* w;
        if (at.layer == d.num_layers) {
            w = (const T*)d.head;
            if (!d.head_transposed) fetch_columns(w + head.start(at.task), d.vocab, d.hidden, width_of(head, at.task));
            else fetch_columns(w + head.start(at.task) * d.hidden, d.hidden, kRows, d.hidden);
            return;
        }
        const DecodeLayer& layer = d.layers[at.layer];
        const long heads = d.heads * d.dim;
        if (at.phase == 0) fetch_columns((const T*)layer.qkv + qkv.start(at.task), width, d.hidden, width_of(qkv, at.task));
        if (at.phase == 2) fetch_columns((const T*)layer.out + out.start(at.task), d.hidden, heads, width_of(out, at.task));
        if (at.phase == 3)
            fetch_columns((const T*)layer.gate_up + inner.start(at.task), 2 * d.inner, d.hidden, width_of(inner, at.task));
        if (at.phase == 4) fetch_columns((const T*)layer.down + down.start(at.task), d.hidden, d.inner, width_of(down, at.task));
    }
    static long width_of(const Pieces& pieces, long task) { return pieces.start(task + 1) - pieces.start(task); }

    void run(const Place& at, bool fresh, int thread) const {
        const long widest = larger(d.hidden, d.heads * d.dim);
        X* x = ek_scratch<X>(thread, 0, d.rows * padded(widest));
        if (at.layer == d.num_layers) {
            if (fresh) normalise(d.final_norm, x);
            logits(x, at.task, thread);
            return;
        }
        const DecodeLayer& layer = d.layers[at.layer];
        switch (at.phase) {
        case 0:
            if (fresh) normalise(layer.attention_norm, x);
            product(layer.qkv, width, x, d.hidden, qkv.start(at.task), qkv.start(at.task + 1), thread,
                    [&](long r, long c, vf y, long n) {
                        vstore_n(shared.qkv + r * width + c, biased(y, layer.qkv_bias, c, n), n);
                    });
            break;
        case 1:
            attend(layer, at.task, thread);
            break;
        case 2:
            if (fresh) join(x);
            add_product(layer.out, layer.out_bias, x, d.heads * d.dim, out, at.task, thread);
            break;
        case 3:
            if (fresh) normalise(layer.mlp_norm, x);
            widen(layer, x, at.task, thread);
            break;
        default:
            add_product(layer.down, layer.down_bias, (const X*)shared.widened, d.inner, down, at.task, thread);
        }
    }

    // Takes tasks until none is left.
    void work(int thread) const {
        long prepared = -1;
        for (;;) {
            const long number = __atomic_fetch_add(shared.taken, 1, __ATOMIC_RELAXED);
            if (number >= total) return;
            if (number == 0) {
                embed();
            } else {
                const Place at = find(number);
                fetch(at);
                wait_for(at.first);
                run(at, prepared != at.first, thread);
                prepared = at.first;
            }
            __atomic_fetch_add(shared.done, 1, __ATOMIC_RELEASE);
        }
    }

    void wait_for(long tasks) const {
        for (long spins = 1; __atomic_load_n(shared.done, __ATOMIC_ACQUIRE) < tasks; spins++) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
            if (spins % kPatience == 0) sched_yield();  // who holds the task may want this core
        }
    }
};

template <class T, class C>
static void decode(const Decode& d) {
    const long threads = ek_get_threads();
    const Token<T, C> token(d, threads);
    *token.shared.taken = *token.shared.done = 0;
    ek_parallel(threads, [&](long, int thread) { token.work(thread); });
}

}  // namespace
}  // namespace EK_NS

using namespace EK_NS;

// Bytes of the workspace of a call.
extern "C" __attribute__((visibility("default"))) long EK_CONCAT(ek_decode_workspace__, EK_NS)(const Decode* d) {
    return Shared(*d, nullptr).bytes + 64;
}

EK_EXPORT(ek_decode)(const Decode* d) {
    if (d->rows <= 0) return;
    if (d->type == EK_BF16) {
        if (d->cache_type == EK_BF16) decode<bf16, bf16>(*d);
        else decode<bf16, float>(*d);
    } else {
        if (d->cache_type == EK_BF16) decode<float, bf16>(*d);
        else decode<float, float>(*d);
    }
}
