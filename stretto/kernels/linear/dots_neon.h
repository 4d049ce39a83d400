// Dot products of bytes on Arm, where both factors are signed. Codes of eight bits are taken less 128, which is the zero
// point of their formats: products.h then has nothing to subtract.
//
//     one row         `sdot`, which multiplies four inputs of four outputs with four bytes of a register
//     pairs of rows   `smmla` (FEAT_I8MM): eight inputs of two outputs times those of two rows, twice the products of one
//                     instruction; `sdot` without it
//
// All are assembly, and `in_order` keeps loads where they are written: gcc 12 would gather those of a whole group first
// and run out of registers.
#pragma once

#include "linear/codes.h"

namespace dots {

INLINE void in_order() { asm volatile("" ::: "memory"); }

template <class F>
INLINE I32 signed_codes(const Codes<F>& codes, int half, int i) {
    static_assert(!IS_CENTRED<F> || F::LOG_ZERO == 7);
    I32 w = codes.at(half, i);
    return IS_CENTRED<F> ? bxor(w, set1i(int32_t(0x80808080))) : w;
}

// -- rows one by one -----------------------------------------------------------------------------------------------------

// sum + the products of four bytes in every lane of w with bytes 4 LANE .. 4 LANE + 3 of x.
template <int LANE>
INLINE int32x4_t dot_lane(int32x4_t sum, int32x4_t w, int8x16_t x) {
    asm("sdot %0.4s, %1.16b, %2.4b[%3]" : "+w"(sum) : "w"(w), "w"(x), "i"(LANE));
    return sum;
}

template <int LANE, class F, int P, int T, int R>
INLINE void dot_rows(const Codes<F>& codes, int i, const int8x16_t (&x)[P][R], I32 (&sums)[P][T][R]) {
    UNROLL for (int t = 0; t < T; t++) {
        I32 w = signed_codes(codes, t, i + LANE);
        UNROLL for (int p = 0; p < P; p++)
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int v = 0; v < 4; v++)
                    sums[p][t][r].v[v] = dot_lane<LANE>(sums[p][t][r].v[v], w.v[v], x[p][r]);
    }
}

// sums[p] += codes * the bytes of plane `plane` + p: 0 the high ones, 1 the low ones.
template <class F, int P, int T, int R>
INLINE void add_planes(const Codes<F>& codes, const uint8_t* integers, int plane, I32 (&sums)[P][T][R]) {
    UNROLL for (int n = 0; n < Codes<F>::COUNT; n += 4) {
        int i = codes.first() + n;
        in_order();
        int8x16_t x[P][R];
        UNROLL for (int p = 0; p < P; p++)
            UNROLL for (int r = 0; r < R; r++)
                x[p][r] = vld1q_s8((const int8_t*)integers + 64 * r + 32 * (plane + p) + 4 * i);
        dot_rows<0>(codes, i, x, sums), dot_rows<1>(codes, i, x, sums);
        in_order();
        dot_rows<2>(codes, i, x, sums), dot_rows<3>(codes, i, x, sums);
    }
}

#if defined(VEC_I8MM)

// -- pairs of rows ---------------------------------------------------------------------------------------------------------

// sum + x0 w0, x0 w1, x1 w0, x1 w1, of eight bytes each.
INLINE int32x4_t dot_pairs(int32x4_t sum, int8x16_t x, int32x4_t w) {
    asm("smmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(x), "w"(w));
    return sum;
}

// Sums of one half of a tile and R rows: [pair of rows][pair of outputs].
template <int R>
struct PairSums {
    int32x4_t v[R / 2][8];

    INLINE PairSums() {
        UNROLL for (int r = 0; r < R / 2; r++)
            UNROLL for (int o = 0; o < 8; o++) v[r][o] = vdupq_n_s32(0);
    }

    template <class F>
    INLINE void add(const Codes<F>& codes, const uint8_t* integers, int plane) {
        UNROLL for (int n = 0; n < Codes<F>::COUNT; n += 2) {
            int i = codes.first() + n;
            in_order();
            int8x16_t x[R / 2];
            UNROLL for (int r = 0; r < R / 2; r++) {
                const int8_t* row = (const int8_t*)integers + 128 * r + 32 * plane + 4 * i;
                x[r] = vcombine_s8(vld1_s8(row), vld1_s8(row + 64));
            }
            I32 first = signed_codes(codes, 0, i), second = signed_codes(codes, 0, i + 1);
            UNROLL for (int q = 0; q < 4; q++) {
                int32x4_t low = vzip1q_s32(first.v[q], second.v[q]), high = vzip2q_s32(first.v[q], second.v[q]);
                UNROLL for (int r = 0; r < R / 2; r++) v[r][2 * q] = dot_pairs(v[r][2 * q], x[r], low);
                UNROLL for (int r = 0; r < R / 2; r++) v[r][2 * q + 1] = dot_pairs(v[r][2 * q + 1], x[r], high);
            }
        }
    }
    INLINE void times_256() {
        UNROLL for (int r = 0; r < R / 2; r++)
            UNROLL for (int o = 0; o < 8; o++) v[r][o] = vshlq_n_s32(v[r][o], 8);
    }
    INLINE void get(I32 (&rows)[1][R]) const {
        UNROLL for (int r = 0; r < R / 2; r++)
            UNROLL for (int q = 0; q < 4; q++) {
                int64x2_t a = vreinterpretq_s64_s32(v[r][2 * q]), b = vreinterpretq_s64_s32(v[r][2 * q + 1]);
                rows[0][2 * r].v[q] = vreinterpretq_s32_s64(vtrn1q_s64(a, b));
                rows[0][2 * r + 1].v[q] = vreinterpretq_s32_s64(vtrn2q_s64(a, b));
            }
    }
};

#endif

// acc[t][r] = the sum over the codes of half t of the tile, less 128 each where they are centred.
template <class F, int T, int R, bool COARSE>
INLINE void signed_sums_of(const Codes<F>& codes, const uint8_t* integers, I32 (&acc)[T][R]) {
    if constexpr (R == 1) {  // both planes at once: sums that do not wait for each other
        I32 sums[COARSE ? 1 : 2][T][R];
        UNROLL for (auto& plane : sums)
            UNROLL for (int t = 0; t < T; t++) plane[t][0] = set1i(0);
        add_planes<F>(codes, integers, 0, sums);
        UNROLL for (int t = 0; t < T; t++)
            acc[t][0] = COARSE ? sums[0][t][0] : vec::add(shl<8>(sums[0][t][0]), sums[COARSE ? 0 : 1][t][0]);
    } else {
#if defined(VEC_I8MM)
        static_assert(T == 1);
        PairSums<R> sums;
        sums.add(codes, integers, 0);
        if constexpr (!COARSE) sums.times_256(), sums.add(codes, integers, 1);
        sums.get(acc);
#else
        I32 sums[1][T][R];
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int r = 0; r < R; r++) sums[0][t][r] = set1i(0);
        add_planes<F>(codes, integers, 0, sums);
        if constexpr (!COARSE) {
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int r = 0; r < R; r++) sums[0][t][r] = shl<8>(sums[0][t][r]);
            add_planes<F>(codes, integers, 1, sums);
        }
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int r = 0; r < R; r++) acc[t][r] = sums[0][t][r];
#endif
    }
}

}  // namespace dots
