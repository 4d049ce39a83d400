// Sixteen lanes of AVX2 with FMA and F16C: two registers.
#pragma once

#include <immintrin.h>

namespace vec {

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
#if defined(VEC_PAIRS)
// Products of sixteen-bit halves: `maddubs` would saturate for byte weights.
INLINE __m256i dot4_half(__m256i acc, __m256i u, __m256i s) {
    __m256i low = _mm256_set1_epi16(0xFF);
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
INLINE I32 dot4(I32 acc, I32 u, I32 s) { return {dot4_half(acc.a, u.a, s.a), dot4_half(acc.b, u.b, s.b)}; }
// Not intrinsics: of an unrolled loop over these, gcc 12 computes the products first and runs out of registers. What is
// written here stays where it is, which nearly doubles the rate of such a loop (bench/probes/avx2_products.cpp).
INLINE __m256i dot2_half(__m256i acc, __m256i a, __m256i b) {
    __m256i product;
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(product) : "x"(a), "x"(b));
    return acc;
}
INLINE I32 dot2(I32 acc, I32 a, I32 b) { return {dot2_half(acc.a, a.a, b.a), dot2_half(acc.b, a.b, b.b)}; }
// acc + u0 s0 + u1 s1 in every half of a lane: unsigned bytes of `u`, signed bytes of `s`. The sum must fit 16 bits.
INLINE __m256i dot_bytes_half(__m256i acc, __m256i u, __m256i s) {
    __m256i product;
    asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(acc), "=&x"(product) : "x"(u), "x"(s));
    return acc;
}
INLINE I32 dot_bytes(I32 acc, I32 u, I32 s) { return {dot_bytes_half(acc.a, u.a, s.a), dot_bytes_half(acc.b, u.b, s.b)}; }
// The sum of the two signed halves of every lane.
INLINE I32 add_halves(I32 x) {
    __m256i one = _mm256_set1_epi16(1);
    return {_mm256_madd_epi16(x.a, one), _mm256_madd_epi16(x.b, one)};
}
// Bytes 0 and 2 of every lane as halves, and bytes 1 and 3.
INLINE I32 even_bytes(I32 x) { return band(x, set1i(0x00FF00FF)); }
INLINE I32 odd_bytes(I32 x) { return {_mm256_srli_epi16(x.a, 8), _mm256_srli_epi16(x.b, 8)}; }
// Lanes as signed halves; of every four, 0 and 2 come first, then 1 and 3.
INLINE void store_s16_pairs(void* p, I32 x) {
    __m256i y = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
    _mm256_storeu_si256((__m256i*)p, _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(y, 0xD8), 0xD8));
}
#endif
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

// `x` in a register: compilers would load it again for each product that shares it, and loads are the bound.
INLINE F32 held(F32 x) {
    asm("" : "+x"(x.a), "+x"(x.b));
    return x;
}
// Rows to columns.
INLINE void transpose8(__m256i (&x)[8]) {
    __m256i a[8], b[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i++) {
        int from = i / 4 * 4 + i % 4 / 2;
        b[i] = i % 2 ? _mm256_unpackhi_epi64(a[from], a[from + 2]) : _mm256_unpacklo_epi64(a[from], a[from + 2]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        x[i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
        x[4 + i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
    }
}

INLINE void transpose(I32 (&x)[16]) {
    __m256i quarter[2][2][8];  // [rows][columns]
    UNROLL for (int i = 0; i < 16; i++) quarter[i / 8][0][i % 8] = x[i].a, quarter[i / 8][1][i % 8] = x[i].b;
    UNROLL for (int i = 0; i < 4; i++) transpose8(quarter[i / 2][i % 2]);
    UNROLL for (int i = 0; i < 16; i++) x[i] = {quarter[0][i / 8][i % 8], quarter[1][i / 8][i % 8]};
}

}  // namespace vec
