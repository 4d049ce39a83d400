// Products of rows in fixed point with tiles of quantized weights.
//
// Products with the weights' integers are integer dot products, whose sums are exact in any order; scales and minima
// follow in fp32, group after group. The bits of a row therefore depend on nothing but the row and the weights: not on
// other rows, on threads or on the instruction set.
#pragma once

#include "linear/fixed_point.h"

namespace products {

using namespace vec;
using namespace formats;
using fixed_point::Block;

constexpr int64_t CHUNK_BYTES = 64 << 10;  // of weights: a microsecond of one core's share of the bandwidth
constexpr int MANY_ROWS = 16;              // whose chunks take long enough to be small
constexpr int PREFETCH = 4096, PREFETCH_PARTS = 6144;  // bytes ahead: of one row, of rows that go part by part

// Memory that comes next, fetched while there is something to compute: `lines` cache lines at a time. What is read once
// passes by the outer caches, which keep what others need between two steps: Python, keys and values, activations.
struct Ahead {
    const uint8_t* next;
    int lines;
    bool is_read_once;

    INLINE void fetch() {
        for (int i = 0; i < lines; i++, next += 64) {
            if (is_read_once) __builtin_prefetch(next, 0, 0);
            else __builtin_prefetch(next, 0, 3);
        }
    }
};

// Some groups of one tile for rows r0 .. r0 + R - 1 of a block, added to y. Every load of an activation serves both
// halves of the tile, and there are enough accumulators that no dot product waits for the one before it. Integers: the
// order is free.
template <class F, int R, bool COARSE>
INLINE void tile_rows(const uint8_t* tile, int groups, const Block* block, int r0, Ahead& ahead, F32 (&y)[2][R]) {
    constexpr int N = 8 / F::PARTS;
    const uint8_t* planes = block->planes[r0];
    const float *scales = block->scales + r0, *sums = block->sums + r0;
    const int32_t* isums = block->isums[r0];
    for (int base = 0; base < groups; base += F::GROUPS, tile += 2 * F::RECORD) {
        for (int g = 0; g < F::GROUPS; g++) {
            ahead.fetch();
            UNROLL for (int part = 0; part < F::PARTS; part++) {
                I32 high[2][R], low[2][R];
                UNROLL for (int t = 0; t < 2; t++)
                    UNROLL for (int r = 0; r < R; r++) high[t][r] = low[t][r] = set1i(0);
                UNROLL for (int i = part * N; i < part * N + N; i++) {
                    I32 w[2];
                    UNROLL for (int t = 0; t < 2; t++) w[t] = F::Codes::at(F::codes(tile + t * F::RECORD, g), i);
                    UNROLL for (int r = 0; r < R; r++) {
                        I32 h = four(planes + 64 * r + 4 * i), l = four(planes + 64 * r + 32 + 4 * i);
                        UNROLL for (int t = 0; t < 2; t++) {
                            high[t][r] = dot4(high[t][r], w[t], h);
                            if constexpr (!COARSE) low[t][r] = dot4(low[t][r], w[t], l);
                        }
                    }
                }
                UNROLL for (int t = 0; t < 2; t++) {
                    F32 scale = F::scale(tile + t * F::RECORD, g, part);
                    UNROLL for (int r = 0; r < R; r++) {
                        I32 acc = COARSE ? high[t][r] : add(shl<8>(high[t][r]), low[t][r]);
                        if constexpr (F::LOG_ZERO >= 0) {
                            const int32_t* isum = isums + 2 * r;
                            I32 total = F::PARTS == 2 ? set1i(isum[part]) : add(set1i(isum[0]), set1i(isum[1]));
                            acc = sub(acc, shl<(F::LOG_ZERO < 0 ? 0 : F::LOG_ZERO)>(total));
                        }
                        y[t][r] = fma(to_float(acc), mul(scale, set1(scales[r])), y[t][r]);
                    }
                }
            }
            if constexpr (F::MINIMUM)
                UNROLL for (int t = 0; t < 2; t++) {
                    F32 minimum = F::minimum(tile + t * F::RECORD, g);
                    UNROLL for (int r = 0; r < R; r++) y[t][r] = fma(minimum, set1(sums[r]), y[t][r]);
                }
            planes += sizeof(Block), scales += sizeof(Block) / 4, sums += sizeof(Block) / 4, isums += sizeof(Block) / 4;
        }
    }
}

// Rows of a panel share a tile while it lies in the nearest cache, a few groups at a time.
constexpr int PANEL = 32, DEPTH = 8;

struct Part {
    const uint8_t* tile;   // of these groups
    const Block* blocks;   // of these groups, for the first rows of the panel
    int64_t block_stride;  // from eight rows to the next
    int groups;
    bool is_first;
    float (*sums)[TILE];  // of every row of the panel, so far
    Ahead ahead;
};

template <class F, int R, bool COARSE>
__attribute__((noinline)) void quantized_rows(Part& part, int64_t row) {
    F32 y[2][R];
    float(*sums)[TILE] = part.sums + row;
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < 2; t++) y[t][r] = part.is_first ? set1(0.0f) : load(sums[r] + HALF * t);
    Ahead ahead = part.ahead;
    tile_rows<F, R, COARSE>(part.tile, part.groups, part.blocks + row / 8 * part.block_stride, int(row % 8), ahead, y);
    part.ahead = ahead;
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < 2; t++) store(sums[r] + HALF * t, y[t][r]);
}

// Rows row .. end - 1 of a panel, four, two or one at a time: never across two blocks of eight.
template <class F, bool COARSE>
int64_t quantized_run(Part& part, int64_t row, int64_t end) {
    while (row < end) {
        if (row % 4 == 0 && row + 4 <= end) quantized_rows<F, 4, COARSE>(part, row), row += 4;
        else if (row % 2 == 0 && row + 2 <= end) quantized_rows<F, 2, COARSE>(part, row), row += 2;
        else quantized_rows<F, 1, COARSE>(part, row), row += 1;
    }
    return row;
}

// A panel: up to PANEL rows of a step, from `first` on. Those from row `coarse` of the step on are in coarse form.
struct Panel {
    const Block* fixed;  // of all rows of the step
    int groups;          // of 32 inputs
    int64_t first, rows, coarse;

    int64_t count() const { return rows - first < PANEL ? rows - first : PANEL; }
};

// sums[r]: the outputs of one tile of `bytes` for row r of the panel.
template <class F>
void tile_sums(const uint8_t* tile, int64_t bytes, const Panel& p, float (&sums)[PANEL][TILE]) {
    int64_t n = p.count(), fine = p.coarse - p.first;
    int ahead = p.rows == 1 ? PREFETCH : PREFETCH_PARTS;
    Ahead next = {tile + ahead, 0, p.rows <= PANEL};
    // A tile is read in as many passes as there are blocks of rows; each fetches its share of what follows.
    if (p.first == 0) next.lines = int(ceil_div(bytes / p.groups, 64 * (n / 4 + n / 2 % 2 + n % 2)));
    Part part = {tile, p.fixed + p.first / 8 * p.groups, p.groups, 0, true, sums, next};
    for (int g = 0; g < p.groups; g += DEPTH) {
        part.groups = p.groups - g < DEPTH ? p.groups - g : DEPTH;
        int64_t r = quantized_run<F, false>(part, 0, n < fine ? n : fine);
        quantized_run<F, true>(part, r, n);
        part.tile += int64_t(part.groups / F::GROUPS) * 2 * F::RECORD;
        part.blocks += part.groups;
        part.is_first = false;
    }
    if constexpr (F::ROW_BYTES > 0)
        for (int64_t r = 0; r < n; r++)
            for (int t = 0; t < TILE; t += HALF)  // scales lie behind the records
                store(sums[r] + t, mul(load(sums[r] + t), load((const float*)part.tile + t)));
}

// Chunks of nearly the same number of tiles, an even number of them where there are enough: two threads end together.
inline int64_t num_chunks(int64_t rows, int64_t tiles, int64_t bytes) {
    int64_t n = 2 * ceil_div(tiles * bytes, 2 * (rows < MANY_ROWS ? CHUNK_BYTES : CHUNK_BYTES / 4));
    return rows == 0 ? 0 : n < tiles ? n : tiles;
}

// The tiles [from, to) of chunks [first, last), of `chunks`.
struct TileRange {
    int64_t from, to;

    TileRange(int64_t first, int64_t last, int64_t chunks, int64_t tiles)
        : from(tiles * first / chunks), to(tiles * last / chunks) {}
    Span span(const uint8_t* start, int64_t bytes) const { return {start + from * bytes, (to - from) * bytes}; }
};

}  // namespace products
