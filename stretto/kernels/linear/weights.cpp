// Weights between the file and the products: repacked into the tiles of formats.h, and looked up row by row.
#include "linear/formats.h"
#include "op.h"

using namespace vec;
using namespace formats;

namespace {

// -- from the file's blocks to tiles -------------------------------------------------------------------------------------

// source: [d_out, row_bytes] as the codec stores it. Rows beyond d_out of the last tile become zeros.
struct PackArgs {
    int32_t d_in;
    int32_t d_out;
    int32_t format;
    int32_t unused;
    const uint8_t* source;
    int64_t row_bytes;
    uint8_t* tiles;
};

template <class F>
void pack_quantized(const PackArgs& a, int64_t tile, uint8_t* out) {
    uint8_t codes[F::GROUPS][HALF][GROUP];
    for (int base = 0; base < a.d_in / GROUP; base += F::GROUPS)
        for (int t = 0; t < 2; t++, out += F::RECORD) {
            int64_t first = tile * TILE + t * HALF;
            if (first + HALF > a.d_out) std::memset(out, 0, F::RECORD), std::memset(codes, 0, sizeof codes);
            for (int lane = 0; lane < HALF && first + lane < a.d_out; lane++) {
                const uint8_t* row = a.source + (first + lane) * a.row_bytes;
                F::block(row + F::ROW_BYTES + int64_t(base / F::GROUPS) * F::BLOCK_BYTES, out, lane, codes);
            }
            for (int g = 0; g < F::GROUPS; g++) F::Codes::pack(out + g * F::Codes::BYTES, codes[g]);
        }
    std::memset(out, 0, TILE * F::ROW_BYTES);
    for (int64_t lane = 0; lane < TILE && tile * TILE + lane < a.d_out; lane++)
        std::memcpy(out + lane * F::ROW_BYTES, a.source + (tile * TILE + lane) * a.row_bytes, F::ROW_BYTES);
}

template <class F>
void pack_plain(const PackArgs& a, int64_t tile, uint8_t* out) {
    for (int lane = 0; lane < TILE; lane++) {
        int64_t row = tile * TILE + lane;
        for (int k = 0; k < a.d_in; k++) {
            uint8_t* to = out + (int64_t(k) * TILE + lane) * F::ITEM;
            if (row < a.d_out) std::memcpy(to, a.source + row * a.row_bytes + int64_t(k) * F::ITEM, F::ITEM);
            else std::memset(to, 0, F::ITEM);
        }
    }
}

int64_t chunks(const PackArgs& a, const Step&) { return ceil_div(a.d_out, TILE); }

void run(const PackArgs& a, const Step&, int64_t first, int64_t last) {
    int64_t bytes = tile_bytes(a.format, a.d_in);
    for (int64_t tile = first; tile < last; tile++) {
        uint8_t* out = a.tiles + tile * bytes;
        dispatch(
            a.format, [&](auto f) { pack_quantized<decltype(f)>(a, tile, out); },
            [&](auto f) { pack_plain<decltype(f)>(a, tile, out); });
    }
}

// -- looking rows up ---------------------------------------------------------------------------------------------------

// y[t] = multiplier * W[tokens[t]]
struct EmbedArgs {
    int32_t d_in;
    int32_t format;
    const uint8_t* tiles;
    float multiplier;
    int32_t unused;
    float* y;
    int64_t y_stride;
};

constexpr int EMBED_ROWS = 4;

template <class F>
void embed_quantized(const EmbedArgs& a, const uint8_t* tile, int row, float* y) {
    int lane = row % HALF;
    float of_row = 1.0f;
    if constexpr (F::ROW_BYTES > 0) std::memcpy(&of_row, tile + record_bytes<F>(a.d_in) + row * F::ROW_BYTES, 4);
    tile += row / HALF * F::RECORD;
    for (int base = 0; base < a.d_in / GROUP; base += F::GROUPS, tile += 2 * F::RECORD)
        for (int g = 0; g < F::GROUPS; g++) {
            float minimum[16], scale[F::PARTS][16];
            store(minimum, F::minimum(tile, g));
            for (int part = 0; part < F::PARTS; part++) store(scale[part], F::scale(tile, g, part));
            UNROLL for (int i = 0; i < 8; i++) {
                uint8_t codes[64];
                storei(codes, F::Codes::at(F::codes(tile, g), i));
                for (int b = 0; b < 4; b++) {
                    int zero = F::LOG_ZERO >= 0 ? 1 << (F::LOG_ZERO < 0 ? 0 : F::LOG_ZERO) : 0;
                    float q = float(int(codes[4 * lane + b]) - zero) * (scale[i * F::PARTS / 8][lane] * of_row);
                    *y++ = a.multiplier * (F::MINIMUM ? q + minimum[lane] : q);
                }
            }
        }
}

template <class F>
void embed_plain(const EmbedArgs& a, const uint8_t* tile, int row, float* y) {
    for (int k = 0; k < a.d_in; k++) {
        float lanes[16];
        store(lanes, F::lanes(tile + int64_t(2 * k + row / HALF) * HALF * F::ITEM));
        y[k] = a.multiplier * lanes[row % HALF];
    }
}

int64_t chunks(const EmbedArgs&, const Step& step) { return ceil_div(step.num_rows, EMBED_ROWS); }

void run(const EmbedArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t bytes = tile_bytes(a.format, a.d_in);
    for (int64_t r = first * EMBED_ROWS; r < last * EMBED_ROWS && r < step.num_rows; r++) {
        int64_t token = step.tokens[r];
        const uint8_t* tile = a.tiles + token / TILE * bytes;
        int row = int(token % TILE);
        dispatch(
            a.format, [&](auto f) { embed_quantized<decltype(f)>(a, tile, row, a.y + r * a.y_stride); },
            [&](auto f) { embed_plain<decltype(f)>(a, tile, row, a.y + r * a.y_stride); });
    }
}

}  // namespace

STRETTO_OP(tile_weight, PackArgs, d_in, d_out, format, unused, source, row_bytes, tiles)
STRETTO_OP(embed, EmbedArgs, d_in, format, tiles, multiplier, unused, y, y_stride)

extern "C" int64_t weight_tile_bytes(int32_t format, int32_t d_in) { return tile_bytes(format, d_in); }
