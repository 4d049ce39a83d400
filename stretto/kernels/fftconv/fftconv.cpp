// Long causal convolution, row by row: y_t = sum_j kernel_j u_(t - j), from the pages that hold all inputs of a sequence.
//
// A row adds its inputs from the newest to the oldest, along its ancestors and then back through the context, and reads
// all of them as they are stored: it has the same bits alone, in prefill, in a draft and in a batch.
#include "functions.h"
#include "op.h"
#include "pages.h"

using namespace pages;

namespace {

struct FftconvArgs {
    int32_t channels;   // D
    int32_t num_taps;   // L
    int32_t format;     // of pages
    int32_t taps_width;  // of a row of `taps`: D rounded up to vectors
    int32_t group;       // whose pages
    int32_t unused;
    const float* taps;  // [L, D]: tap j meets the input j tokens back
    const uint8_t* pages;  // [P, PAGE_TOKENS, D]
    const float* scales;   // of formats that have some: [P, PAGE_TOKENS]
    float* y;           // [T, D]
    int64_t y_stride;
};

constexpr int STRIP = 4 * LANES;  // channels that are summed together
constexpr int64_t ROWS = 4;       // of a chunk

template <class P>
INLINE F32 input(const FftconvArgs& a, int64_t slot, int channel, int n) {
    auto p = reinterpret_cast<const typename P::Element*>(a.pages) + slot * a.channels + channel;
    F32 x = n == LANES ? P::lanes(p) : P::some_lanes(p, n);
    if constexpr (P::has_scales) x = mul(x, set1(a.scales[slot]));
    return x;
}

template <class P>
void strip(const FftconvArgs& a, const Step& step, int64_t row, int first) {
    const PageGroup& group = step.groups[a.group];
    int seq = step.seq_ids[row], start = step.starts[seq], context = group.num_keys[seq];
    int left = a.channels - first, parts = int(ceil_div(left < STRIP ? left : STRIP, LANES));
    F32 sums[STRIP / LANES];
    for (int p = 0; p < parts; p++) sums[p] = set1(0.0f);
    auto meet = [&](int tap, int64_t slot) {
        const float* taps = a.taps + int64_t(tap) * a.taps_width + first;
        for (int p = 0; p < parts; p++) {
            int n = left - p * LANES < LANES ? left - p * LANES : LANES;
            sums[p] = fma(load(taps + p * LANES), input<P>(a, slot, first + p * LANES, n), sums[p]);
        }
    };
    int tap = 0;
    for (int r = int(row) - start; r >= 0 && tap < a.num_taps; r = step.parents[start + r])
        meet(tap++, group.slot_mapping[start + r]);
    const int32_t* table = group.table(seq);
    for (int t = context - 1; t >= 0 && tap < a.num_taps; t--)
        meet(tap++, int64_t(table[t / PAGE_TOKENS]) * PAGE_TOKENS + t % PAGE_TOKENS);
    float* y = a.y + row * a.y_stride + first;
    for (int p = 0; p < parts; p++) {
        int n = left - p * LANES < LANES ? left - p * LANES : LANES;
        store_n(y + p * LANES, sums[p], n);
    }
}

int64_t strips(const FftconvArgs& a) { return ceil_div(a.channels, STRIP); }

int64_t chunks(const FftconvArgs& a, const Step& step) { return ceil_div(step.num_rows * strips(a), ROWS); }

void run(const FftconvArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t all = step.num_rows * strips(a);
    for (int64_t i = first * ROWS; i < last * ROWS && i < all; i++) {
        int64_t row = i / strips(a);
        int channel = int(i % strips(a)) * STRIP;
        with_format(a.format, [&](auto format) { strip<decltype(format)>(a, step, row, channel); });
    }
}

}  // namespace

STRETTO_OP(fftconv, FftconvArgs, channels, num_taps, format, taps_width, group, unused, taps, pages, scales, y, y_stride)
