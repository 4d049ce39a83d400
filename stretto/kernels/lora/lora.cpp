// Low-rank terms of adapters: y += scale * B (A x), for the rows that have an adapter. In fp32 and in one order for every
// row, whatever other rows there are. Where no row has an adapter, both operations have no chunks.
#include "lora/lora.h"

#include "rows.h"

using namespace rows;

namespace {

constexpr int RANKS = 16;       // of a chunk
constexpr int COLUMNS = 1024;   // of a chunk
constexpr int TOGETHER = 4;     // sums that hide each other's latency

// Adapter n has its entries of these segments at table + (n - 1) * table_stride.
struct LoraDownArgs {
    Rows rows;
    int32_t d_in;
    int32_t num_segments;
    int32_t max_rank;
    int32_t table_stride;
    const LoraFactors* table;
    const float* x;
    int64_t x_stride;
    float* t;  // [rows, num_segments * max_rank]: A x
    int64_t t_stride;
};

struct LoraUpArgs {
    Rows rows;
    int32_t d_out;  // of all segments
    int32_t num_segments;
    int32_t max_rank;
    int32_t table_stride;
    const LoraFactors* table;
    const float* t;
    int64_t t_stride;
    float* y;
    int64_t y_stride;
};

// The entries of row r, null where it has no adapter.
template <class Args>
INLINE const LoraFactors* entries(const Args& a, const Step& step, int64_t r) {
    int32_t lora = step.loras[a.rows.kind == OUT_ROWS ? step.out_rows[r] : r];
    return lora ? a.table + int64_t(lora - 1) * a.table_stride : nullptr;
}

// A x for N ranks: each a sum over lanes, then over the vector.
template <int N>
INLINE void dots(const float* a, int64_t d_in, const float* x, float* t) {
    F32 sums[N];
    UNROLL for (int k = 0; k < N; k++) sums[k] = set1(0.0f);
    over(int(d_in), [&](int i, int n) {
        F32 v = read(x + i, n);
        UNROLL for (int k = 0; k < N; k++) sums[k] = fma(read(a + k * d_in + i, n), v, sums[k]);
    });
    UNROLL for (int k = 0; k < N; k++) t[k] = sum(sums[k]);
}

// A chunk is a block of rows, a segment and a block of ranks.
int64_t chunks(const LoraDownArgs& a, const Step& step) {
    return step.loras ? row_chunks(a.rows, step) * a.num_segments * ceil_div(a.max_rank, RANKS) : 0;
}

void run(const LoraDownArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t blocks = ceil_div(a.max_rank, RANKS);
    for (int64_t chunk = first; chunk < last; chunk++) {
        int64_t from = chunk % blocks * RANKS, segment = chunk / blocks % a.num_segments;
        int64_t rows = chunk / blocks / a.num_segments;
        each_row(a, step, rows, rows + 1, [&](int64_t r) {
            const LoraFactors* own = entries(a, step, r);
            if (!own || own[segment].rank <= from) return;
            const LoraFactors& f = own[segment];
            const float* x = a.x + r * a.x_stride;
            float* t = a.t + r * a.t_stride + segment * a.max_rank;
            int64_t to = f.rank < from + RANKS ? f.rank : from + RANKS, k = from;
            for (; k + TOGETHER <= to; k += TOGETHER) dots<TOGETHER>(f.a + k * a.d_in, a.d_in, x, t + k);
            for (; k < to; k++) dots<1>(f.a + k * a.d_in, a.d_in, x, t + k);
        });
    }
}

// A chunk is a block of rows and a block of columns of all segments.
int64_t chunks(const LoraUpArgs& a, const Step& step) {
    return step.loras ? row_chunks(a.rows, step) * ceil_div(a.d_out, COLUMNS) : 0;
}

void run(const LoraUpArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t blocks = ceil_div(a.d_out, COLUMNS);
    for (int64_t chunk = first; chunk < last; chunk++) {
        int64_t from = chunk % blocks * COLUMNS, rows = chunk / blocks;
        each_row(a, step, rows, rows + 1, [&](int64_t r) {
            const LoraFactors* own = entries(a, step, r);
            for (int s = 0; own && s < a.num_segments; s++) {
                const LoraFactors& f = own[s];
                int64_t begin = from > f.first ? from - f.first : 0, end = from + COLUMNS - f.first;
                if (end > f.d_out) end = f.d_out;
                if (!f.rank || begin >= end) continue;
                const float* t = a.t + r * a.t_stride + s * a.max_rank;
                const float* b = f.b + begin;
                float* y = a.y + r * a.y_stride + f.first + begin;
                over(int(end - begin), [&](int i, int n) {
                    F32 total = set1(0.0f);
                    for (int k = 0; k < f.rank; k++) total = fma(set1(t[k]), read(b + int64_t(k) * f.d_out + i, n), total);
                    write(y + i, fma(set1(f.scale), total, read(y + i, n)), n);
                });
            }
        });
    }
}

}  // namespace

STRETTO_OP(lora_down, LoraDownArgs, rows, d_in, num_segments, max_rank, table_stride, table, x, x_stride, t, t_stride)
STRETTO_OP(lora_up, LoraUpArgs, rows, d_out, num_segments, max_rank, table_stride, table, t, t_stride, y, y_stride)
