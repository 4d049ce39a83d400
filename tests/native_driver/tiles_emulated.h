// What AMX's tile instructions do, in plain C++, for CPUs without them. Stops where a processor would refuse.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace tiles_emulated {

struct State {
    bool is_shaped = false;
    uint16_t row_bytes[8] = {};
    uint8_t rows[8] = {};
    uint8_t bytes[8][16][64] = {};
};
inline thread_local State state;

[[noreturn]] inline void refuse(const char* what) {
    std::fprintf(stderr, "tiles: %s\n", what);
    std::abort();
}

inline void load_shapes(const void* from) {
    const uint8_t* p = static_cast<const uint8_t*>(from);
    if (p[0] != 1 || p[1] != 0) refuse("palette 1 and start row 0 are expected");
    for (int i = 2; i < 16; i++)
        if (p[i]) refuse("a reserved byte is set");
    state = State();
    state.is_shaped = true;
    for (int i = 0; i < 16; i++) {
        uint16_t width;
        std::memcpy(&width, p + 16 + 2 * i, 2);
        uint8_t rows = p[48 + i];
        if (i >= 8 && (width || rows)) refuse("there are eight tiles");
        if (width > 64 || rows > 16 || (width == 0) != (rows == 0)) refuse("a shape that no tile has");
        if (i < 8) state.row_bytes[i] = width, state.rows[i] = rows;
    }
}

inline State& shaped(int tile) {
    if (!state.is_shaped || tile < 0 || tile > 7 || !state.rows[tile]) refuse("a tile without a shape");
    return state;
}

inline void zero(int tile) { std::memset(shaped(tile).bytes[tile], 0, sizeof state.bytes[tile]); }

inline void load(int tile, const void* from, int64_t stride) {
    zero(tile);
    for (int r = 0; r < state.rows[tile]; r++)
        std::memcpy(state.bytes[tile][r], static_cast<const uint8_t*>(from) + r * stride, state.row_bytes[tile]);
}

inline void store(int tile, void* to, int64_t stride) {
    shaped(tile);
    for (int r = 0; r < state.rows[tile]; r++)
        std::memcpy(static_cast<uint8_t*>(to) + r * stride, state.bytes[tile][r], state.row_bytes[tile]);
}

// sums[m][n] += the sum over k and four bytes of a[m][4 k + byte] (signed) b[k][4 n + byte] (unsigned)
inline void dot_signed_unsigned(int sums, int a, int b) {
    shaped(sums), shaped(a), shaped(b);
    if (sums == a || sums == b || a == b) refuse("tiles of a product must be three");
    if (state.rows[sums] != state.rows[a] || state.row_bytes[sums] != state.row_bytes[b] ||
        state.row_bytes[a] != 4 * state.rows[b])
        refuse("shapes of a product do not fit");
    for (int m = 0; m < state.rows[sums]; m++)
        for (int n = 0; n < state.row_bytes[sums] / 4; n++) {
            int32_t sum;
            std::memcpy(&sum, state.bytes[sums][m] + 4 * n, 4);
            for (int k = 0; k < state.rows[b]; k++)
                for (int byte = 0; byte < 4; byte++)
                    sum += int8_t(state.bytes[a][m][4 * k + byte]) * state.bytes[b][k][4 * n + byte];
            std::memcpy(state.bytes[sums][m] + 4 * n, &sum, 4);
        }
}

}  // namespace tiles_emulated

// The compiler has them as macros.
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#define _tile_loadconfig(from) tiles_emulated::load_shapes(from)
#define _tile_release() (tiles_emulated::state = tiles_emulated::State())
#define _tile_zero(tile) tiles_emulated::zero(tile)
#define _tile_loadd(tile, from, stride) tiles_emulated::load(tile, from, stride)
#define _tile_stored(tile, to, stride) tiles_emulated::store(tile, to, stride)
#define _tile_dpbsud(sums, a, b) tiles_emulated::dot_signed_unsigned(sums, a, b)
