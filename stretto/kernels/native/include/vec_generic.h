// Sixteen lanes in plain C++, for any CPU: also what every other level is compared with.
#pragma once

namespace vec {

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
INLINE I32 to_int(F32 a) {  // as x86 does, also with what no int32 can hold
    EACH(I32, a.v[i] >= -0x1p31f && a.v[i] < 0x1p31f ? int32_t(std::nearbyint(a.v[i])) : INT32_MIN);
}
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
INLINE F32 held(F32 x) { return x; }
// Rows to columns.
INLINE void transpose(I32 (&x)[16]) {
    I32 y[16];
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) y[j].v[i] = x[i].v[j];
    std::memcpy(x, y, sizeof y);
}
#undef EACH

}  // namespace vec
