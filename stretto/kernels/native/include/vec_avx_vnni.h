// AVX2 with dot products of bytes and of halves (AVX-VNNI).
#pragma once

#include "vec_avx2.h"

// Not intrinsics: around those, gcc 12 copies an accumulator that lives through a loop twice. Assemblers choose the
// encoding of AVX-512 unless they are told.
#if defined(__AVXVNNI__)
#define VNNI(name) "%{vex%} " name " %2, %1, %0"
#else
#define VNNI(name) name " %2, %1, %0"
#endif

namespace vec {

INLINE __m256i dot4_half(__m256i acc, __m256i u, __m256i s) {
    asm(VNNI("vpdpbusd") : "+x"(acc) : "x"(u), "x"(s));
    return acc;
}
INLINE __m256i dot2_half(__m256i acc, __m256i a, __m256i b) {
    asm(VNNI("vpdpwssd") : "+x"(acc) : "x"(a), "x"(b));
    return acc;
}
// acc + the sum of four products: unsigned bytes of `u`, signed bytes of `s`, in every lane.
INLINE I32 dot4(I32 acc, I32 u, I32 s) { return {dot4_half(acc.a, u.a, s.a), dot4_half(acc.b, u.b, s.b)}; }
// acc + the sum of two products of signed halves, in every lane.
INLINE I32 dot2(I32 acc, I32 a, I32 b) { return {dot2_half(acc.a, a.a, b.a), dot2_half(acc.b, a.b, b.b)}; }

}  // namespace vec

#undef VNNI
