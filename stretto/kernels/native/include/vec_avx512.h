// Sixteen lanes of AVX-512: one register. With byte dot products (VNNI).
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in gcc 12's own AVX-512 headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

namespace vec {

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

// `x` in a register: compilers would load it again for each product that shares it, and loads are the bound.
INLINE F32 held(F32 x) {
    asm("" : "+v"(x.v));
    return x;
}
// Rows to columns.
INLINE void transpose(I32 (&x)[16]) {
    __m512i a[16], b[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(x[i].v, x[i + 1].v);
        a[i + 1] = _mm512_unpackhi_epi32(x[i].v, x[i + 1].v);
    }
    UNROLL for (int i = 0; i < 16; i++) {
        int from = i / 4 * 4 + i % 4 / 2;
        b[i] = i % 2 ? _mm512_unpackhi_epi64(a[from], a[from + 2]) : _mm512_unpacklo_epi64(a[from], a[from + 2]);
    }
    UNROLL for (int i = 0; i < 4; i++) {  // quarter j of b[4 r + i] is column 4 j + i of rows 4 r .. 4 r + 3
        __m512i even0 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88), odd0 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xDD);
        __m512i even1 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88);
        __m512i odd1 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xDD);
        x[i].v = _mm512_shuffle_i32x4(even0, even1, 0x88), x[8 + i].v = _mm512_shuffle_i32x4(even0, even1, 0xDD);
        x[4 + i].v = _mm512_shuffle_i32x4(odd0, odd1, 0x88), x[12 + i].v = _mm512_shuffle_i32x4(odd0, odd1, 0xDD);
    }
}

}  // namespace vec
