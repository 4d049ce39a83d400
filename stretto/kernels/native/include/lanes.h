// Sums over the lanes of many vectors at once: sixteen vectors, transposed, are lanes of sixteen others.
#pragma once

#include "vec.h"

namespace vec {

// transpose(x): rows to columns.

#if defined(__AVX512VNNI__)
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
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
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
#else
INLINE void transpose(I32 (&x)[16]) {
    I32 y[16];
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) y[j].v[i] = x[i].v[j];
    std::memcpy(x, y, sizeof y);
}
#endif

using Vectors = float[LANES][LANES];

// Every vector reduced over its lanes, in the order of `sum`: lane i of the result is of vector i.
template <class Function>
INLINE F32 reduce(const Vectors& vectors, Function f) {
    I32 x[LANES];
    UNROLL for (int i = 0; i < LANES; i++) x[i] = loadi(vectors[i]);
    transpose(x);
    UNROLL for (int half = 8; half; half /= 2)
        UNROLL for (int i = 0; i < half; i++) x[i] = bits(f(bits(x[i]), bits(x[i + half])));
    return bits(x[0]);
}

// Vectors from `first` on: zeros.
INLINE void clear(Vectors& x, int first) {
    for (int i = first; i < LANES; i++) store(x[i], set1(0.0f));
}

// What `reduce` takes: of numbers, and of bits as integers.
constexpr auto plus = [](F32 x, F32 y) { return add(x, y); };
constexpr auto greatest = [](F32 x, F32 y) { return max(x, y); };
constexpr auto plus_bits = [](F32 x, F32 y) { return bits(add(bits(x), bits(y))); };
constexpr auto greatest_bits = [](F32 x, F32 y) { return bits(max(bits(x), bits(y))); };

}  // namespace vec
