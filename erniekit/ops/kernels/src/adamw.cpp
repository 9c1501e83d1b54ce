// AdamW over all tensors of a model in one call, and the norm of their gradients.
//
// The fp32 master of a bf16 weight is held as the weight and 16 bits more: with the weight rounded to
// nearest, ties away from zero, master bits = (weight bits << 16) + the low half taken as signed. So the
// master costs 2 bytes, and the weight is at once what the model computes with.
//
// Moments in bf16 are rounded up or down at random, with probabilities that keep their mean: to nearest,
// an average over a thousand steps would stand still. The random bits are a hash of (update, element).
#include "pool.h"
#include "vec.h"

namespace EK_NS {
namespace {

// Integers beside vf, by the compiler's own vectors at every level.
typedef uint32_t vu __attribute__((vector_size(VW * 4)));
typedef uint16_t vh __attribute__((vector_size(VW * 2)));
typedef int16_t vs __attribute__((vector_size(VW * 2)));
typedef int32_t vn __attribute__((vector_size(VW * 4)));

struct Parameter {
    void* weight;
    int16_t* remainder;  // null: the weight is fp32
    const float* gradient;
    void *first, *second;  // moments, fp32 or bf16
    int64_t count;
    int64_t offset;  // of its first element among all of the model, for the random bits
    float rate;      // lr / (1 - beta1^t)
    float keep;      // 1 - lr decay
};

struct Update {
    float clip, beta1, beta2, rest1, rest2;  // rest = 1 - beta
    float second_scale, epsilon;             // (1 - beta2^t)^(-1/2)
    uint64_t number;
};

// Elements of a task; a constant.
enum { TASK = 1 << 14 };

EK_INLINE vu half_bits(const void* p) {
    vh x;
    memcpy(&x, p, sizeof(x));
    return __builtin_convertvector(x, vu);
}

EK_INLINE void store_halves(void* p, vu x) {
    const vh y = __builtin_convertvector(x, vh);
    memcpy(p, &y, sizeof(y));
}

EK_INLINE vf load_master(const bf16* weight, const int16_t* remainder) {
    vs low;
    memcpy(&low, remainder, sizeof(low));
    return (vf)((half_bits(weight) << 16) + (vu)__builtin_convertvector(low, vn));
}

EK_INLINE void store_master(bf16* weight, int16_t* remainder, vf master) {
    vu bits = (vu)master;
    // A NaN must not round to a number.
    const vu nan = (vu)((bits & 0x7fffffffu) > 0x7f800000u);
    bits = (bits & ~nan) | (nan & 0x7fc00000u);
    store_halves(weight, (bits + 0x8000u) >> 16);
    store_halves(remainder, bits & 0xffffu);
}

// 32 random bits for each of VW elements that follow each other.
EK_INLINE vu random_bits(uint32_t seed, uint64_t element) {
    vu x;
    for (int i = 0; i < VW; i++) x[i] = i;
    x = (x + (uint32_t)element) * 0x9e3779b1u + seed;
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return x ^ (x >> 16);
}

static uint32_t seed_of(uint64_t update, uint64_t element) {
    uint64_t x = update * 0x9e3779b97f4a7c15u + (element >> 32);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(x >> 32);
}

EK_INLINE vf load_moment(const float* p) { return vload(p); }
EK_INLINE vf load_moment(const bf16* p) { return vload(p); }
EK_INLINE void store_moment(float* p, vf x, vu) { vstore(p, x); }
EK_INLINE void store_moment(bf16* p, vf x, vu random) { store_halves(p, ((vu)x + random) >> 16); }

// VW elements.
template <class M>
EK_INLINE void update_vector(const Update& u, float* fp32, bf16* narrow, int16_t* remainder, const float* gradient,
                             M* first, M* second, float rate, float keep, uint32_t seed, uint64_t element) {
    const vf g = vmul(vload(gradient), vset(u.clip));
    const vf m = vfma(vset(u.beta1), load_moment(first), vmul(vset(u.rest1), g));
    const vf v = vfma(vset(u.beta2), load_moment(second), vmul(vmul(vset(u.rest2), g), g));
    const vf step = vdiv(m, vfma(vsqrt(v), vset(u.second_scale), vset(u.epsilon)));
    vf w = fp32 != nullptr ? vload(fp32) : load_master(narrow, remainder);
    w = vfma(vset(-rate), step, vmul(w, vset(keep)));
    if (fp32 != nullptr) vstore(fp32, w);
    else store_master(narrow, remainder, w);
    const vu random = sizeof(M) == 2 ? random_bits(seed, element) : vu{};
    store_moment(first, m, random & 0xffffu);
    store_moment(second, v, random >> 16);
}

template <class M, bool NARROW>
static void update_range(const Update& u, const Parameter& p, long from, long to) {
    float* fp32 = NARROW ? nullptr : (float*)p.weight;
    bf16* narrow = NARROW ? (bf16*)p.weight : nullptr;
    M *first = (M*)p.first, *second = (M*)p.second;
    const uint32_t seed = seed_of(u.number, p.offset + from);
    long i = from;
    for (; i + VW <= to; i += VW)
        update_vector(u, NARROW ? nullptr : fp32 + i, NARROW ? narrow + i : nullptr,
                      NARROW ? p.remainder + i : nullptr, p.gradient + i, first + i, second + i, p.rate, p.keep,
                      seed, p.offset + i);
    const long left = to - i;
    if (left == 0) return;
    // The last few, in vectors of which the rest is zero.
    float w[VW] = {0}, g[VW] = {0};
    bf16 n[VW] = {0};
    int16_t r[VW] = {0};
    M m[VW] = {0}, v[VW] = {0};
    if (NARROW) memcpy(n, narrow + i, left * 2), memcpy(r, p.remainder + i, left * 2);
    else memcpy(w, fp32 + i, left * 4);
    memcpy(g, p.gradient + i, left * 4);
    memcpy(m, first + i, left * sizeof(M));
    memcpy(v, second + i, left * sizeof(M));
    update_vector(u, NARROW ? nullptr : w, NARROW ? n : nullptr, NARROW ? r : nullptr, g, m, v, p.rate, p.keep, seed,
                  p.offset + i);
    if (NARROW) memcpy(narrow + i, n, left * 2), memcpy(p.remainder + i, r, left * 2);
    else memcpy(fp32 + i, w, left * 4);
    memcpy(first + i, m, left * sizeof(M));
    memcpy(second + i, v, left * sizeof(M));
}

template <class M>
static void update_any(const Update& u, const Parameter& p, long from, long to) {
    if (p.remainder != nullptr) update_range<M, true>(u, p, from, to);
    else update_range<M, false>(u, p, from, to);
}

static double square_sum(const float* x, long count) {
    double total = 0.0;
    for (long from = 0; from < count; from += 2048) {
        const long to = count < from + 2048 ? count : from + 2048;
        vf sums[4] = {vzero(), vzero(), vzero(), vzero()};
        long i = from;
        for (; i + 4 * VW <= to; i += 4 * VW)
            for (int k = 0; k < 4; k++) {
                const vf value = vload(x + i + k * VW);
                sums[k] = vfma(value, value, sums[k]);
            }
        for (; i < to; i += VW) {
            const vf value = vload_n(x + i, to - i);
            sums[0] = vfma(value, value, sums[0]);
        }
        total += vsum(vadd(vadd(sums[0], sums[1]), vadd(sums[2], sums[3])));
    }
    return total;
}

// Calls body(parameter, from, to, task) for parts of at most TASK elements of all parameters.
template <class F>
static void over_parts(long num, const Parameter* parameters, const F& body) {
    int64_t* starts = ek_scratch<int64_t>(0, 0, (size_t)num + 1);  // first task of each parameter
    starts[0] = 0;
    for (long k = 0; k < num; k++) starts[k + 1] = starts[k] + (parameters[k].count + TASK - 1) / TASK;
    ek_parallel(starts[num], [&](long task, int) {
        long low = 0, high = num - 1;  // the last one that starts at or before the task
        while (low < high) {
            const long middle = (low + high + 1) / 2;
            if (starts[middle] <= task) low = middle;
            else high = middle - 1;
        }
        const Parameter& p = parameters[low];
        const long from = (task - starts[low]) * TASK;
        body(p, from, p.count < from + TASK ? p.count : from + TASK, task);
    });
}

}  // namespace
}  // namespace EK_NS

// One update of `num` parameters; moments of all in fp32, or all in bf16 (`moment_type`).
EK_EXPORT(ek_adamw)(int moment_type, long num, const void* parameters, const void* update) {
    const EK_NS::Update u = *(const EK_NS::Update*)update;
    EK_NS::over_parts(num, (const EK_NS::Parameter*)parameters,
                      [&](const EK_NS::Parameter& p, long from, long to, long) {
                          if (moment_type == EK_BF16) EK_NS::update_any<bf16>(u, p, from, to);
                          else EK_NS::update_any<float>(u, p, from, to);
                      });
}

// Sum of the squares of all gradients; sums of parts are added in order.
EK_EXPORT(ek_square_sum)(long num, const void* parameters, double* out) {
    const EK_NS::Parameter* all = (const EK_NS::Parameter*)parameters;
    long tasks = 0;
    for (long k = 0; k < num; k++) tasks += (all[k].count + EK_NS::TASK - 1) / EK_NS::TASK;
    double* sums = ek_scratch<double>(0, 1, (size_t)tasks + 1);
    EK_NS::over_parts(num, all, [&](const EK_NS::Parameter& p, long from, long to, long task) {
        sums[task] = EK_NS::square_sum(p.gradient + from, to - from);
    });
    double total = 0.0;
    for (long task = 0; task < tasks; task++) total += sums[task];
    *out = total;
}

// master [count] (fp32) of weights with their remainders, or the other way round (`split`).
EK_EXPORT(ek_master)(long count, bf16* weight, int16_t* remainder, float* master, int split) {
    const long tasks = (count + EK_NS::TASK - 1) / EK_NS::TASK;
    ek_parallel(tasks, [&](long task, int) {
        const long from = task * EK_NS::TASK, to = count < from + EK_NS::TASK ? count : from + EK_NS::TASK;
        for (long i = from; i < to; i += EK_NS::VW) {
            const long n = to - i < EK_NS::VW ? to - i : (long)EK_NS::VW;
            float m[EK_NS::VW] = {0};
            bf16 w[EK_NS::VW] = {0};
            int16_t r[EK_NS::VW] = {0};
            if (split) {
                memcpy(m, master + i, n * 4);
                EK_NS::store_master(w, r, EK_NS::vload(m));
                memcpy(weight + i, w, n * 2);
                memcpy(remainder + i, r, n * 2);
            } else {
                memcpy(w, weight + i, n * 2);
                memcpy(r, remainder + i, n * 2);
                EK_NS::vstore(m, EK_NS::load_master(w, r));
                memcpy(master + i, m, n * 4);
            }
        }
    });
}
