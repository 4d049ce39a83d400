// AVX2 with dot products of bytes and of halves (AVX-VNNI).
#pragma once

#include "vec_avx2.h"

namespace vec {

#if defined(__AVXVNNI__)
#define VNNI(name) _mm256_##name##_avx_epi32
#else  // the same instructions in the encoding of AVX-512
#define VNNI(name) _mm256_##name##_epi32
#endif
// acc + the sum of four products: unsigned bytes of `u`, signed bytes of `s`, in every lane.
INLINE I32 dot4(I32 acc, I32 u, I32 s) { return {VNNI(dpbusd)(acc.a, u.a, s.a), VNNI(dpbusd)(acc.b, u.b, s.b)}; }
// acc + the sum of two products of signed halves, in every lane.
INLINE I32 dot2(I32 acc, I32 a, I32 b) { return {VNNI(dpwssd)(acc.a, a.a, b.a), VNNI(dpwssd)(acc.b, a.b, b.b)}; }
#undef VNNI

}  // namespace vec
