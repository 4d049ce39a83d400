// Vectors of 16 lanes, written once for every instruction-set level.
//
// All arithmetic is IEEE and in one order: a fused multiply-add is always `fma`, a sum over lanes is always the same
// tree, and compilers must not contract (-ffp-contract=off). A kernel written with these types therefore computes the
// same bits with AVX-512, with AVX2 and with plain C++.
//
// A level is a file vec_LEVEL.h that defines the same names: the types F32, I32 and Wide, what loads, stores and
// computes with them, `transpose` and `held`. build.py says which one with a macro; nothing is guessed from the
// compiler. Where a kernel has another shape for other registers it asks VEC_512 (32 registers of 16 lanes), VEC_256 (16
// registers of 8 lanes) or VEC_128 (32 registers of 4 lanes), and VEC_PAIRS where no instruction sums products of bytes
// in 32 bits: `dot4` is slow there, and `dot2` is not. VEC_TILES: there are tile registers (linear/tile_registers.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))

namespace vec {

constexpr int LANES = 16;

}  // namespace vec

// Every loop over accumulators is unrolled with this, so that they stay in registers (plain C++ has none that fit).
#if defined(STRETTO_LEVEL_GENERIC)
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(STRETTO_LEVEL_AMX)
#define VEC_512
#define VEC_TILES
#define VEC_LEVEL "amx"
#include "vec_avx512.h"
#elif defined(STRETTO_LEVEL_AVX512)
#define VEC_512
#define VEC_LEVEL "avx512"
#include "vec_avx512.h"
#elif defined(STRETTO_LEVEL_AVX_VNNI)
#define VEC_256
#define VEC_LEVEL "avx_vnni"
#include "vec_avx_vnni.h"
#elif defined(STRETTO_LEVEL_AVX2)
#define VEC_256
#define VEC_PAIRS
#define VEC_LEVEL "avx2"
#include "vec_avx2.h"
#elif defined(STRETTO_LEVEL_NEON) || defined(STRETTO_LEVEL_NEON_I8MM)
#define VEC_128
#if defined(STRETTO_LEVEL_NEON_I8MM)
#define VEC_I8MM
#define VEC_LEVEL "neon_i8mm"
#else
#define VEC_LEVEL "neon"
#endif
#include "vec_neon.h"
#elif defined(STRETTO_LEVEL_GENERIC)
#define VEC_LEVEL "generic"
#include "vec_generic.h"
#else
#error "one of STRETTO_LEVEL_... must be defined: see LEVELS of build.py"
#endif

namespace vec {

constexpr const char* LEVEL = VEC_LEVEL;

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
