// Products of sixteen rows and more in the tile registers of AMX: eight rows of integers of a group times the codes of
// half a tile of weights is one instruction.
//
// Codes lie as it wants them: vector i of a group, 16 outputs with four inputs each, is row i of the second factor. The
// first factor is a block of activations as it lies, 32 high bytes and 32 low bytes of every row: rows 2r and 2r + 1 of
// the result are the high and the low sums of row r. Coarse blocks have rows of high bytes only.
#pragma once

#include "linear/codes.h"
#include "linear/tile_registers.h"

namespace dots {

using fixed_point::Block;
using tile_registers::Shapes;

constexpr int TILE_ROWS = 16;  // of activations at a time: two blocks

// Shapes of registers 0-3: sums, 4 and 5: activations of two blocks, 6 and 7: codes of both halves of the tile.
template <class F, bool COARSE>
constexpr Shapes SHAPES = Shapes()
                              .set(0, 3, COARSE ? 8 : 16, 64)
                              .set(4, 5, COARSE ? 8 : 16, formats::GROUP / F::PARTS)
                              .set(6, 7, 8 / F::PARTS, 64);

// Whether codes are bytes in the tile of weights, too.
template <class F>
constexpr bool ARE_BYTES = std::is_same_v<typename F::Codes, formats::Bytes>;

// The codes of one part of a group, of both halves of a tile: rows of 64 bytes.
template <class F>
class CodeRows {
  public:
    INLINE explicit CodeRows(const Codes<F>& codes) {
        for (int t = 0; t < 2; t++) {
            if constexpr (ARE_BYTES<F>) {
                rows_[t] = F::codes(codes.record + t * F::RECORD, codes.group) + 64 * codes.first();
            } else {
                UNROLL for (int n = 0; n < Codes<F>::COUNT; n++)
                    storei(unpacked_[t] + 64 * n, codes.at(t, codes.first() + n));
                rows_[t] = unpacked_[t];
            }
        }
    }
    INLINE const uint8_t* of(int t) const { return rows_[t]; }

  private:
    alignas(64) uint8_t unpacked_[2][ARE_BYTES<F> ? 1 : 64 * Codes<F>::COUNT];
    const uint8_t* rows_[2];
};

// Sums of TILE_ROWS rows of both halves of the tile: [block][half][row of the block (, high and low)][output].
template <bool COARSE>
struct TileSums {
    alignas(64) int32_t sums[2][2][COARSE ? 8 : 16][HALF];

    INLINE I32 at(int row, int t) const {
        const auto& found = sums[row / 8][t];
        if constexpr (COARSE) return loadi(found[row % 8]);
        else return add(shl<8>(loadi(found[2 * (row % 8)])), loadi(found[2 * (row % 8) + 1]));
    }
};

// Of the blocks x and next. The registers have SHAPES<F, COARSE>, and 6 and 7 hold the codes.
template <class F, bool COARSE>
INLINE void tile_sums_of(const Block* x, const Block* next, int part, TileSums<COARSE>& out) {
    constexpr int STRIDE = COARSE ? 64 : 32;
    int first = part * formats::GROUP / F::PARTS;
    TILE_MEMORY;
    _tile_loadd(4, x->integers[0] + first, STRIDE);
    _tile_loadd(5, next->integers[0] + first, STRIDE);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
    _tile_stored(0, out.sums[0][0], 64);
    _tile_stored(1, out.sums[0][1], 64);
    _tile_stored(2, out.sums[1][0], 64);
    _tile_stored(3, out.sums[1][1], 64);
    TILE_MEMORY;
}

template <class F>
INLINE void load_codes(const CodeRows<F>& codes) {
    TILE_MEMORY;
    _tile_loadd(6, codes.of(0), 64);
    _tile_loadd(7, codes.of(1), 64);
}

}  // namespace dots
