// Sixteen lanes of Arm's Advanced SIMD (AArch64): four registers. With byte dot products (FEAT_DotProd).
//
// Where Arm and x86 disagree, this level does as x86 does: the second operand of a maximum or minimum wins unless the
// first is strictly beyond it (also against NaN), and what no int32 can hold becomes INT32_MIN. One thing stays apart: a
// NaN is a NaN on every level, but its sign and payload are the processor's own.
#pragma once

#include <arm_neon.h>

namespace vec {

struct F32 { float32x4_t v[4]; };
struct I32 { int32x4_t v[4]; };
struct Wide { I32 high, low; };

// f of every register.
#define ALL1(f, x) {{f((x).v[0]), f((x).v[1]), f((x).v[2]), f((x).v[3])}}
#define ALL2(f, x, y) {{f((x).v[0], (y).v[0]), f((x).v[1], (y).v[1]), f((x).v[2], (y).v[2]), f((x).v[3], (y).v[3])}}

INLINE F32 set1(float x) { float32x4_t y = vdupq_n_f32(x); return {{y, y, y, y}}; }
INLINE I32 set1i(int32_t x) { int32x4_t y = vdupq_n_s32(x); return {{y, y, y, y}}; }
INLINE F32 load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
INLINE void store(float* p, F32 x) {
    vst1q_f32(p, x.v[0]), vst1q_f32(p + 4, x.v[1]), vst1q_f32(p + 8, x.v[2]), vst1q_f32(p + 12, x.v[3]);
}
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
INLINE int32x4_t load_bytes(const void* p, int i) { return vreinterpretq_s32_u8(vld1q_u8((const uint8_t*)p + 16 * i)); }
INLINE I32 loadi(const void* p) { return {{load_bytes(p, 0), load_bytes(p, 1), load_bytes(p, 2), load_bytes(p, 3)}}; }
INLINE void storei(void* p, I32 x) {
    for (int i = 0; i < 4; i++) vst1q_u8((uint8_t*)p + 16 * i, vreinterpretq_u8_s32(x.v[i]));
}
INLINE F32 add(F32 x, F32 y) { return ALL2(vaddq_f32, x, y); }
INLINE F32 sub(F32 x, F32 y) { return ALL2(vsubq_f32, x, y); }
INLINE F32 mul(F32 x, F32 y) { return ALL2(vmulq_f32, x, y); }
INLINE F32 div(F32 x, F32 y) { return ALL2(vdivq_f32, x, y); }
INLINE float32x4_t max4(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
INLINE float32x4_t min4(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
INLINE F32 max(F32 x, F32 y) { return ALL2(max4, x, y); }
INLINE F32 min(F32 x, F32 y) { return ALL2(min4, x, y); }
INLINE F32 abs(F32 x) { return ALL1(vabsq_f32, x); }
INLINE F32 fma(F32 x, F32 y, F32 z) {
    return {{vfmaq_f32(z.v[0], x.v[0], y.v[0]), vfmaq_f32(z.v[1], x.v[1], y.v[1]), vfmaq_f32(z.v[2], x.v[2], y.v[2]),
             vfmaq_f32(z.v[3], x.v[3], y.v[3])}};
}
INLINE F32 round_even(F32 x) { return ALL1(vrndnq_f32, x); }
INLINE F32 to_float(I32 x) { return ALL1(vcvtq_f32_s32, x); }
INLINE int32x4_t to_int4(float32x4_t x) {  // Arm saturates, and makes NaN 0
    return vbslq_s32(vcltq_f32(x, vdupq_n_f32(0x1p31f)), vcvtnq_s32_f32(x), vdupq_n_s32(INT32_MIN));
}
INLINE I32 to_int(F32 x) { return ALL1(to_int4, x); }
INLINE F32 bits(I32 x) { return ALL1(vreinterpretq_f32_s32, x); }
INLINE I32 bits(F32 x) { return ALL1(vreinterpretq_s32_f32, x); }
// Of unsigned lanes: to gcc, the sum of signed ones must not leave 32 bits.
INLINE int32x4_t add4(int32x4_t x, int32x4_t y) {
    return vreinterpretq_s32_u32(vaddq_u32(vreinterpretq_u32_s32(x), vreinterpretq_u32_s32(y)));
}
INLINE int32x4_t sub4(int32x4_t x, int32x4_t y) {
    return vreinterpretq_s32_u32(vsubq_u32(vreinterpretq_u32_s32(x), vreinterpretq_u32_s32(y)));
}
INLINE I32 add(I32 x, I32 y) { return ALL2(add4, x, y); }
INLINE I32 sub(I32 x, I32 y) { return ALL2(sub4, x, y); }
INLINE I32 max(I32 x, I32 y) { return ALL2(vmaxq_s32, x, y); }
INLINE I32 band(I32 x, I32 y) { return ALL2(vandq_s32, x, y); }
INLINE I32 bor(I32 x, I32 y) { return ALL2(vorrq_s32, x, y); }
INLINE I32 bxor(I32 x, I32 y) { return ALL2(veorq_s32, x, y); }
INLINE Wide wide_mul(I32 x, uint32_t factor) {
    Wide y;
    for (int i = 0; i < 4; i++) {
        uint32x4_t u = vreinterpretq_u32_s32(x.v[i]), f = vdupq_n_u32(factor);
        uint32x4_t first = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(u), vget_low_u32(f)));
        uint32x4_t last = vreinterpretq_u32_u64(vmull_high_u32(u, f));
        y.high.v[i] = vreinterpretq_s32_u32(vuzp2q_u32(first, last));
        y.low.v[i] = vreinterpretq_s32_u32(vuzp1q_u32(first, last));
    }
    return y;
}
template <int N> INLINE int32x4_t shl4(int32x4_t x) { return vshlq_n_s32(x, N); }
template <int N> INLINE int32x4_t shr4(int32x4_t x) {  // zeros come in
    if constexpr (N == 0) return x;
    else return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(x), N));
}
template <int N> INLINE I32 shl(I32 x) { return ALL1(shl4<N>, x); }
template <int N> INLINE I32 shr(I32 x) { return ALL1(shr4<N>, x); }
INLINE I32 widen(uint16x8_t x, uint16x8_t y) {
    return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(x))), vreinterpretq_s32_u32(vmovl_high_u16(x)),
             vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(y))), vreinterpretq_s32_u32(vmovl_high_u16(y))}};
}
INLINE I32 load_u8(const uint8_t* p) {
    uint8x16_t x = vld1q_u8(p);
    return widen(vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x));
}
INLINE I32 load_s8(const int8_t* p) {
    int8x16_t x = vld1q_s8(p);
    int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_high_s8(x);
    return {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)}};
}
INLINE I32 load_u16(const uint16_t* p) { return widen(vld1q_u16(p), vld1q_u16(p + 8)); }
INLINE F32 load_f16(const uint16_t* p) {
    float16x8_t x = vreinterpretq_f16_u16(vld1q_u16(p)), y = vreinterpretq_f16_u16(vld1q_u16(p + 8));
    return {{vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x), vcvt_f32_f16(vget_low_f16(y)), vcvt_high_f32_f16(y)}};
}
INLINE uint16x8_t low_halves(int32x4_t x, int32x4_t y) {
    return vuzp1q_u16(vreinterpretq_u16_s32(x), vreinterpretq_u16_s32(y));
}
INLINE void store_u16(uint16_t* p, I32 x) {
    vst1q_u16(p, low_halves(x.v[0], x.v[1])), vst1q_u16(p + 8, low_halves(x.v[2], x.v[3]));
}
INLINE void store_u8(uint8_t* p, I32 x) {  // low bytes
    uint8x16_t first = vreinterpretq_u8_u16(low_halves(x.v[0], x.v[1]));
    uint8x16_t last = vreinterpretq_u8_u16(low_halves(x.v[2], x.v[3]));
    vst1q_u8(p, vuzp1q_u8(first, last));
}
INLINE int32_t sum(I32 x) { return vaddvq_s32(add4(add4(x.v[0], x.v[1]), add4(x.v[2], x.v[3]))); }
INLINE int32_t highest(I32 x) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.v[0], x.v[1]), vmaxq_s32(x.v[2], x.v[3]))); }
// acc + the sum of four products: unsigned bytes of `u`, signed bytes of `s`, in every lane.
INLINE int32x4_t dot4_quarter(int32x4_t acc, int32x4_t u, int32x4_t s) {
#if defined(VEC_I8MM)
    return vusdotq_s32(acc, vreinterpretq_u8_s32(u), vreinterpretq_s8_s32(s));
#else  // both signed: u s = (u - 128) s + 128 s
    int8x16_t bytes = vreinterpretq_s8_s32(s), less = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(u), vdupq_n_u8(128)));
    int32x4_t sums = vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(1), bytes);
    return add4(vdotq_s32(acc, less, bytes), vshlq_n_s32(sums, 7));
#endif
}
INLINE I32 dot4(I32 acc, I32 u, I32 s) {
    return {{dot4_quarter(acc.v[0], u.v[0], s.v[0]), dot4_quarter(acc.v[1], u.v[1], s.v[1]),
             dot4_quarter(acc.v[2], u.v[2], s.v[2]), dot4_quarter(acc.v[3], u.v[3], s.v[3])}};
}
// acc + the sum of two products of signed halves, in every lane.
INLINE int32x4_t dot2_quarter(int32x4_t acc, int32x4_t x, int32x4_t y) {
    int16x8_t a = vreinterpretq_s16_s32(x), b = vreinterpretq_s16_s32(y);
    int32x4_t first = vmull_s16(vget_low_s16(a), vget_low_s16(b)), last = vmull_high_s16(a, b);
    return add4(acc, vpaddq_s32(first, last));
}
INLINE I32 dot2(I32 acc, I32 a, I32 b) {
    return {{dot2_quarter(acc.v[0], a.v[0], b.v[0]), dot2_quarter(acc.v[1], a.v[1], b.v[1]),
             dot2_quarter(acc.v[2], a.v[2], b.v[2]), dot2_quarter(acc.v[3], a.v[3], b.v[3])}};
}
// The entries of `table` whose numbers are the bytes of `x`, which are below 16.
INLINE I32 lookup(const uint8_t (&table)[16], I32 x) {
    uint8x16_t t = vld1q_u8(table);
    auto found = [&](int32x4_t y) { return vreinterpretq_s32_u8(vqtbl1q_u8(t, vreinterpretq_u8_s32(y))); };
    return ALL1(found, x);
}
INLINE F32 select_less(F32 x, F32 y, F32 yes, F32 no) {
    F32 r;
    for (int i = 0; i < 4; i++) r.v[i] = vbslq_f32(vcltq_f32(x.v[i], y.v[i]), yes.v[i], no.v[i]);
    return r;
}
// Bit i is set where x < y in lane i.
INLINE uint32_t lanes_less(F32 x, F32 y) {
    constexpr uint32_t BITS[4] = {1, 2, 4, 8};
    uint32x4_t bit = vld1q_u32(BITS);
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) r |= vaddvq_u32(vandq_u32(vcltq_f32(x.v[i], y.v[i]), bit)) << 4 * i;
    return r;
}
// `x` in registers: compilers would load it again for each product that shares it, and loads are the bound.
INLINE F32 held(F32 x) {
    asm("" : "+w"(x.v[0]), "+w"(x.v[1]), "+w"(x.v[2]), "+w"(x.v[3]));
    return x;
}
// Rows to columns, in blocks of four by four.
INLINE void transpose(I32 (&x)[16]) {
    I32 y[16];
    UNROLL for (int r = 0; r < 4; r++)
        UNROLL for (int c = 0; c < 4; c++) {
            int32x4_t a = x[4 * r].v[c], b = x[4 * r + 1].v[c], e = x[4 * r + 2].v[c], f = x[4 * r + 3].v[c];
            int64x2_t even0 = vreinterpretq_s64_s32(vtrn1q_s32(a, b)), odd0 = vreinterpretq_s64_s32(vtrn2q_s32(a, b));
            int64x2_t even1 = vreinterpretq_s64_s32(vtrn1q_s32(e, f)), odd1 = vreinterpretq_s64_s32(vtrn2q_s32(e, f));
            y[4 * c].v[r] = vreinterpretq_s32_s64(vtrn1q_s64(even0, even1));
            y[4 * c + 1].v[r] = vreinterpretq_s32_s64(vtrn1q_s64(odd0, odd1));
            y[4 * c + 2].v[r] = vreinterpretq_s32_s64(vtrn2q_s64(even0, even1));
            y[4 * c + 3].v[r] = vreinterpretq_s32_s64(vtrn2q_s64(odd0, odd1));
        }
    UNROLL for (int i = 0; i < 16; i++) x[i] = y[i];
}
#undef ALL1
#undef ALL2

}  // namespace vec
