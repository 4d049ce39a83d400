// The short convolution along a sequence. States are kept and replayed as in glr/glr.cpp.
#include "functions.h"
#include "paths.h"

using namespace vec;

namespace {

// y = act(bias + sum_j taps[j] x of the row W - 1 - j steps up the path), summed from the oldest input on
struct ShortConvArgs {
    int32_t channels;  // C
    int32_t width;     // W
    int32_t silu;
    int32_t unused;
    const float* x;  // [T, C]
    int64_t x_stride;
    const float* taps;   // [W, C rounded up to vectors]
    const float* bias;   // [C rounded up to vectors], or null
    const float* zeros;  // [C]
    float* states;       // [slots, W - 1, C] inputs before the next row, oldest first, or null
    float* y;            // [T, C]
    int64_t y_stride;
    float* notes;        // [room, C] x of provisional rows, beside `states`
    int64_t room;
};

// The same over noted rows: x is `notes`, and nothing is computed.
struct ShortConvReplayArgs : ShortConvArgs {};

constexpr int MAX_WIDTH = 16;
constexpr int BLOCK = 128;                    // channels: the least that a chunk takes
constexpr int64_t VALUES_PER_CHUNK = 2 << 10;

int64_t blocks_per_chunk(const ShortConvArgs& a, int64_t rows, int64_t seqs) {
    int64_t blocks = ceil_div(VALUES_PER_CHUNK * seqs, BLOCK * (rows ? rows : 1)), all = ceil_div(a.channels, BLOCK);
    return blocks < all ? blocks : all;
}

// Pieces of one sequence.
int64_t pieces(const ShortConvArgs& a, int64_t rows, int64_t seqs) {
    return ceil_div(ceil_div(a.channels, BLOCK), blocks_per_chunk(a, rows, seqs));
}

// Calls body(b, first channel, how many) for chunks [first, last).
template <class Body>
INLINE void each_piece(const ShortConvArgs& a, const Step& step, int64_t first, int64_t last, Body body) {
    int64_t per = BLOCK * blocks_per_chunk(a, step.num_rows, step.num_seqs);
    int64_t n = pieces(a, step.num_rows, step.num_seqs);
    for (int64_t i = first; i < last; i++) {
        int64_t channel = i % n * per;
        body(i / n, channel, a.channels - channel < per ? a.channels - channel : per);
    }
}

// inputs: W of them for this row, oldest first
void convolve(const ShortConvArgs& a, const float* const* inputs, float* y, int64_t first, int64_t n) {
    int64_t padded = ceil_div(a.channels, LANES) * LANES;
    for (int64_t c = first; c < first + n; c += LANES) {
        int some = int(first + n - c);
        F32 sum = a.bias ? load(a.bias + c) : set1(0.0f);
        for (int j = 0; j < a.width; j++) {
            F32 x = some < LANES ? load_n(inputs[j] + c, some) : load(inputs[j] + c);
            sum = fma(x, load(a.taps + j * padded + c), sum);
        }
        if (a.silu) sum = silu(sum);
        if (some < LANES) store_n(y + c, sum, some);
        else store(y + c, sum);
    }
}

// The inputs before the next row once `rows` are read after `tail`: `end`, which may be `tail` (null: zeros).
void leave(
    const ShortConvArgs& a, const float* tail, float* end, const Path& rows, int count, int64_t first, int64_t n
) {
    int keep = a.width - 1;
    for (int i = 0; i < keep; i++) {  // in place nothing is overwritten that is read later
        float* to = end + int64_t(i) * a.channels;
        int from = i + count;
        const float* x = from >= keep ? a.x + rows.at(from - keep) * a.x_stride
                         : tail       ? tail + int64_t(from) * a.channels
                                      : a.zeros;
        if (x != to) std::memcpy(to + first, x + first, size_t(n) * 4);
    }
}

float* tail_of(const ShortConvArgs& a, int64_t slot) { return a.states + slot * (a.width - 1) * a.channels; }

int64_t chunks(const ShortConvArgs& a, const Step& step) {
    return step.num_seqs ? step.num_seqs * pieces(a, step.num_rows, step.num_seqs) : 0;
}

void run(const ShortConvArgs& a, const Step& step, int64_t first, int64_t last) {
    each_piece(a, step, first, last, [&](int64_t b, int64_t channel, int64_t n) {
        Path rows = rows_of(step, b);
        const int32_t* parents = step.parents + rows.start;
        const float* tail = a.states && step.contexts[b] ? tail_of(a, step.state_source[b]) : nullptr;
        for (int i = 0; i < rows.count; i++) {
            const float* inputs[MAX_WIDTH];
            int64_t before = a.width - 1;  // inputs of the context that are left
            for (int j = a.width - 1, at = i; j >= 0; j--) {
                if (at >= 0) inputs[j] = a.x + rows.at(at) * a.x_stride, at = parents[at];
                else before--, inputs[j] = tail ? tail + before * a.channels : a.zeros;
            }
            convolve(a, inputs, a.y + rows.at(i) * a.y_stride, channel, n);
        }
        if (!a.states) return;
        leave(a, tail, tail_of(a, step.state_destination[b]), rows, step.num_definite[b], channel, n);
        Noted noted = noted_of(step, b, a.room);
        for (int i = 0; i < noted.rows.count; i++) {
            const float* x = a.x + noted.rows.at(i) * a.x_stride + channel;
            std::memcpy(a.notes + (noted.to + i) * a.channels + channel, x, size_t(n) * 4);
        }
    });
}

int64_t chunks(const ShortConvReplayArgs& a, const Step& step) {
    return chunks(static_cast<const ShortConvArgs&>(a), step);
}

void run(const ShortConvReplayArgs& a, const Step& step, int64_t first, int64_t last) {
    each_piece(a, step, first, last, [&](int64_t b, int64_t channel, int64_t n) {
        Path rows = accepted_of(step, b, a.room);
        float* tail = tail_of(a, step.state_destination[b]);
        leave(a, tail, tail, rows, rows.count, channel, n);
    });
}

}  // namespace

STRETTO_OP(short_conv, ShortConvArgs, channels, width, silu, unused, x, x_stride, taps, bias, zeros, states, y,
           y_stride, notes, room)
STRETTO_OP(short_conv_replay, ShortConvReplayArgs, channels, width, silu, unused, x, x_stride, taps, bias, zeros,
           states, y, y_stride, notes, room)

STRETTO_EXPORT_LIMIT(MAX_WIDTH)
