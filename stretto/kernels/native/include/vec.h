// Vectors of 16 lanes, written once for every instruction-set level.
//
// All arithmetic is IEEE and in one order: a fused multiply-add is always `fma`, a sum over lanes is always the same
// tree, and compilers must not contract (-ffp-contract=off). A kernel written with these types therefore computes the
// same bits with AVX-512, with AVX2 and with plain C++.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in gcc 12's own AVX-512 headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace vec {

constexpr int LANES = 16;

// Every loop over accumulators is unrolled with this, so that they stay in registers (plain C++ has none that fit).
#if defined(__AVX2__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

#if defined(__AVX512VNNI__)

constexpr const char* LEVEL = "avx512";
struct F32 { __m512 v; };
struct I32 { __m512i v; };
struct Wide { I32 high, low; };

INLINE F32 set1(float x) { return {_mm512_set1_ps(x)}; }
INLINE I32 set1i(int32_t x) { return {_mm512_set1_epi32(x)}; }
INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
INLINE F32 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)}; }
INLINE void store_n(float* p, F32 a, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), a.v); }
INLINE I32 loadi(const void* p) { return {_mm512_loadu_si512(p)}; }
INLINE void storei(void* p, I32 a) { _mm512_storeu_si512(p, a.v); }
INLINE F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
INLINE F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
INLINE F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
INLINE F32 div(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
INLINE F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
INLINE F32 round_even(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
INLINE F32 to_float(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
INLINE I32 to_int(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }  // rounds to nearest even
INLINE F32 bits(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
INLINE I32 bits(F32 a) { return {_mm512_castps_si512(a.v)}; }
INLINE I32 add(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
INLINE I32 sub(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
INLINE I32 max(I32 a, I32 b) { return {_mm512_max_epi32(a.v, b.v)}; }
INLINE I32 band(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
INLINE I32 bor(I32 a, I32 b) { return {_mm512_or_si512(a.v, b.v)}; }
INLINE I32 bxor(I32 a, I32 b) { return {_mm512_xor_si512(a.v, b.v)}; }
INLINE Wide wide_mul(I32 a, uint32_t factor) {
    __m512i m = _mm512_set1_epi32(int32_t(factor));
    __m512i even = _mm512_mul_epu32(a.v, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), m);
    return {{_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd)},
            {_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32))}};
}
template <int N> INLINE I32 shl(I32 a) { return {_mm512_slli_epi32(a.v, N)}; }
template <int N> INLINE I32 shr(I32 a) { return {_mm512_srli_epi32(a.v, N)}; }
INLINE I32 load_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
INLINE I32 load_s8(const int8_t* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
INLINE I32 load_u16(const uint16_t* p) { return {_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))}; }
INLINE F32 load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
INLINE void store_u16(uint16_t* p, I32 a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(a.v)); }
INLINE void store_u8(uint8_t* p, I32 a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a.v)); }  // low bytes
INLINE int32_t sum(I32 a) { return _mm512_reduce_add_epi32(a.v); }
INLINE int32_t highest(I32 a) { return _mm512_reduce_max_epi32(a.v); }
// acc + the sum of four products: unsigned bytes of `u`, signed bytes of `s`, in every lane.
INLINE I32 dot4(I32 acc, I32 u, I32 s) { return {_mm512_dpbusd_epi32(acc.v, u.v, s.v)}; }
// acc + the sum of two products of signed halves, in every lane.
// Not the intrinsic: around it, gcc 12 copies an accumulator that lives through a loop twice.
INLINE I32 dot2(I32 acc, I32 a, I32 b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v));
    return acc;
}
// The entries of `table` whose numbers are the bytes of `a`, which are below 16.
INLINE I32 lookup(const uint8_t (&table)[16], I32 a) {
    return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), a.v)};
}
INLINE F32 select_less(F32 a, F32 b, F32 yes, F32 no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
// Bit i is set where a < b in lane i.
INLINE uint32_t lanes_less(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

constexpr const char* LEVEL = "avx2";
struct F32 { __m256 a, b; };
struct I32 { __m256i a, b; };
struct Wide { I32 high, low; };

INLINE F32 set1(float x) { __m256 y = _mm256_set1_ps(x); return {y, y}; }
INLINE I32 set1i(int32_t x) { __m256i y = _mm256_set1_epi32(x); return {y, y}; }
INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void store(float* p, F32 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
INLINE F32 load_n(const float* p, int n) {
    float t[16] = {};
    std::memcpy(t, p, size_t(n) * 4);
    return load(t);
}
INLINE void store_n(float* p, F32 x, int n) {
    float t[16];
    store(t, x);
    std::memcpy(p, t, size_t(n) * 4);
}
INLINE I32 loadi(const void* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
INLINE void storei(void* p, I32 x) {
    _mm256_storeu_si256((__m256i*)p, x.a);
    _mm256_storeu_si256((__m256i*)p + 1, x.b);
}
#define BOTH(f, x, y) {f((x).a, (y).a), f((x).b, (y).b)}
INLINE F32 add(F32 x, F32 y) { return BOTH(_mm256_add_ps, x, y); }
INLINE F32 sub(F32 x, F32 y) { return BOTH(_mm256_sub_ps, x, y); }
INLINE F32 mul(F32 x, F32 y) { return BOTH(_mm256_mul_ps, x, y); }
INLINE F32 div(F32 x, F32 y) { return BOTH(_mm256_div_ps, x, y); }
INLINE F32 max(F32 x, F32 y) { return BOTH(_mm256_max_ps, x, y); }
INLINE F32 min(F32 x, F32 y) { return BOTH(_mm256_min_ps, x, y); }
INLINE F32 abs(F32 x) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
INLINE F32 fma(F32 x, F32 y, F32 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
INLINE F32 round_even(F32 x) {
    constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, how), _mm256_round_ps(x.b, how)};
}
INLINE F32 to_float(I32 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
INLINE I32 to_int(F32 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
INLINE F32 bits(I32 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
INLINE I32 bits(F32 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
INLINE I32 add(I32 x, I32 y) { return BOTH(_mm256_add_epi32, x, y); }
INLINE I32 sub(I32 x, I32 y) { return BOTH(_mm256_sub_epi32, x, y); }
INLINE I32 max(I32 x, I32 y) { return BOTH(_mm256_max_epi32, x, y); }
INLINE I32 band(I32 x, I32 y) { return BOTH(_mm256_and_si256, x, y); }
INLINE I32 bor(I32 x, I32 y) { return BOTH(_mm256_or_si256, x, y); }
INLINE I32 bxor(I32 x, I32 y) { return BOTH(_mm256_xor_si256, x, y); }
#undef BOTH
INLINE Wide wide_mul(I32 x, uint32_t factor) {
    __m256i m = _mm256_set1_epi32(int32_t(factor)), *in[2] = {&x.a, &x.b};
    Wide y;
    __m256i *high[2] = {&y.high.a, &y.high.b}, *low[2] = {&y.low.a, &y.low.b};
    for (int i = 0; i < 2; i++) {
        __m256i even = _mm256_mul_epu32(*in[i], m), odd = _mm256_mul_epu32(_mm256_srli_epi64(*in[i], 32), m);
        *high[i] = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
        *low[i] = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    }
    return y;
}
template <int N> INLINE I32 shl(I32 x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
template <int N> INLINE I32 shr(I32 x) { return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)}; }
INLINE I32 load_u8(const uint8_t* p) {
    __m128i x = _mm_loadu_si128((const __m128i*)p);
    return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))};
}
INLINE I32 load_s8(const int8_t* p) {
    __m128i x = _mm_loadu_si128((const __m128i*)p);
    return {_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))};
}
INLINE I32 load_u16(const uint16_t* p) {
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p + 1))};
}
INLINE F32 load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1))};
}
INLINE void store_u16(uint16_t* p, I32 x) {  // every lane holds a value below 2^16
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xD8);
    _mm256_storeu_si256((__m256i*)p, packed);
}
INLINE void store_u8(uint8_t* p, I32 x) {  // low bytes
    __m256i low = _mm256_set1_epi32(0xFF);
    __m256i packed = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
    packed = _mm256_permute4x64_epi64(packed, 0xD8);
    __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
    _mm_storeu_si128((__m128i*)p, bytes);
}
INLINE int32_t sum(I32 x) {
    __m256i y = _mm256_add_epi32(x.a, x.b);
    __m128i z = _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    z = _mm_add_epi32(z, _mm_shuffle_epi32(z, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(z, _mm_shuffle_epi32(z, 0xB1)));
}
INLINE int32_t highest(I32 x) {
    __m256i y = _mm256_max_epi32(x.a, x.b);
    __m128i z = _mm_max_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    z = _mm_max_epi32(z, _mm_shuffle_epi32(z, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(z, _mm_shuffle_epi32(z, 0xB1)));
}
// Products of sixteen-bit halves: `maddubs` would saturate for byte weights.
INLINE __m256i dot4_half(__m256i acc, __m256i u, __m256i s) {
    __m256i low = _mm256_set1_epi16(0xFF);
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
INLINE I32 dot4(I32 acc, I32 u, I32 s) { return {dot4_half(acc.a, u.a, s.a), dot4_half(acc.b, u.b, s.b)}; }
INLINE I32 dot2(I32 acc, I32 a, I32 b) {
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(a.a, b.a)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(a.b, b.b))};
}
// The entries of `table` whose numbers are the bytes of `x`, which are below 16.
INLINE I32 lookup(const uint8_t (&table)[16], I32 x) {
    __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return {_mm256_shuffle_epi8(t, x.a), _mm256_shuffle_epi8(t, x.b)};
}
INLINE F32 select_less(F32 x, F32 y, F32 yes, F32 no) {
    return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
            _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
// Bit i is set where x < y in lane i.
INLINE uint32_t lanes_less(F32 x, F32 y) {
    uint32_t low = uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)));
    return low | uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))) << 8;
}

#else

constexpr const char* LEVEL = "generic";
struct F32 { float v[16]; };
struct I32 { int32_t v[16]; };
struct Wide { I32 high, low; };

#define EACH(T, expression) T r; for (int i = 0; i < 16; i++) r.v[i] = (expression); return r
INLINE float half_to_float(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023, u;
    if (exponent == 0) {
        float f = float(fraction) * 0x1p-24f;
        std::memcpy(&u, &f, 4);
        u |= sign;
    } else {
        u = sign | ((exponent == 31 ? 255 : exponent + 112) << 23) | (fraction << 13);
    }
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
INLINE F32 set1(float x) { EACH(F32, x); }
INLINE I32 set1i(int32_t x) { EACH(I32, x); }
INLINE F32 load(const float* p) { EACH(F32, p[i]); }
INLINE void store(float* p, F32 a) { std::memcpy(p, a.v, 64); }
INLINE F32 load_n(const float* p, int n) { EACH(F32, i < n ? p[i] : 0.0f); }
INLINE void store_n(float* p, F32 a, int n) { std::memcpy(p, a.v, size_t(n) * 4); }
INLINE I32 loadi(const void* p) { I32 r; std::memcpy(r.v, p, 64); return r; }
INLINE void storei(void* p, I32 a) { std::memcpy(p, a.v, 64); }
INLINE F32 add(F32 a, F32 b) { EACH(F32, a.v[i] + b.v[i]); }
INLINE F32 sub(F32 a, F32 b) { EACH(F32, a.v[i] - b.v[i]); }
INLINE F32 mul(F32 a, F32 b) { EACH(F32, a.v[i] * b.v[i]); }
INLINE F32 div(F32 a, F32 b) { EACH(F32, a.v[i] / b.v[i]); }
INLINE F32 max(F32 a, F32 b) { EACH(F32, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE F32 min(F32 a, F32 b) { EACH(F32, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
INLINE F32 abs(F32 a) { EACH(F32, std::fabs(a.v[i])); }
INLINE F32 fma(F32 a, F32 b, F32 c) { EACH(F32, std::fma(a.v[i], b.v[i], c.v[i])); }
INLINE F32 round_even(F32 a) { EACH(F32, std::nearbyint(a.v[i])); }
INLINE F32 to_float(I32 a) { EACH(F32, float(a.v[i])); }
INLINE I32 to_int(F32 a) { EACH(I32, a.v[i] == a.v[i] ? int32_t(std::nearbyint(a.v[i])) : INT32_MIN); }  // as x86 does
INLINE F32 bits(I32 a) { F32 r; std::memcpy(r.v, a.v, 64); return r; }
INLINE I32 bits(F32 a) { I32 r; std::memcpy(r.v, a.v, 64); return r; }
INLINE I32 add(I32 a, I32 b) { EACH(I32, int32_t(uint32_t(a.v[i]) + uint32_t(b.v[i]))); }
INLINE I32 sub(I32 a, I32 b) { EACH(I32, int32_t(uint32_t(a.v[i]) - uint32_t(b.v[i]))); }
INLINE I32 max(I32 a, I32 b) { EACH(I32, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE I32 band(I32 a, I32 b) { EACH(I32, a.v[i] & b.v[i]); }
INLINE I32 bor(I32 a, I32 b) { EACH(I32, a.v[i] | b.v[i]); }
INLINE I32 bxor(I32 a, I32 b) { EACH(I32, a.v[i] ^ b.v[i]); }
INLINE Wide wide_mul(I32 a, uint32_t factor) {
    Wide y;
    for (int i = 0; i < 16; i++) {
        uint64_t product = uint64_t(uint32_t(a.v[i])) * factor;
        y.high.v[i] = int32_t(uint32_t(product >> 32));
        y.low.v[i] = int32_t(uint32_t(product));
    }
    return y;
}
template <int N> INLINE I32 shl(I32 a) { EACH(I32, int32_t(uint32_t(a.v[i]) << N)); }
template <int N> INLINE I32 shr(I32 a) { EACH(I32, int32_t(uint32_t(a.v[i]) >> N)); }
INLINE I32 load_u8(const uint8_t* p) { EACH(I32, p[i]); }
INLINE I32 load_s8(const int8_t* p) { EACH(I32, p[i]); }
INLINE I32 load_u16(const uint16_t* p) { EACH(I32, p[i]); }
INLINE F32 load_f16(const uint16_t* p) { EACH(F32, half_to_float(p[i])); }
INLINE void store_u16(uint16_t* p, I32 a) { for (int i = 0; i < 16; i++) p[i] = uint16_t(a.v[i]); }
INLINE void store_u8(uint8_t* p, I32 a) { for (int i = 0; i < 16; i++) p[i] = uint8_t(a.v[i]); }  // low bytes
INLINE int32_t sum(I32 a) {
    uint32_t total = 0;
    for (int i = 0; i < 16; i++) total += uint32_t(a.v[i]);
    return int32_t(total);
}
INLINE int32_t highest(I32 a) {
    int32_t top = a.v[0];
    for (int i = 1; i < 16; i++) top = a.v[i] > top ? a.v[i] : top;
    return top;
}
INLINE I32 dot4(I32 acc, I32 u, I32 s) {
    for (int i = 0; i < 16; i++)
        for (int b = 0; b < 32; b += 8)
            acc.v[i] += int32_t((uint32_t(u.v[i]) >> b) & 255) * int8_t(uint32_t(s.v[i]) >> b);
    return acc;
}
INLINE I32 dot2(I32 acc, I32 a, I32 b) {
    for (int i = 0; i < 16; i++) {
        int32_t low = int16_t(a.v[i]) * int16_t(b.v[i]), high = (a.v[i] >> 16) * (b.v[i] >> 16);
        acc.v[i] = int32_t(uint32_t(acc.v[i]) + uint32_t(low) + uint32_t(high));
    }
    return acc;
}
// The entries of `table` whose numbers are the bytes of `a`, which are below 16.
INLINE I32 lookup(const uint8_t (&table)[16], I32 a) {
    uint8_t b[64];
    storei(b, a);
    for (uint8_t& x : b) x = table[x];
    return loadi(b);
}
INLINE F32 select_less(F32 a, F32 b, F32 yes, F32 no) { EACH(F32, a.v[i] < b.v[i] ? yes.v[i] : no.v[i]); }
// Bit i is set where a < b in lane i.
INLINE uint32_t lanes_less(F32 a, F32 b) {
    uint32_t r = 0;
    for (int i = 0; i < 16; i++) r |= uint32_t(a.v[i] < b.v[i]) << i;
    return r;
}
#undef EACH

#endif

// -- made of the above: the same bits on every level ------------------------------------------------------------------

// Four bytes at any address, in every lane.
INLINE I32 four(const void* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return set1i(x);
}

// Absolute values as integers, in their order: infinity and NaN come last, so a maximum loses neither.
INLINE I32 size_of(F32 x) { return bits(abs(x)); }

// 1 / step; 0 for a step that is too small to divide by.
INLINE F32 inverse(F32 step) { return select_less(step, set1(0x1p-126f), set1(0.0f), div(set1(1.0f), step)); }

INLINE F32 load_bf16(const uint16_t* p) { return bits(shl<16>(load_u16(p))); }

INLINE float sum(F32 a) {
    float t[16];
    store(t, a);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) t[i] += t[i + half];
    return t[0];
}

INLINE float highest(F32 a) {
    float t[16];
    store(t, a);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) t[i] = t[i] > t[i + half] ? t[i] : t[i + half];
    return t[0];
}

}  // namespace vec
