// The first half of a gated MLP: h = act(x W_gate^T + b) * (x W_up^T + b), straight into fixed point. A tile of the gate
// and the one of the same hidden values are multiplied one after the other, so h is rounded where it was computed, by
// whom computed it, and exists nowhere in fp32.
#include "functions.h"
#include "linear/products.h"

using namespace products;
using namespace fixed_point;

namespace {

// W: gate, then up, [2 d_hidden, d_in]; d_hidden is a multiple of TILE.
struct GatedArgs {
    Rows rows;
    int32_t d_in;
    int32_t d_hidden;
    int32_t format;
    int32_t coarse_prompts;
    int32_t act;  // see activation()
    int32_t unused;
    const uint8_t* tiles;
    const float* bias;   // [2 d_hidden], or null
    const Block* fixed;  // x
    Block* out;          // h
};

static_assert(TILE == GROUP, "the outputs of a tile share a power of two");

INLINE F32 hidden(const GatedArgs& a, F32 gate, F32 up, int64_t at) {
    if (a.bias) gate = add(gate, load(a.bias + at)), up = add(up, load(a.bias + a.d_hidden + at));
    return mul(activation(a.act, gate), up);
}

int64_t chunks(const GatedArgs& a, const Step& step) {
    return num_chunks(a.rows.of(&step), a.d_hidden / TILE, 2 * tile_bytes(a.format, a.d_in));
}

// Of the gate: what an idle thread asks for is a beginning.
Span reads(const GatedArgs& a, const Step& step, int64_t first, int64_t last) {
    TileRange range(first, last, chunks(a, step), a.d_hidden / TILE);
    return range.span(a.tiles, tile_bytes(a.format, a.d_in));
}

template <class F>
void run_tile(const GatedArgs& a, const Panel& p, int64_t tile, int64_t bytes) {
    alignas(64) float gate[PANEL][TILE], up[PANEL][TILE];
    int64_t tiles = a.d_hidden / TILE, fine = p.coarse - p.first;
    tile_sums<F>(a.tiles + tile * bytes, bytes, p, gate);
    tile_sums<F>(a.tiles + (tiles + tile) * bytes, bytes, p, up);
    Quantizer<false> exact;
    Quantizer<true> coarse;
    for (int64_t r = 0; r < p.count(); r++) {
        for (int i = 0; i < TILE; i += HALF)
            store(gate[r] + i, hidden(a, load(gate[r] + i), load(up[r] + i), tile * TILE + i));
        Block* out = a.out + (p.first + r) / 8 * tiles + tile;
        if (r < fine) exact.add(gate[r], out, int(r % 8));
        else coarse.add(gate[r], out, int(r % 8));
    }
}

void run(const GatedArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t bytes = tile_bytes(a.format, a.d_in), rows = a.rows.of(&step);
    TileRange range(first, last, chunks(a, step), a.d_hidden / TILE);
    int64_t coarse = first_coarse(a.rows, a.coarse_prompts, step);
    dispatch(
        a.format,
        [&](auto f) {
            for (int64_t panel = 0; panel < rows; panel += PANEL)
                for (int64_t t = range.from; t < range.to; t++)
                    run_tile<decltype(f)>(a, {a.fixed, a.d_in / GROUP, panel, rows, coarse}, t, bytes);
        },
        [](auto) { __builtin_trap(); });  // plain weights have no fixed point
}

}  // namespace

STRETTO_OP(gated, GatedArgs, rows, d_in, d_hidden, format, coarse_prompts, act, unused, tiles, bias, fixed, out)
STRETTO_READS(gated, GatedArgs)
