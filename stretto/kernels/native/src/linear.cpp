// Matrix products with weights as the file stores them.
//
// Activations are 16-bit block fixed point: 32 values share a power of two, and each integer is split into two signed
// bytes, x = 2^e (256 high + low). Products with the weights' integers are integer dot products, whose sums are exact
// in any order; scales and minima follow in fp32, group after group. The bits of a row therefore depend on nothing but
// the row and the weights: not on other rows, on threads or on the instruction set.
#include "formats.h"
#include "op.h"

using namespace vec;
using namespace formats;

namespace {

// -- activations -------------------------------------------------------------------------------------------------------

// The quantized form of up to eight rows and one group of 32 inputs. Blocks lie as [rows / 8, groups].
struct Block {
    uint8_t planes[8][64];  // 32 high bytes, 32 low bytes
    float scales[8];        // the power of two
    float sums[8];          // of the 32 values
    int32_t isums[8][2];    // of the integers of each half
};

struct QuantizeArgs {
    Rows rows;
    int32_t d_in;
    int32_t coarse_prompts;
    const float* x;
    int64_t x_stride;
    Block* out;
};

// The first row in coarse form.
int64_t first_coarse(Rows rows, int32_t coarse_prompts, const Step& step) {
    return coarse_prompts && rows.kind == ALL_ROWS ? step.starts[step.num_step_seqs] : rows.of(&step);
}

constexpr int QUANTIZE_ROWS = 8;  // a block: its scales share cache lines, which two threads would fight for

// The largest power of two that keeps |x| / scale at 127 * 256 + 127 or below; 1 for a group of zeros.
INLINE float scale_of(float amax) {
    uint32_t u;
    float most = amax * (1.0f / 32639.0f);
    std::memcpy(&u, &most, 4);
    u = (u + 0x7FFFFF) & 0x7F800000;  // up to the next power of two
    if (u < 0x00800000) u = amax > 0 ? 0x00800000 : 0x3F800000;
    float scale;
    std::memcpy(&scale, &u, 4);
    return scale;
}

void quantize_group(const float* x, Block& out, int r, bool is_coarse) {
    F32 values[2] = {load(x), load(x + 16)};
    // Bits of absolute values are in the order of the values; infinity and NaN come last.
    int32_t top = highest(max(bits(abs(values[0])), bits(abs(values[1]))));
    float scale = NAN, inverse = 0.0f;  // of a group that is not finite: its scale says so, its integers are 0
    if (top < 0x7F800000) {
        float amax;
        std::memcpy(&amax, &top, 4);
        scale = is_coarse ? amax * (1.0f / 127.0f) : scale_of(amax);
        inverse = scale >= 0x1p-126f ? 1.0f / scale : 0.0f;
    } else {
        values[0] = values[1] = set1(0.0f);
    }
    for (int half = 0; half < 2; half++) {
        I32 q = to_int(mul(values[half], set1(inverse)));
        store_u8(out.planes[r] + 16 * half, is_coarse ? q : shr<8>(add(q, set1i(128))));  // the low byte is signed
        store_u8(out.planes[r] + 32 + 16 * half, q);
        out.isums[r][half] = sum(q);
    }
    out.scales[r] = scale;
    out.sums[r] = scale * float(out.isums[r][0] + out.isums[r][1]);
}

int64_t chunks(const QuantizeArgs& a, const Step& step) { return ceil_div(a.rows.of(&step), QUANTIZE_ROWS); }

void run(const QuantizeArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t coarse = first_coarse(a.rows, a.coarse_prompts, step), rows = a.rows.of(&step);
    int groups = a.d_in / GROUP;
    for (int64_t r = first * QUANTIZE_ROWS; r < last * QUANTIZE_ROWS && r < rows; r++)
        for (int g = 0; g < groups; g++)
            quantize_group(a.x + r * a.x_stride + g * GROUP, a.out[r / 8 * groups + g], int(r % 8), r >= coarse);
}

// -- products ----------------------------------------------------------------------------------------------------------

// y = x W^T + bias, for one matrix [d_out, d_in] in tiles. Quantized formats read `fixed`, plain ones `x`.
struct MatmulArgs {
    Rows rows;
    int32_t d_in;
    int32_t d_out;
    int32_t format;
    int32_t coarse_prompts;
    int32_t unused;
    const uint8_t* tiles;
    const float* bias;  // [d_out], or null
    const Block* fixed;
    const float* x;
    int64_t x_stride;
    float* y;
    int64_t y_stride;
};

constexpr int64_t CHUNK_BYTES = 64 << 10;  // of weights: a microsecond of one core's share of the bandwidth
constexpr int PREFETCH = 4096, PREFETCH_PARTS = 6144;  // bytes ahead: of one row, of rows that go part by part
constexpr int MANY_ROWS = 16;  // whose chunks take long enough to be small

INLINE I32 four(const uint8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return set1i(x);
}

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

// Up to PANEL rows from `panel` on of the outputs of one tile, those from `coarse` on in coarse form.
template <class F>
void quantized_panel(
    const MatmulArgs& a, int64_t tile, int64_t bytes, int64_t rows, int64_t panel, int64_t coarse) {
    alignas(64) float sums[PANEL][TILE];
    const uint8_t* start = a.tiles + tile * bytes;
    int64_t n = rows - panel < PANEL ? rows - panel : PANEL;
    int groups = a.d_in / GROUP, ahead = rows == 1 ? PREFETCH : PREFETCH_PARTS;
    Part part = {start, a.fixed + panel / 8 * groups, groups, 0, true, sums, {start + ahead, 0, rows <= PANEL}};
    // A tile is read in as many passes as there are blocks of rows; each fetches its share of what follows.
    if (panel == 0) part.ahead.lines = int(ceil_div(bytes / groups, 64 * (n / 4 + n / 2 % 2 + n % 2)));
    for (int g = 0; g < groups; g += DEPTH) {
        part.groups = groups - g < DEPTH ? groups - g : DEPTH;
        int64_t r = quantized_run<F, false>(part, 0, n < coarse - panel ? n : coarse - panel);
        quantized_run<F, true>(part, r, n);
        part.tile += int64_t(part.groups / F::GROUPS) * 2 * F::RECORD;
        part.blocks += part.groups;
        part.is_first = false;
    }
    for (int64_t r = 0; r < n; r++)
        for (int t = 0; t < 2; t++) {
            F32 y = load(sums[r] + HALF * t);
            if constexpr (F::ROW_BYTES > 0) y = mul(y, load((const float*)part.tile + HALF * t));  // behind the records
            put(a, tile * TILE + t * HALF, panel + r, y);
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

// Chunks of nearly the same number of tiles, an even number of them where there are enough: two threads end together.
int64_t chunks(const MatmulArgs& a, const Step& step) {
    int64_t rows = a.rows.of(&step), tiles = ceil_div(a.d_out, TILE);
    int64_t bytes = rows < MANY_ROWS ? CHUNK_BYTES : CHUNK_BYTES / 4;
    int64_t n = 2 * ceil_div(tiles * tile_bytes(a.format, a.d_in), 2 * bytes);
    return rows == 0 ? 0 : n < tiles ? n : tiles;
}

Span reads(const MatmulArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t bytes = tile_bytes(a.format, a.d_in), tiles = ceil_div(a.d_out, TILE), n = chunks(a, step);
    return {a.tiles + tiles * first / n * bytes, (tiles * last / n - tiles * first / n) * bytes};
}

void run(const MatmulArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t bytes = tile_bytes(a.format, a.d_in), tiles = ceil_div(a.d_out, TILE), n = chunks(a, step);
    int64_t from = tiles * first / n, to = tiles * last / n, rows = a.rows.of(&step);
    int64_t coarse = first_coarse(a.rows, a.coarse_prompts, step);
    dispatch(
        a.format,
        [&](auto f) {
            using F = decltype(f);
            // A panel of activations and a chunk of weights stay in the second cache.
            for (int64_t panel = 0; panel < rows; panel += PANEL)
                for (int64_t t = from; t < to; t++)
                    quantized_panel<F>(a, t, bytes, rows, panel, coarse);
        },
        [&](auto f) {
            using F = decltype(f);
            // All rows of one tile before the next tile: the weights stay in the nearest cache meanwhile.
            for (int64_t t = from; t < to; t++) {
                const uint8_t* tile = a.tiles + t * bytes;
                int64_t r = 0;
                for (; r + 4 <= rows; r += 4) plain_rows<F, 4>(a, tile, t * TILE, r);
                if (r + 2 <= rows) plain_rows<F, 2>(a, tile, t * TILE, r), r += 2;
                if (r < rows) plain_rows<F, 1>(a, tile, t * TILE, r);
            }
        });
}

}  // namespace

STRETTO_OP(quantize, QuantizeArgs)
STRETTO_OP(matmul, MatmulArgs)
STRETTO_READS(matmul, MatmulArgs)
