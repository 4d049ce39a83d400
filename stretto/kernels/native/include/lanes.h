// Sums over the lanes of many vectors at once: sixteen vectors, transposed, are lanes of sixteen others.
#pragma once

#include "vec.h"

namespace vec {

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
