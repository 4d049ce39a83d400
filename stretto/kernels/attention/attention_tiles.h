// The pieces of attention.cpp that know vectors and nothing of rows: tiles of keys and values, products with them, and the
// merging of softmaxes.
#pragma once

#include <cfloat>
#include <type_traits>

#include "functions.h"
#include "lanes.h"
#include "op.h"
#include "pages.h"

static_assert(PAGE_TOKENS == vec::LANES, "a page of keys is a row of vectors");

namespace tiles {

using namespace vec;
using namespace pages;

constexpr int BLOCK = PAGE_TOKENS, SPLIT = 256, TILE = 64;  // keys: of a vector and a page, of a softmax, of a tile
alignas(64) constexpr float LANE[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Accumulators: 16 of 32 registers, or as many as fit into 16 half as wide.
#if defined(VEC_512)
constexpr int QK_LINES = 4, QK_BLOCKS = 2, PV_LINES = 4, PV_VECTORS = 4;
#else
constexpr int QK_LINES = 3, QK_BLOCKS = 1, PV_LINES = 6, PV_VECTORS = 1;
#endif

// -- values where they are stored, and as fp32 in a tile -------------------------------------------------------------

// Values of one head where they are stored.
template <class P>
struct Stored {
    const typename P::Element* pages;
    int64_t row_size;
    const int64_t* locations;  // of every key
    const float* scales;       // of formats that have some: [P, PAGE_TOKENS, heads], from this head on
    int64_t heads;

    INLINE const typename P::Element* row(int j) const { return pages + locations[j] * row_size; }
    INLINE Stored from(int j) const { return {pages, row_size, locations + j, scales, heads}; }
    INLINE F32 at(int j, int d) const { return scaled(j, P::lanes(row(j) + d)); }
    INLINE F32 some(int j, int d, int n) const { return scaled(j, P::some_lanes(row(j) + d, n)); }
    INLINE F32 scaled(int j, F32 x) const {
        if constexpr (P::has_scales) return mul(x, set1(scales[locations[j] * heads]));
        else return x;
    }
};

// Values in a tile.
struct Tiled {
    const float* values;
    int64_t width;

    INLINE Tiled from(int j) const { return {values + j * width, width}; }
    INLINE F32 at(int j, int d) const { return load(values + j * width + d); }
};

// Values as [key][size rounded up to vectors], zeros behind.
template <class P>
void tile_values(Stored<P> values, int count, int size, float* out) {
    for (int j = 0; j < count; j++) {
        int d = 0;
        for (; d + LANES <= size; d += LANES, out += LANES) store(out, values.at(j, d));
        if (d < size) store(out, values.some(j, d, size - d)), out += LANES;
    }
}

// -- products ---------------------------------------------------------------------------------------------------------

// Scores of R lines and N pages of keys, [size][16] each. q: [R][size]; s: [R][stride].
template <class P, int R, int N>
void scores(
    const float* q, const typename P::Element* const* pages, int64_t size, F32 scale, float* s, int64_t stride) {
    const typename P::Element* keys[N];
    UNROLL for (int n = 0; n < N; n++) keys[n] = pages[n];
    F32 acc[2][R][N];
    UNROLL for (int c = 0; c < 2; c++)
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int n = 0; n < N; n++) acc[c][r][n] = set1(0.0f);
    auto element = [&](int64_t d, F32 (&sums)[R][N]) {
        F32 k[N];
        UNROLL for (int n = 0; n < N; n++) k[n] = held(P::lanes(keys[n] + d * BLOCK));
        UNROLL for (int r = 0; r < R; r++) {
            F32 x = set1(q[r * size + d]);
            UNROLL for (int n = 0; n < N; n++) sums[r][n] = fma(k[n], x, sums[r][n]);
        }
    };
    int64_t d = 0;
    for (; d + 2 <= size; d += 2) element(d, acc[0]), element(d + 1, acc[1]);
    if (d < size) element(d, acc[0]);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < N; n++)
            store(s + r * stride + n * BLOCK, mul(scale, add(acc[0][r][n], acc[1][r][n])));
}

// o += p v for R lines, elements d .. d + 16 N - 1 and `count` keys in order. p: [R][SPLIT]; o: [R][width].
template <int R, int N, class Values>
void outputs(const float* p, Values values, int count, int d, int64_t width, float* o) {
    F32 acc[R][N];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < N; n++) acc[r][n] = load(o + r * width + n * LANES);
    for (int j = 0; j < count; j++) {
        F32 v[N];
        UNROLL for (int n = 0; n < N; n++) v[n] = held(values.at(j, d + n * LANES));
        UNROLL for (int r = 0; r < R; r++) {
            F32 x = set1(p[r * SPLIT + j]);
            UNROLL for (int n = 0; n < N; n++) acc[r][n] = fma(v[n], x, acc[r][n]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < N; n++) store(o + r * width + n * LANES, acc[r][n]);
}

// Calls f(R) with R lines as a constant, at most MOST of them.
template <int MOST, class Function>
INLINE void with_lines(int lines, Function f) {
    if constexpr (MOST > 1) {
        if (lines < MOST) return with_lines<MOST - 1>(lines, f);
    }
    f(std::integral_constant<int, MOST>());
}

// m and l of two sets of keys, and the factors of their outputs.
struct Merged {
    F32 m, l, old_share, new_share;

    void store(float* to_m, float* to_l, float* to_old, float* to_new) const {
        vec::store(to_m, m), vec::store(to_l, l), vec::store(to_old, old_share), vec::store(to_new, new_share);
    }
};

INLINE Merged merge(F32 m, F32 l, F32 new_m, F32 new_l) {
    F32 top = max(m, new_m), x = exp(sub(m, top)), y = exp(sub(new_m, top));
    return {top, fma(l, x, mul(new_l, y)), x, y};
}

INLINE F32 merged(F32 o, float old_share, F32 new_o, float new_share) {
    return fma(o, set1(old_share), mul(new_o, set1(new_share)));
}

INLINE float log_sum(float m, float l) { return float(double(m) + std::log(double(l))); }

// Elements d .. d + 15 of `size`.
INLINE F32 get(const float* x, int d, int size) { return d + LANES <= size ? load(x + d) : load_n(x + d, size - d); }
INLINE void put(float* x, int d, int size, F32 y) {
    if (d + LANES <= size) store(x + d, y);
    else store_n(x + d, y, size - d);
}

}  // namespace tiles
