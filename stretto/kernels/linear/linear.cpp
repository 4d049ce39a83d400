// Matrix products with weights as the file stores them: in fixed point where those are quantized, else in fp32.
#include "linear/products.h"

using namespace products;
using namespace fixed_point;

namespace {

// -- activations -------------------------------------------------------------------------------------------------------

struct QuantizeArgs {
    Rows rows;
    int32_t d_in;
    int32_t coarse_prompts;
    const float* x;
    int64_t x_stride;
    Block* out;
};

constexpr int QUANTIZE_ROWS = 8;  // a block: its scales share cache lines, which two threads would fight for

template <bool COARSE>
void quantize_rows(const QuantizeArgs& a, int64_t first, int64_t last) {
    Quantizer<COARSE> quantizer;
    int groups = a.d_in / GROUP;
    for (int64_t r = first; r < last; r++)
        for (int g = 0; g < groups; g++)
            quantizer.add(a.x + r * a.x_stride + g * GROUP, a.out + r / 8 * groups + g, int(r % 8));
}

int64_t chunks(const QuantizeArgs& a, const Step& step) { return ceil_div(a.rows.of(&step), QUANTIZE_ROWS); }

void run(const QuantizeArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t rows = a.rows.of(&step), end = last * QUANTIZE_ROWS < rows ? last * QUANTIZE_ROWS : rows;
    int64_t coarse = first_coarse(a.rows, a.coarse_prompts, step), from = first * QUANTIZE_ROWS;
    quantize_rows<false>(a, from, coarse < end ? coarse : end);
    quantize_rows<true>(a, coarse < from ? from : coarse, end);
}

// -- products ----------------------------------------------------------------------------------------------------------

// y = x W^T + bias, for one matrix [d_out, d_in] in tiles. Quantized formats read `fixed`, plain ones `x`.
struct MatmulArgs {
    Rows rows;
    int32_t d_in;
    int32_t d_out;
    int32_t format;
    int32_t coarse_prompts;
    const uint8_t* tiles;
    const float* bias;  // [d_out], or null
    const Block* fixed;
    const float* x;
    int64_t x_stride;
    float* y;
    int64_t y_stride;
};

// Outputs first .. first + 15 of a row.
INLINE void put(const MatmulArgs& a, int64_t first, int64_t row, F32 y) {
    if (first >= a.d_out) return;
    float* out = a.y + row * a.y_stride + first;
    if (first + HALF <= a.d_out) {
        if (a.bias) y = add(y, load(a.bias + first));
        store(out, y);
    } else {
        int n = int(a.d_out - first);
        if (a.bias) y = add(y, load_n(a.bias + first, n));
        store_n(out, y, n);
    }
}

template <class F, int R>
__attribute__((noinline)) void plain_rows(const MatmulArgs& a, const uint8_t* tile, int64_t first, int64_t row) {
    constexpr int64_t STRIDE = HALF * F::ITEM;
    const float* x = a.x + row * a.x_stride;
    F32 p[2][2][R];  // even and odd inputs, both halves of the tile
    UNROLL for (int c = 0; c < 2; c++)
        UNROLL for (int t = 0; t < 2; t++)
            UNROLL for (int r = 0; r < R; r++) p[c][t][r] = set1(0.0f);
    auto input = [&](int k, F32 (&sums)[2][R]) {
        if (row == 0) __builtin_prefetch(tile + PREFETCH + 2 * STRIDE * k);
        F32 w[2];
        UNROLL for (int t = 0; t < 2; t++) w[t] = F::lanes(tile + STRIDE * (2 * k + t));
        UNROLL for (int r = 0; r < R; r++) {
            F32 value = set1(x[r * a.x_stride + k]);
            UNROLL for (int t = 0; t < 2; t++) sums[t][r] = fma(w[t], value, sums[t][r]);
        }
    };
    int k = 0;
    for (; k + 2 <= a.d_in; k += 2) input(k, p[0]), input(k + 1, p[1]);
    if (k < a.d_in) input(k, p[0]);
    UNROLL for (int t = 0; t < 2; t++)
        UNROLL for (int r = 0; r < R; r++) put(a, first + t * HALF, row + r, add(p[0][t][r], p[1][t][r]));
}

int64_t chunks(const MatmulArgs& a, const Step& step) {
    return num_chunks(a.rows.of(&step), ceil_div(a.d_out, TILE), tile_bytes(a.format, a.d_in));
}

Span reads(const MatmulArgs& a, const Step& step, int64_t first, int64_t last) {
    TileRange range(first, last, chunks(a, step), ceil_div(a.d_out, TILE));
    return range.span(a.tiles, tile_bytes(a.format, a.d_in));
}

void run(const MatmulArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t bytes = tile_bytes(a.format, a.d_in), rows = a.rows.of(&step);
    TileRange range(first, last, chunks(a, step), ceil_div(a.d_out, TILE));
    int64_t coarse = first_coarse(a.rows, a.coarse_prompts, step);
    dispatch(
        a.format,
        [&](auto f) {
            using F = decltype(f);
            alignas(64) float sums[PANEL][TILE];
            // A panel of activations and a chunk of weights stay in the second cache.
            for (int64_t panel = 0; panel < rows; panel += PANEL)
                for (int64_t t = range.from; t < range.to; t++) {
                    Panel p = {a.fixed, a.d_in / GROUP, panel, rows, coarse};
                    tile_sums<F>(a.tiles + t * bytes, bytes, p, sums);
                    for (int64_t r = 0; r < p.count(); r++)
                        for (int i = 0; i < TILE; i += HALF) put(a, t * TILE + i, panel + r, load(sums[r] + i));
                }
        },
        [&](auto f) {
            using F = decltype(f);
            // All rows of one tile before the next tile: the weights stay in the nearest cache meanwhile.
            for (int64_t t = range.from; t < range.to; t++) {
                const uint8_t* tile = a.tiles + t * bytes;
                int64_t r = 0;
                for (; r + 4 <= rows; r += 4) plain_rows<F, 4>(a, tile, t * TILE, r);
                if (r + 2 <= rows) plain_rows<F, 2>(a, tile, t * TILE, r), r += 2;
                if (r < rows) plain_rows<F, 1>(a, tile, t * TILE, r);
            }
        });
}

}  // namespace

STRETTO_OP(quantize, QuantizeArgs, rows, d_in, coarse_prompts, x, x_stride, out)
STRETTO_OP(matmul, MatmulArgs, rows, d_in, d_out, format, coarse_prompts, tiles, bias, fixed, x, x_stride, y,
           y_stride)
STRETTO_READS(matmul, MatmulArgs)
