// One token of every row through all layers of a dense decoder in one call.
//
// Decoding reads every weight once for each token and is as fast as this reading. So nothing else may
// wait: the work of a token is one list of tasks, phase after phase,
//
//   qkv | turn, store, attend | out | gate and up | down | next layer ... | head
//
// numbered through. A thread claims its next task of a phase before it begins with the present one, and asks
// for the weights of both; at the end of a phase it guesses its task in the next one and asks for that. There
// is no barrier of threads, and who waits holds no task, so one that sleeps holds up nobody. Whoever does the
// last task of a phase ends the phase: adds what was computed to the residual stream and normalises it. Other
// small work between products belongs to the task that needs its result.
//
// A product is cut into parts of its inputs, whole rows of the matrix, which are read in the order of
// memory; the sums of the parts are added in order by whoever reads them. The number of parts is fixed, so
// results do not depend on the number of threads. Many threads divide the columns of a part as well, which
// changes no sum. The residual stream, and all that lies between products, stays fp32; see
// decode_products.h for what enters a product. A row attends to its columns in chunks whose number follows
// from the row alone.
//
// Matrices may be codes of few bits (`decode_codes.h`, `decode_numbers.h`): all of them, the head with them.
#include "decode_plan.h"

#include <sched.h>

namespace EK_NS {
namespace {

enum { kPhases = 5, kPatience = 256, kBetween = 64 };

template <class T, class C, bool CODED>
struct Token {
    typedef Input<T, CODED> In;
    typedef typename In::type X;
    typedef typename In::put P;
    typedef typename Operand<P>::type F;
    typedef Cut<T, CODED> Parts;
    typedef typename Operand<C>::type Y;
    enum { planes = CODED && EK_LEVEL >= 3 };
    const Decode& d;
    const Shared shared;
    const long width, group, threads, wanted;
    const Parts qkv, out, wide, down, head;
    const long head_tasks, panels;
    long before[kPhases + 1];  // tasks of a layer before each phase, and all
    long total;

    Token(const Decode& decode, long num_threads)
        : d(decode),
          shared(decode, (char*)decode.workspace),
          width((d.heads + 2 * d.key_heads) * d.dim),
          group(d.heads / d.key_heads),
          threads(num_threads),
          wanted(2 * threads),
          qkv(d.hidden, width, kParts, wanted, d.unit),
          out(d.heads * d.dim, d.hidden, kParts, wanted, d.unit),
          wide(d.hidden, 2 * d.inner, kParts, wanted, d.unit),
          down(d.inner, d.hidden, kParts, wanted, d.unit),
          head(d.hidden, d.vocab, 1, 2 * wanted, d.unit),
          head_tasks(smaller((d.vocab + 15) / 16, 8 * threads)),
          panels(CODED ? (d.vocab + d.panel - 1) / d.panel : 0) {
        long attend = 0;
        for (long r = 0; r < d.rows; r++) attend += chunks(r) * d.key_heads;
        const long sizes[kPhases] = {qkv.count(), attend, out.count(), wide.count(), down.count()};
        before[0] = 0;
        for (int p = 0; p < kPhases; p++) before[p + 1] = before[p] + sizes[p];
        total = d.num_layers * before[kPhases] + (CODED ? panel_tasks() : d.head_transposed ? head_tasks : head.count());
    }

    long length(long r) const { return d.column + 1 - d.attend_from[r]; }
    long chunks(long r) const {
        const long n = length(r), chunk = chunk_of(n);
        return (n + chunk - 1) / chunk;
    }

    // ---- products -------------------------------------------------------------------------------
    // Sums of a part lie in blocks of columns, [blocks][rows][block].
    long part_size(const Parts& cut) const { return cut.blocks * Parts::block * d.rows; }

    // `x` holds vectors of `inputs` numbers, from input `from` of the matrix on.
    void product(const Parts& cut, const void* weight, const DecodeCodes& codes, const X* x, long from, long inputs,
                 long task, int thread, float* sums, Ahead* ahead) const {
        const long k = cut.input(task), c = cut.column(task), steps = cut.input_end(task) - k;
        const long columns = cut.column_end(task) - c, stride = In::stride(inputs);
        float* to = sums + task / cut.pieces * part_size(cut) + c * d.rows;
        if constexpr (CODED) {
            float* room = ek_scratch<float>(thread, 4, 2 * d.rows * round_up(columns, kCodedColumns));
            if (codes.kind != kWholeNumbers) {
                const Numbers w = {codes.kind, (const uint8_t*)weight, codes.scales, (const float*)codes.given,
                                   cut.columns, codes.group, codes.scale_type};
                multiply_numbers(w, k, steps, c, columns, (const float*)x + k - from,
                                 stride * (long)sizeof(X) / (long)sizeof(float), d.rows, to, room, ahead);
                return;
            }
            const Coded w = {(const uint8_t*)weight, codes.scales, cut.columns, codes.group, codes.bits,
                             codes.scale_type};
            multiply_coded(w, k, steps, c, columns, x, stride, d.rows, inputs, k - from, to, room, ahead);
        } else {
            multiply_columns<T>((const T*)weight + k * cut.columns + c, cut.columns, x + k - from, stride, d.rows,
                                steps, columns, to, ahead);
        }
    }

    // Where numbers of an operand are written, and the operand of them.
    F* begin(X* to, long n) const {
        if constexpr (planes) return ek_scratch<float>(ek_pool_thread(), 6, round_up(n, 64));
        else return to;
    }
    void finish(F* from, X* to, long n, const DecodeCodes& codes) const {
        clear_rest(from, n);
        if constexpr (CODED) {
            for (long i = padded(n); i < round_up(n, 64); i++) from[i] = 0.0f;
            const bool whole = codes.kind == kWholeNumbers;
            const float scale = (float)codes.input_scale, given = codes.rounding == kInt8 ? scale : 0.0f;
            if (codes.rotation) rotate(from, n, codes.rotation);
            if (codes.rounding == kE4m3) round_float8(from, n, scale, codes.tile);
            if constexpr (planes) {
                if (whole) return make_operand(from, n, codes.bits, given, to);
            }
            for (long i = 0; given > 0.0f && i < n; i += VW) vstore(from + i, rounded(vload(from + i), vset(given)));
            if constexpr (planes) memcpy(to, from, sizeof(float) * round_up(n, 64));
        }
    }

    // Sums of a block in the order of its columns.
    static void ordered(const float* sums, vf* low, vf* high) {
        if (!CODED) return column_sums<T>(sums, low, high);
        *low = vload(sums);
        *high = vload(sums + VW);
    }

    // Block b of a row: the parts added, in the order of the columns, with the bias.
    void read(const Parts& cut, const float* sums, const void* bias, long r, long b, vf* low, vf* high) const {
        const long block = Parts::block, size = part_size(cut);
        const float* from = sums + (b * d.rows + r) * block;
        float total[2 * VW];
        vf u = vload(from), v = vload(from + VW);
        for (long p = 1; p < cut.parts; p++) {
            u = vadd(u, vload(from + p * size));
            v = vadd(v, vload(from + p * size + VW));
        }
        vstore(total, u);
        vstore(total + VW, v);
        ordered(total, low, high);
        if (!bias) return;
        const T* at = (const T*)bias + b * block;
        const long n = cut.columns - b * block;
        *low = vadd(*low, vload_n(at, smaller(n, VW)));
        if (n > VW) *high = vadd(*high, vload_n(at + VW, smaller(n - VW, VW)));
    }

    // Columns [c, c + n) of a row, to `to` (of n + 2 blocks); returns where the first of them lies.
    const float* read_range(const Parts& cut, const float* sums, const void* bias, long r, long c, long n,
                            float* to) const {
        const long block = Parts::block, first = c / block;
        for (long b = first; b * block < c + n; b++) {
            vf u, v;
            read(cut, sums, bias, r, b, &u, &v);
            vstore(to + (b - first) * block, u);
            vstore(to + (b - first) * block + VW, v);
        }
        return to + c - first * block;
    }

    // ---- between products ---------------------------------------------------------------------
    void embed() const {
        for (long r = 0; r < d.rows; r++) {
            const T* from = (const T*)d.embedding + d.ids[r] * d.hidden;
            float* to = shared.x + r * d.hidden;
            for (long i = 0; i < d.hidden; i += VW) vstore_n(to + i, vload_n(from + i, d.hidden - i), d.hidden - i);
        }
    }

    void add(const Parts& cut, const void* bias) const {
        const long block = Parts::block;
        for (long r = 0; r < d.rows; r++)
            for (long b = 0; b < cut.blocks; b++) {
                float* x = shared.x + r * d.hidden + b * block;
                const long n = d.hidden - b * block;
                vf u, v;
                read(cut, shared.narrow, bias, r, b, &u, &v);
                vstore_n(x, vadd(vload_n(x, n), u), n);
                if (n > VW) vstore_n(x + VW, vadd(vload_n(x + VW, n - VW), v), n - VW);
            }
    }

    void normalise(const void* weight, const DecodeCodes& codes) const {
        const T* w = (const T*)weight;
        for (long r = 0; r < d.rows; r++) {
            const float* x = shared.x + r * d.hidden;
            X* operand = (X*)shared.normed + r * In::stride(d.hidden);
            F* to = begin(operand, d.hidden);
            vf squares = vzero();
            for (long i = 0; i < d.hidden; i += VW) {
                const vf v = vload_n(x + i, d.hidden - i);
                squares = vfma(v, v, squares);
            }
            const vf scale = vset(1.0f / __builtin_sqrtf(vsum(squares) / (float)d.hidden + d.epsilon));
            for (long i = 0; i < d.hidden; i += VW) {
                const long n = d.hidden - i;
                put<P>(to + i, vmul(stored<P>(vmul(vload_n(x + i, n), scale)), vload_n(w + i, n)), n);
            }
            finish(to, operand, d.hidden, codes);
        }
    }

    // Inputs [first, last) of the output projection: chunks of every head joined,
    // sum_c e^(m_c - m) O_c / sum_c e^(m_c - m) l_c.
    void join(long first, long last, X* operand, const DecodeCodes& codes) const {
        const long stride = d.dim + 2;
        for (long r = 0; r < d.rows; r++, operand += In::stride(last - first)) {
            F* to = begin(operand, last - first);
            const long count = chunks(r);
            for (long h = first / d.dim; h * d.dim < last; h++) {
                const float* chunk = shared.attended + (r * d.heads + h) * kMostChunks * stride;
                float most = chunk[1], factors[kMostChunks], sum = 0.0f;
                for (long c = 1; c < count; c++) most = most > chunk[c * stride + 1] ? most : chunk[c * stride + 1];
                for (long c = 0; c < count; c++) {
                    float factor[VW];
                    vstore(factor, vexp(vset(chunk[c * stride + 1] - most)));
                    factors[c] = factor[0];
                    sum += factor[0] * chunk[c * stride];
                }
                const vf scale = vset(1.0f / sum);
                const long start = larger(first - h * d.dim, 0), stop = smaller(last - h * d.dim, d.dim);
                for (long i = start; i < stop; i += VW) {
                    const long n = stop - i;
                    vf o = vzero();
                    for (long c = 0; c < count; c++)
                        o = vfma(vset(factors[c]), vload_n(chunk + c * stride + 2 + i, n), o);
                    put<P>(to + h * d.dim + i - first, vmul(o, scale), n);
                }
            }
            finish(to, operand, last - first, codes);
        }
    }

    // Inputs [first, last) of the down projection: silu(gate) * up. `gates` has room for a range and 2 blocks.
    void activate(const DecodeLayer& layer, long first, long last, float* gates, float* ups, X* operand) const {
        for (long r = 0; r < d.rows; r++, operand += In::stride(last - first)) {
            F* to = begin(operand, last - first);
            const float* gate = read_range(wide, shared.wide, layer.gate_up_bias, r, first, last - first, gates);
            const float* up = read_range(wide, shared.wide, layer.gate_up_bias, r, d.inner + first, last - first, ups);
            for (long i = 0; i < last - first; i += VW) {
                const vf g = vload(gate + i), silu = vdiv(g, vadd(vset(1.0f), vexp(vsub(vzero(), g))));
                put<P>(to + i, vmul(silu, vload(up + i)), last - first - i);
            }
            finish(to, operand, last - first, layer.down_codes);
        }
    }

    // ---- attention --------------------------------------------------------------------------
    // Pairs (2i, 2i+1) of a head turned by their angles.
    void turn(const float* from, const float* turns, float* to) const {
        for (long i = 0; i < d.dim; i += 2) {
            to[i] = from[i] * turns[i] - from[i + 1] * turns[i + 1];
            to[i + 1] = from[i + 1] * turns[i] + from[i] * turns[i + 1];
        }
    }

    // A key or value of this token to its column of the cache.
    void keep(const float* from, const float* scales, long key, C* cache) const {
        C* to = cache + d.column * d.dim;
        for (long i = 0; i < d.dim; i += VW) {
            const vf x = vload(from + i);
            vstore_n(to + i, scales ? rounded(x, vload_n(scales + key * d.dim + i, d.dim - i)) : x, d.dim - i);
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
        const float* turns = d.turns + (length(r) - 1) * dim;

        const long range = padded(group * dim) + 64;
        float* given = ek_scratch<float>(thread, 3, range + group * (2 * lanes + 2 * cells) + lanes);
        float* turned = given + range;
        Y* q = (Y*)(turned + lanes);                     // [group][lanes]
        float* scores = turned + lanes + group * lanes;  // [group][cells]
        Y* weights = (Y*)(scores + group * cells);       // [group][cells]
        float* sums = scores + 2 * group * cells;        // [blocks][group][block]

        if (stop == d.column + 1) {
            const float* k = read_range(qkv, shared.wide, layer.qkv_bias, r, (d.heads + key) * dim, dim, given);
            turn(k, turns, turned);
            keep(turned, layer.key_scales, key, keys);
            const long at = (d.heads + d.key_heads + key) * dim;
            const float* v = read_range(qkv, shared.wide, layer.qkv_bias, r, at, dim, given);
            keep(v, layer.value_scales, key, values);
        }
        const float* mine = read_range(qkv, shared.wide, layer.qkv_bias, r, key * group * dim, group * dim, given);
        for (long g = 0; g < group; g++) {
            turn(mine + g * dim, turns, turned);
            for (long i = 0; i < dim; i += VW) put<C>(q + g * lanes + i, vload(turned + i), dim - i);
            clear_rest(q + g * lanes, dim);
        }
        multiply_rows<C>(keys + first * dim, dim, count, q, lanes, group, dim, scores, cells);
        float* to = shared.attended + ((r * d.heads + key * group) * kMostChunks + chunk) * (dim + 2);
        weigh(scores, cells, count, weights, to);
        multiply_columns<C>(values + first * dim, dim, weights, cells, group, count, dim, sums, nullptr);
        const long block = Operand<C>::columns;
        for (long c = 0; c < dim; c += block)
            for (long g = 0; g < group; g++, sums += block) {
                float* part = to + g * kMostChunks * (dim + 2) + 2 + c;
                vf a, b;
                column_sums<C>(sums, &a, &b);
                vstore_n(part, a, dim - c);
                if (dim - c > VW) vstore_n(part + VW, b, dim - c - VW);
            }
    }

    // Scores of the heads of a group to weights e^(s - max); their sum and the largest score to `to`.
    void weigh(float* scores, long cells, long count, Y* weights, float* to) const {
        const vf scale = vset(1.0f / __builtin_sqrtf((float)d.dim));
        for (long g = 0; g < group; g++, to += kMostChunks * (d.dim + 2)) {
            float* row = scores + g * cells;
            for (long i = count; i < round_up(count, VW); i++) row[i] = -1e30f;
            vf largest = vload(row), sum = vzero();
            for (long i = VW; i < count; i += VW) largest = vmax(largest, vload(row + i));
            const float most = vlargest(largest);
            for (long i = 0; i < count; i += VW) {
                const vf p = stored<C>(vexp(vmul(vsub(vload(row + i), vset(most)), scale)));
                sum = vadd(sum, p);
                put<C>(weights + g * cells + i, p, VW);
            }
            float largest_score[VW];
            vstore(largest_score, vmul(vset(most), scale));
            to[0] = vsum(sum);
            to[1] = largest_score[0];
        }
    }

    // ---- logits -----------------------------------------------------------------------------------
    long head_row(long task) const { return smaller(d.vocab, (d.vocab + 15) / 16 * task / head_tasks * 16); }

    // Columns of logits from `start` on, [blocks][rows][block].
    void write_logits(const float* sums, long start, long stop) const {
        const T* bias = (const T*)d.head_bias;
        for (long c = start; c < stop; c += Parts::block)
            for (long r = 0; r < d.rows; r++, sums += Parts::block) {
                float* to = d.logits + r * d.vocab;
                vf part[2];
                ordered(sums, &part[0], &part[1]);
                for (long i = c, j = 0; j < 2 && i < stop; i += VW, j++)
                    vstore_n(to + i, bias ? vadd(part[j], vload_n(bias + i, stop - i)) : part[j], stop - i);
            }
    }

    // Of codes a task takes some panels.
    long panel_tasks() const { return smaller(panels, 8 * threads); }
    long first_panel(long task) const { return panels * task / panel_tasks(); }
    long panel_bytes() const { return byte_rows(d.hidden, d.head_codes.bits) * d.panel; }

    void panel_logits(long task, int thread, Ahead* ahead) const {
        float* sums = ek_scratch<float>(thread, 1, d.panel * d.rows);
        void* room = ek_scratch<float>(thread, 4, 2 * d.rows * round_up(d.panel, kCodedColumns));
        for (long p = first_panel(task); p < first_panel(task + 1); p++) {
            const Coded w = {(const uint8_t*)d.head + p * panel_bytes(), (const float*)d.head_codes.scales + p * d.panel,
                             d.panel, d.hidden, d.head_codes.bits, EK_FP32};
            multiply_coded(w, 0, d.hidden, 0, d.panel, (const CodedOperand*)shared.normed, coded_stride(d.hidden),
                           d.rows, d.hidden, 0, sums, room, ahead);
            write_logits(sums, p * d.panel, smaller(d.vocab, (p + 1) * d.panel));
        }
    }

    void logits(long task, int thread, Ahead* ahead) const {
        if constexpr (CODED) {
            panel_logits(task, thread, ahead);
        } else {
            number_logits(task, thread, ahead);
        }
    }

    void number_logits(long task, int thread, Ahead* ahead) const {
        const T *w = (const T*)d.head, *bias = (const T*)d.head_bias;
        const X* x = (const X*)shared.normed;
        if (d.head_transposed) {
            const long start = head_row(task), stop = head_row(task + 1);
            multiply_rows<T>(w + start * d.hidden, d.hidden, stop - start, x, padded(d.hidden), d.rows, d.hidden,
                             d.logits + start, d.vocab);
            for (long r = 0; bias && r < d.rows; r++)
                for (long v = start; v < stop; v++) d.logits[r * d.vocab + v] += load1(bias + v);
            return;
        }
        const long start = head.column(task), stop = head.column_end(task), block = Parts::block;
        float* sums = ek_scratch<float>(thread, 1, round_up(stop - start, block) * d.rows);
        multiply_columns<T>(w + start, d.vocab, x, padded(d.hidden), d.rows, d.hidden, stop - start, sums, ahead);
        write_logits(sums, start, stop);
    }

    // ---- tasks in their order -----------------------------------------------------------------
    struct Place {
        long layer;         // num_layers: the head
        int phase;          // of the layer
        long task;          // in the phase
        long first, after;  // tasks before the phase, and before the next one
    };
    Place find(long number) const {
        const long l = number / before[kPhases], base = l * before[kPhases];
        if (l >= d.num_layers) {
            const long first = d.num_layers * before[kPhases];
            return {d.num_layers, 0, number - first, first, total};
        }
        int p = 0;
        while (number - base >= before[p + 1]) p++;
        return {l, p, number - base - before[p], base + before[p], base + before[p + 1]};
    }

    // The weights of a task.
    Region region(const Place& at) const {
        if (at.layer == d.num_layers) {
            if (CODED) {
                const long first = first_panel(at.task), size = (first_panel(at.task + 1) - first) * panel_bytes();
                return {(const char*)d.head + first * panel_bytes(), size, size, EK_LEVEL >= 3};
            }
            if (!d.head_transposed) return head.region(d.head, at.task);
            const long row = d.hidden * sizeof(T), start = head_row(at.task);
            return {(const char*)d.head + start * row, row, row, head_row(at.task + 1) - start};
        }
        const DecodeLayer& layer = d.layers[at.layer];
        switch (at.phase) {
        case 0: return qkv.region(layer.qkv, layer.qkv_codes, at.task);
        case 2: return out.region(layer.out, layer.out_codes, at.task);
        case 3: return wide.region(layer.gate_up, layer.gate_up_codes, at.task);
        case 4: return down.region(layer.down, layer.down_codes, at.task);
        default: return {nullptr, 0, 0, 0};
        }
    }

    void run(const Place& at, int thread, Ahead* ahead) const {
        if (at.layer == d.num_layers) return logits(at.task, thread, ahead);
        const DecodeLayer& layer = d.layers[at.layer];
        const X* normed = (const X*)shared.normed;
        const long task = at.task;
        if (at.phase == 0) {
            product(qkv, layer.qkv, layer.qkv_codes, normed, 0, d.hidden, task, thread, shared.wide, ahead);
        } else if (at.phase == 1) {
            attend(layer, task, thread);
        } else if (at.phase == 2) {
            const long first = out.input(task), last = out.input_end(task);
            X* x = ek_scratch<X>(thread, 0, d.rows * In::stride(last - first));
            join(first, last, x, layer.out_codes);
            product(out, layer.out, layer.out_codes, x, first, last - first, task, thread, shared.narrow, ahead);
        } else if (at.phase == 3) {
            product(wide, layer.gate_up, layer.gate_up_codes, normed, 0, d.hidden, task, thread, shared.wide, ahead);
        } else {
            const long first = down.input(task), last = down.input_end(task), range = padded(down.part) + 64;
            float* gates = ek_scratch<float>(thread, 2, 2 * range);
            X* x = ek_scratch<X>(thread, 0, d.rows * In::stride(last - first));
            activate(layer, first, last, gates, gates + range, x);
            product(down, layer.down, layer.down_codes, x, first, last - first, task, thread, shared.narrow, ahead);
        }
    }

    // What the end of a phase has to bring about before the next one.
    void end(const Place& at) const {
        if (at.layer == d.num_layers) return;
        const DecodeLayer& layer = d.layers[at.layer];
        if (at.phase == 2) {
            add(out, layer.out_bias);
            normalise(layer.mlp_norm, layer.gate_up_codes);
        }
        if (at.phase == 4) {
            add(down, layer.down_bias);
            normalise_before(at.layer + 1);
        }
    }

    // For what comes first in a layer, or for the head.
    void normalise_before(long layer) const {
        if (layer == d.num_layers) return normalise(d.final_norm, d.head_codes);
        normalise(d.layers[layer].attention_norm, d.layers[layer].qkv_codes);
    }

    bool claim(long number) const {
        return __atomic_compare_exchange_n(shared.taken, &number, number + 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }

    // Claims the next task as soon as its phase is open; false when there is none. Nothing is held while
    // waiting: on a busy machine whoever runs can then do all of the work.
    bool take(Place* at) const {
        long number = -1;
        for (long spins = 1;; spins++) {
            const long next = __atomic_load_n(shared.taken, __ATOMIC_RELAXED);
            if (next >= total) return false;
            if (next != number) *at = find(number = next);
            if (__atomic_load_n(shared.open, __ATOMIC_ACQUIRE) >= at->first) {
                if (claim(number)) return true;
                number = -1;
                continue;
            }
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
            if (spins > kPatience && spins % kBetween == 0) sched_yield();
        }
    }

    // The task after this one in the same phase, claimed; else false, and a guess of what this thread will do
    // in the next phase: those that arrive early get its first tasks.
    bool take_another(const Place& at, Place* another) const {
        for (;;) {
            const long number = __atomic_load_n(shared.taken, __ATOMIC_RELAXED);
            if (number >= at.after) break;
            if (!claim(number)) continue;
            *another = at;
            another->task = number - at.first;
            return true;
        }
        const long guess = at.after + __atomic_fetch_add(shared.arrived, 1, __ATOMIC_RELAXED) % threads;
        *another = guess < total ? find(guess) : at;
        return false;
    }

    // Takes tasks until none is left.
    void work(int thread) const {
        Ahead ahead;
        Place at{-1, 0, 0, 0, 0}, another = at;
        for (bool held = false;;) {
            if (!held) {
                const Place guess = another;
                if (!take(&at)) return;
                if (at.first + at.task != guess.first + guess.task) ahead = Ahead();
                if (ahead.lines == 0) ahead.append(region(at));
            }
            held = take_another(at, &another);
            const Region following = region(another);
            if (following.rows > 0 && another.first + another.task != at.first + at.task) ahead.append(following);
            ahead.prime();
            run(at, thread, &ahead);
            if (__atomic_add_fetch(shared.done, 1, __ATOMIC_ACQ_REL) == at.after) {
                end(at);
                __atomic_store_n(shared.open, at.after, __ATOMIC_RELEASE);
            }
            if (held) at = another;
        }
    }
};

template <class T, class C, bool CODED>
static void decode_token(const Decode& d) {
    const long threads = ek_get_threads();
    const Token<T, C, CODED> token(d, threads);
    *token.shared.taken = *token.shared.done = *token.shared.open = *token.shared.arrived = 0;
    token.embed();
    token.normalise_before(0);
    ek_parallel(threads, [&](long, int thread) { token.work(thread); });
}

template <class T, class C>
static void decode(const Decode& d) {
    if (d.panel) decode_token<T, C, true>(d);
    else decode_token<T, C, false>(d);
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
