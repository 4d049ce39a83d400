// What all forms of integer products share: the codes of a group of weights, and how many sums there are registers for.
#pragma once

#include "linear/fixed_point.h"

namespace dots {

using namespace vec;
using formats::HALF;

#if defined(VEC_512)
constexpr bool MANY_REGISTERS = true;  // for 32 sums of 16 lanes
#else
constexpr bool MANY_REGISTERS = false;
#endif

// Halves of a tile that R rows take at once. One row alone has registers left, and needs sums that do not wait for each
// other.
template <int R>
constexpr int HALVES = MANY_REGISTERS || R == 1 ? 2 : 1;

// Whether sums are of codes less 128, their zero point: of eight-bit codes where both factors must be signed.
template <class F>
#if defined(VEC_128)
constexpr bool IS_CENTRED = F::Codes::MAX > 127;
#else
constexpr bool IS_CENTRED = false;
#endif

template <int T, int R>
using Sums = I32[T][R];

template <int T, int R>
INLINE void clear(Sums<T, R>& sums) {
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int r = 0; r < R; r++) sums[t][r] = set1i(0);
}

// One part of one group of weights: its vectors of codes, four inputs each, of both halves of the tile.
template <class F>
struct Codes {
    static constexpr int COUNT = 8 / F::PARTS;
    const uint8_t* record;
    int group, part;

    INLINE I32 at(int t, int i) const { return F::Codes::at(F::codes(record + t * F::RECORD, group), i); }
    INLINE int first() const { return part * COUNT; }
};

// Four bytes of the integers of row r, as every level lays them: `at` bytes from the start of the row's 64.
INLINE I32 integers_at(const uint8_t* integers, int r, int at) { return four(integers + 64 * r + at); }

}  // namespace dots
