// Integer dot products of some rows of activations with the codes of a group of weights, in the form that is the fastest
// of a level. Sums of integers have no order, so all forms give the same.
//
//     bytes together     both halves of a tile and both bytes of the integers at once: needs many registers
//     bytes in turn      one half of a tile, the high bytes of the integers, then the low ones
//     pairs              one half of a tile, 16-bit integers: where no instruction multiplies bytes into 32 bits
//     signed bytes       dots_neon.h
//
// Sixteen rows and more have a form of their own in tile registers: dots_tiles.h.
#pragma once

#include "linear/codes.h"
#if defined(VEC_128)
#include "linear/dots_neon.h"
#endif

namespace dots {

// acc += codes * bytes, those from `at` on.
template <class F, int T, int R>
INLINE void add_bytes(const Codes<F>& codes, const uint8_t* integers, int at, Sums<T, R>& acc) {
    UNROLL for (int n = 0; n < Codes<F>::COUNT; n++) {
        int i = codes.first() + n;
        I32 w[T];
        UNROLL for (int t = 0; t < T; t++) w[t] = codes.at(t, i);
        UNROLL for (int r = 0; r < R; r++) {
            I32 x = integers_at(integers, r, at + 4 * i);
            UNROLL for (int t = 0; t < T; t++) acc[t][r] = dot4(acc[t][r], w[t], x);
        }
    }
}

// acc = 256 acc + codes * low bytes
template <class F, int T, int R>
INLINE void add_low_bytes(const Codes<F>& codes, const uint8_t* integers, Sums<T, R>& acc) {
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int r = 0; r < R; r++) acc[t][r] = shl<8>(acc[t][r]);
    add_bytes<F, T, R>(codes, integers, 32, acc);
}

// Both bytes of the integers at once.
template <class F, int T, int R>
INLINE void add_both_bytes(const Codes<F>& codes, const uint8_t* integers, Sums<T, R>& acc) {
    I32 low[T][R];
    clear<T, R>(low);
    UNROLL for (int n = 0; n < Codes<F>::COUNT; n++) {
        int i = codes.first() + n;
        I32 w[T];
        UNROLL for (int t = 0; t < T; t++) w[t] = codes.at(t, i);
        UNROLL for (int r = 0; r < R; r++) {
            I32 high = integers_at(integers, r, 4 * i), rest = integers_at(integers, r, 32 + 4 * i);
            UNROLL for (int t = 0; t < T; t++) {
                acc[t][r] = dot4(acc[t][r], w[t], high);
                low[t][r] = dot4(low[t][r], w[t], rest);
            }
        }
    }
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int r = 0; r < R; r++) acc[t][r] = add(shl<8>(acc[t][r]), low[t][r]);
}

#if defined(VEC_PAIRS)

template <class F, int T, int R>
INLINE void add_pairs(const Codes<F>& codes, const uint8_t* integers, Sums<T, R>& acc) {
    UNROLL for (int n = 0; n < Codes<F>::COUNT; n++)
        UNROLL for (int t = 0; t < T; t++) {
            int i = codes.first() + n;
            I32 w = codes.at(t, i), even = even_bytes(w), odd = odd_bytes(w);
            UNROLL for (int r = 0; r < R; r++) acc[t][r] = dot2(acc[t][r], even, integers_at(integers, r, 8 * i));
            UNROLL for (int r = 0; r < R; r++) acc[t][r] = dot2(acc[t][r], odd, integers_at(integers, r, 8 * i + 4));
        }
}

// Vectors of codes whose products with coarse integers (up to 127) fit 16 bits, two products to each; 0: not even one.
template <class F>
constexpr int CHAIN = 32767 / (2 * 127 * F::Codes::MAX) > 8 ? 8 : 32767 / (2 * 127 * F::Codes::MAX);

template <class F, int T, int R>
INLINE void add_coarse(const Codes<F>& codes, const uint8_t* integers, Sums<T, R>& acc) {
    constexpr int LENGTH = CHAIN<F> < Codes<F>::COUNT ? CHAIN<F> : Codes<F>::COUNT;
    static_assert(Codes<F>::COUNT % LENGTH == 0);
    UNROLL for (int n = 0; n < Codes<F>::COUNT; n += LENGTH) {
        I32 narrow[T][R];
        clear<T, R>(narrow);
        UNROLL for (int m = 0; m < LENGTH; m++)
            UNROLL for (int t = 0; t < T; t++) {
                int i = codes.first() + n + m;
                I32 w = codes.at(t, i);
                UNROLL for (int r = 0; r < R; r++)
                    narrow[t][r] = dot_bytes(narrow[t][r], w, integers_at(integers, r, 4 * i));
            }
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int r = 0; r < R; r++) acc[t][r] = add(acc[t][r], add_halves(narrow[t][r]));
    }
}

#endif

// acc[t][r] = the sum over the codes of half t of the tile, for R rows whose integers lie 64 bytes apart.
template <class F, int T, int R, bool COARSE>
INLINE void sums_of(const Codes<F>& codes, const uint8_t* integers, Sums<T, R>& acc) {
#if defined(VEC_128)
    return signed_sums_of<F, T, R, COARSE>(codes, integers, acc);
#endif
    clear<T, R>(acc);
#if defined(VEC_PAIRS)
    if constexpr (!COARSE) add_pairs<F, T, R>(codes, integers, acc);
    else if constexpr (CHAIN<F> > 0) add_coarse<F, T, R>(codes, integers, acc);
    else add_bytes<F, T, R>(codes, integers, 0, acc);
#else
    if constexpr (COARSE) {
        add_bytes<F, T, R>(codes, integers, 0, acc);
    } else if constexpr (MANY_REGISTERS || R <= 2) {
        add_both_bytes<F, T, R>(codes, integers, acc);
    } else {
        add_bytes<F, T, R>(codes, integers, 0, acc);
        add_low_bytes<F, T, R>(codes, integers, acc);
    }
#endif
}

}  // namespace dots
