// Products of rows in fixed point with tiles of quantized weights.
//
// Products with the weights' integers are integer dot products, whose sums are exact in any order; scales and minima
// follow in fp32, group after group. The bits of a row therefore depend on nothing but the row and the weights: not on
// other rows, on threads or on the instruction set.
#pragma once

#include "linear/dots.h"
#if defined(VEC_TILES)
#include "linear/dots_tiles.h"
#endif

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

// y + the outputs of one part of a group for row r of a block, of which `sum` are the products with the codes.
template <class F>
INLINE F32 add_scaled(F32 y, I32 sum, F32 scale, const Block& block, int r, int part) {
    if constexpr (F::LOG_ZERO >= 0 && !dots::IS_CENTRED<F>) {
        const int32_t* isum = block.isums[r];
        I32 total = F::PARTS == 2 ? set1i(isum[part]) : add(set1i(isum[0]), set1i(isum[1]));
        sum = sub(sum, shl<(F::LOG_ZERO < 0 ? 0 : F::LOG_ZERO)>(total));
    }
    return fma(to_float(sum), mul(scale, set1(block.scales[r])), y);
}

// Some groups of one tile for rows r0 .. r0 + R - 1 of a block, added to sums[r]. Both halves of the tile are taken
// together where there are registers for it, so that every load of an activation serves both.
template <class F, int R, bool COARSE>
INLINE void tile_rows(const uint8_t* tile, int groups, const Block* block, int r0, Ahead& ahead, float (*sums)[TILE]) {
    constexpr int T = dots::HALVES<R>;
    for (int first = 0; first < 2; first += T, tile += F::RECORD) {
        F32 y[T][R];
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int r = 0; r < R; r++) y[t][r] = load(sums[r] + HALF * (first + t));
        const uint8_t* record = tile;
        const Block* x = block;
        for (int base = 0; base < groups; base += F::GROUPS, record += 2 * F::RECORD)
            for (int g = 0; g < F::GROUPS; g++, x++) {
                ahead.fetch();
                UNROLL for (int part = 0; part < F::PARTS; part++) {
                    I32 acc[T][R];
                    dots::sums_of<F, T, R, COARSE>({record, g, part}, x->integers[r0], acc);
                    UNROLL for (int t = 0; t < T; t++) {
                        F32 scale = F::scale(record + t * F::RECORD, g, part);
                        UNROLL for (int r = 0; r < R; r++)
                            y[t][r] = add_scaled<F>(y[t][r], acc[t][r], scale, *x, r0 + r, part);
                    }
                }
                if constexpr (F::MINIMUM)
                    UNROLL for (int t = 0; t < T; t++) {
                        F32 minimum = F::minimum(record + t * F::RECORD, g);
                        UNROLL for (int r = 0; r < R; r++) y[t][r] = fma(minimum, set1(x->sums[r0 + r]), y[t][r]);
                    }
            }
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int r = 0; r < R; r++) store(sums[r] + HALF * (first + t), y[t][r]);
    }
}

// Rows of a panel share a tile while it lies in the nearest cache, a few groups at a time.
#if defined(VEC_TILES)
constexpr int PANEL = 64;  // codes are unpacked once for all of them
#else
constexpr int PANEL = 32;
#endif
constexpr int DEPTH = 8;

struct Part {
    const uint8_t* tile;   // of these groups
    const Block* blocks;   // of these groups, for the first rows of the panel
    int64_t block_stride;  // from eight rows to the next
    int groups;
    float (*sums)[TILE];   // of every row of the panel, so far
    Ahead ahead;
#if defined(VEC_TILES)
    tile_registers::Shaped* shaped;
#endif
};

#if defined(VEC_TILES)
// Rows row .. end - 1, a multiple of TILE_ROWS, which begin a block.
template <class F, bool COARSE>
__attribute__((noinline)) void tiled_rows(Part& part, int64_t row, int64_t end) {
    part.shaped->become(dots::SHAPES<F, COARSE>);
    const uint8_t* record = part.tile;
    const Block* x = part.blocks + row / 8 * part.block_stride;
    for (int base = 0; base < part.groups; base += F::GROUPS, record += 2 * F::RECORD)
        for (int g = 0; g < F::GROUPS; g++, x++) {
            part.ahead.fetch();
            for (int p = 0; p < F::PARTS; p++) {
                dots::CodeRows<F> codes({record, g, p});
                dots::load_codes(codes);
                F32 scale[2], minimum[2];
                for (int t = 0; t < 2; t++) {
                    scale[t] = F::scale(record + t * F::RECORD, g, p);
                    minimum[t] = F::minimum(record + t * F::RECORD, g);
                }
                const Block* first = x;
                for (int64_t r = row; r < end; r += dots::TILE_ROWS, first += 2 * part.block_stride) {
                    dots::TileSums<COARSE> found;
                    dots::tile_sums_of<F, COARSE>(first, first + part.block_stride, p, found);
                    for (int i = 0; i < dots::TILE_ROWS; i++) {
                        const Block& block = first[i / 8 * part.block_stride];
                        for (int t = 0; t < 2; t++) {
                            float* sums = part.sums[r + i] + HALF * t;
                            F32 y = add_scaled<F>(load(sums), found.at(i, t), scale[t], block, i % 8, p);
                            if (F::MINIMUM && p == F::PARTS - 1) y = fma(minimum[t], set1(block.sums[i % 8]), y);
                            store(sums, y);
                        }
                    }
                }
            }
        }
}
#endif

template <class F, int R, bool COARSE>
__attribute__((noinline)) void quantized_rows(Part& part, int64_t row) {
    Ahead ahead = part.ahead;
    const Block* block = part.blocks + row / 8 * part.block_stride;
    tile_rows<F, R, COARSE>(part.tile, part.groups, block, int(row % 8), ahead, part.sums + row);
    part.ahead = ahead;
}

// Rows row .. end - 1 of a panel, four, two or one at a time: never across two blocks of eight. In tile registers, as
// many blocks as there are two by two.
template <class F, bool COARSE>
int64_t quantized_run(Part& part, int64_t row, int64_t end) {
    while (row < end) {
#if defined(VEC_TILES)
        int64_t tiled = row % 8 ? 0 : (end - row) / dots::TILE_ROWS * dots::TILE_ROWS;
        if (tiled) {
            tiled_rows<F, COARSE>(part, row, row + tiled), row += tiled;
            continue;
        }
#endif
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

// How often a tile is read for n rows: each time fetches its share of what follows.
inline int64_t num_passes(int64_t n) {
#if defined(VEC_TILES)
    if (n >= dots::TILE_ROWS) return 1 + num_passes(n % dots::TILE_ROWS);
#endif
    return n / 4 * (2 / dots::HALVES<4>) + n / 2 % 2 * (2 / dots::HALVES<2>) + n % 2 * (2 / dots::HALVES<1>);
}

// sums[r]: the outputs of one tile of `bytes` for row r of the panel.
template <class F>
void tile_sums(const uint8_t* tile, int64_t bytes, const Panel& p, float (&sums)[PANEL][TILE]) {
    int64_t n = p.count(), fine = p.coarse - p.first;
    int ahead = p.rows == 1 ? PREFETCH : PREFETCH_PARTS;
    Ahead next = {tile + ahead, 0, p.rows <= PANEL};
    if (p.first == 0) next.lines = int(ceil_div(bytes / p.groups, 64 * num_passes(n)));
    std::memset(sums, 0, size_t(n) * sizeof *sums);
#if defined(VEC_TILES)
    tile_registers::Shaped shaped;
    Part part = {tile, p.fixed + p.first / 8 * p.groups, p.groups, 0, sums, next, &shaped};
#else
    Part part = {tile, p.fixed + p.first / 8 * p.groups, p.groups, 0, sums, next};
#endif
    for (int g = 0; g < p.groups; g += DEPTH) {
        part.groups = p.groups - g < DEPTH ? p.groups - g : DEPTH;
        int64_t r = quantized_run<F, false>(part, 0, n < fine ? n : fine);
        quantized_run<F, true>(part, r, n);
        part.tile += int64_t(part.groups / F::GROUPS) * 2 * F::RECORD;
        part.blocks += part.groups;
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
