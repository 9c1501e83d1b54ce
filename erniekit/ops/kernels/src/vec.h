// Vectors of fp32, one definition a level: a kernel is written once and compiled for each.
//
// EK_LEVEL (0 portable, 1 AVX2+FMA, 2 AVX-512, 3 AVX-512 with BF16 and VNNI) and EK_NS come from the
// build. Everything here is static inside EK_NS: code compiled for one level must never be merged
// by the linker with code of another.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if EK_LEVEL >= 1
#include <immintrin.h>
#endif

#define EK_CONCAT_(a, b) a##b
#define EK_CONCAT(a, b) EK_CONCAT_(a, b)
// The C name of an exported function: name__avx512bf16 and so on.
#define EK_EXPORT(name) extern "C" __attribute__((visibility("default"))) void EK_CONCAT(name##__, EK_NS)
#define EK_INLINE static inline __attribute__((always_inline, unused))

typedef uint16_t bf16;
enum { EK_FP32 = 0, EK_BF16 = 1 };

namespace EK_NS {

// ---- single numbers ------------------------------------------------------------------------
EK_INLINE float bf16_to_float(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

// Round to nearest, ties to even; NaN stays NaN.
EK_INLINE bf16 float_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)((bits >> 16) | 0x40u);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

EK_INLINE float load1(const float* p) { return *p; }
EK_INLINE float load1(const bf16* p) { return bf16_to_float(*p); }
EK_INLINE void store1(float* p, float x) { *p = x; }
EK_INLINE void store1(bf16* p, float x) { *p = float_to_bf16(x); }

// ---- vectors -------------------------------------------------------------------------------
#if EK_LEVEL >= 2

enum { VW = 16 };
typedef __m512 vf;
typedef __m512i vi;
EK_INLINE vf vset(float x) { return _mm512_set1_ps(x); }
EK_INLINE vf vzero() { return _mm512_setzero_ps(); }
EK_INLINE vf vload(const float* p) { return _mm512_loadu_ps(p); }
EK_INLINE void vstore(float* p, vf x) { _mm512_storeu_ps(p, x); }
EK_INLINE __mmask16 vmask(long n) { return (__mmask16)((1u << n) - 1u); }  // 0 <= n < 16
EK_INLINE vf vload_n(const float* p, long n) { return n >= VW ? vload(p) : _mm512_maskz_loadu_ps(vmask(n), p); }
EK_INLINE void vstore_n(float* p, vf x, long n) {
    if (n >= VW) vstore(p, x);
    else _mm512_mask_storeu_ps(p, vmask(n), x);
}
EK_INLINE vf vwiden(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
EK_INLINE __m256i vnarrow(vf x) {
#if EK_LEVEL >= 3
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}
EK_INLINE vf vload(const bf16* p) { return vwiden(_mm256_loadu_si256((const __m256i*)p)); }
EK_INLINE void vstore(bf16* p, vf x) { _mm256_storeu_si256((__m256i*)p, vnarrow(x)); }
EK_INLINE vf vload_n(const bf16* p, long n) {
    return n >= VW ? vload(p) : vwiden(_mm256_maskz_loadu_epi16(vmask(n), p));
}
EK_INLINE void vstore_n(bf16* p, vf x, long n) {
    if (n >= VW) vstore(p, x);
    else _mm256_mask_storeu_epi16(p, vmask(n), vnarrow(x));
}
EK_INLINE vf vadd(vf a, vf b) { return _mm512_add_ps(a, b); }
EK_INLINE vf vsub(vf a, vf b) { return _mm512_sub_ps(a, b); }
EK_INLINE vf vmul(vf a, vf b) { return _mm512_mul_ps(a, b); }
EK_INLINE vf vdiv(vf a, vf b) { return _mm512_div_ps(a, b); }
EK_INLINE vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
EK_INLINE vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
EK_INLINE vf vsqrt(vf a) { return _mm512_sqrt_ps(a); }
EK_INLINE vf vfma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }  // a b + c
EK_INLINE float vsum(vf a) { return _mm512_reduce_add_ps(a); }
EK_INLINE float vlargest(vf a) { return _mm512_reduce_max_ps(a); }
EK_INLINE vf vround(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a * 2^n for whole n (saturates correctly towards 0 and infinity).
EK_INLINE vf vscale2(vf a, vf n) { return _mm512_scalef_ps(a, n); }

#elif EK_LEVEL == 1

enum { VW = 8 };
typedef __m256 vf;
typedef __m256i vi;
EK_INLINE vf vset(float x) { return _mm256_set1_ps(x); }
EK_INLINE vf vzero() { return _mm256_setzero_ps(); }
EK_INLINE vf vload(const float* p) { return _mm256_loadu_ps(p); }
EK_INLINE void vstore(float* p, vf x) { _mm256_storeu_ps(p, x); }
EK_INLINE __m256i vmask(long n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
EK_INLINE vf vload_n(const float* p, long n) { return n >= VW ? vload(p) : _mm256_maskload_ps(p, vmask(n)); }
EK_INLINE void vstore_n(float* p, vf x, long n) {
    if (n >= VW) vstore(p, x);
    else _mm256_maskstore_ps(p, vmask(n), x);
}
EK_INLINE vf vwiden(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
EK_INLINE __m128i vnarrow(vf x) {
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), nan);
    __m256i high = _mm256_srli_epi32(rounded, 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0xd8);
    return _mm256_castsi256_si128(packed);
}
EK_INLINE vf vload(const bf16* p) { return vwiden(_mm_loadu_si128((const __m128i*)p)); }
EK_INLINE void vstore(bf16* p, vf x) { _mm_storeu_si128((__m128i*)p, vnarrow(x)); }
EK_INLINE vf vload_n(const bf16* p, long n) {
    if (n >= VW) return vload(p);
    bf16 part[VW] = {0};
    for (long i = 0; i < n; i++) part[i] = p[i];
    return vload(part);
}
EK_INLINE void vstore_n(bf16* p, vf x, long n) {
    if (n >= VW) { vstore(p, x); return; }
    bf16 part[VW];
    vstore(part, x);
    for (long i = 0; i < n; i++) p[i] = part[i];
}
EK_INLINE vf vadd(vf a, vf b) { return _mm256_add_ps(a, b); }
EK_INLINE vf vsub(vf a, vf b) { return _mm256_sub_ps(a, b); }
EK_INLINE vf vmul(vf a, vf b) { return _mm256_mul_ps(a, b); }
EK_INLINE vf vdiv(vf a, vf b) { return _mm256_div_ps(a, b); }
EK_INLINE vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
EK_INLINE vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
EK_INLINE vf vsqrt(vf a) { return _mm256_sqrt_ps(a); }
EK_INLINE vf vfma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
EK_INLINE float vsum(vf a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
EK_INLINE float vlargest(vf a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
EK_INLINE vf vround(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
EK_INLINE vf vscale2(vf a, vf n) {
    n = vmin(vmax(n, vset(-252.0f)), vset(252.0f));
    // In two halves, since 2^n itself may leave the range of the exponent.
    __m256i whole = _mm256_cvtps_epi32(n);
    __m256i first = _mm256_srai_epi32(whole, 1);
    __m256i second = _mm256_sub_epi32(whole, first);
    __m256i bias = _mm256_set1_epi32(127);
    vf f = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(first, bias), 23));
    vf g = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(second, bias), 23));
    return vmul(vmul(a, f), g);
}

#else  // portable: GCC and Clang vectors, whatever the processor

enum { VW = 4 };
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
EK_INLINE vf vset(float x) { return vf{x, x, x, x}; }
EK_INLINE vf vzero() { return vset(0.0f); }
EK_INLINE vf vload(const float* p) { vf x; memcpy(&x, p, 16); return x; }
EK_INLINE void vstore(float* p, vf x) { memcpy(p, &x, 16); }
EK_INLINE vf vload(const bf16* p) {
    return vf{bf16_to_float(p[0]), bf16_to_float(p[1]), bf16_to_float(p[2]), bf16_to_float(p[3])};
}
EK_INLINE void vstore(bf16* p, vf x) {
    for (int i = 0; i < VW; i++) p[i] = float_to_bf16(x[i]);
}
template <class T>
EK_INLINE vf vload_n(const T* p, long n) {
    if (n >= VW) return vload(p);
    vf x = vzero();
    for (long i = 0; i < n; i++) x[i] = load1(p + i);
    return x;
}
template <class T>
EK_INLINE void vstore_n(T* p, vf x, long n) {
    if (n > VW) n = VW;
    for (long i = 0; i < n; i++) store1(p + i, x[i]);
}
EK_INLINE vf vadd(vf a, vf b) { return a + b; }
EK_INLINE vf vsub(vf a, vf b) { return a - b; }
EK_INLINE vf vmul(vf a, vf b) { return a * b; }
EK_INLINE vf vdiv(vf a, vf b) { return a / b; }
EK_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
EK_INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }
EK_INLINE vf vsqrt(vf a) {
    return vf{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]), __builtin_sqrtf(a[3])};
}
EK_INLINE vf vfma(vf a, vf b, vf c) { return a * b + c; }
EK_INLINE float vsum(vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }
EK_INLINE float vlargest(vf a) {
    float x = a[0] > a[1] ? a[0] : a[1], y = a[2] > a[3] ? a[2] : a[3];
    return x > y ? x : y;
}
EK_INLINE vf vround(vf a) {
    return vf{__builtin_rintf(a[0]), __builtin_rintf(a[1]), __builtin_rintf(a[2]), __builtin_rintf(a[3])};
}
EK_INLINE vf vscale2(vf a, vf n) {
    n = vmin(vmax(n, vset(-252.0f)), vset(252.0f));
    vi whole = __builtin_convertvector(n, vi);
    vi first = whole >> 1, second = whole - first;
    vi f = (first + 127) << 23, g = (second + 127) << 23;
    vf x, y;
    memcpy(&x, &f, 16);
    memcpy(&y, &g, 16);
    return a * x * y;
}

#endif

// e^x to about 1 ulp: 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2, and the Taylor series of e^r
// to the seventh order. exp(-inf) = 0; NaN stays NaN.
EK_INLINE vf vexp(vf x) {
    x = vmin(vset(89.0f), vmax(vset(-104.0f), x));
    vf n = vround(vmul(x, vset(1.44269504f)));
    vf r = vfma(n, vset(-0.693359375f), x);
    r = vfma(n, vset(2.12194440e-4f), r);
    vf p = vset(1.98412698e-4f);
    p = vfma(p, r, vset(1.38888889e-3f));
    p = vfma(p, r, vset(8.33333333e-3f));
    p = vfma(p, r, vset(4.16666667e-2f));
    p = vfma(p, r, vset(1.66666667e-1f));
    p = vfma(p, r, vset(0.5f));
    p = vfma(vmul(p, r), r, r);
    return vscale2(vadd(p, vset(1.0f)), n);
}

}  // namespace EK_NS
