// The diagonal scan of Mamba, token after token. States are kept and replayed as in recurrent.cpp.
#include "functions.h"
#include "paths.h"

using namespace vec;

namespace {

// h = exp(dt A) h + dt x B,  y = sum over states of h C, + D x
struct ScanArgs {
    int32_t channels;    // F
    int32_t num_states;  // S
    const float* x;      // [T, F]
    int64_t x_stride;
    const float* dt;  // [T, F]
    int64_t dt_stride;
    const float* B;  // [T, S]
    int64_t B_stride;
    const float* C;  // [T, S]
    int64_t C_stride;
    const float* A;  // [S, F rounded up to vectors]
    const float* D;  // [F rounded up to vectors]
    float* y;        // [T, F]
    int64_t y_stride;
    float* states;  // [slots, S, F], or null: every sequence starts from zero and leaves nothing
    float* notes;   // [room, F + F + S]: x, dt and B of provisional rows, beside `states`
    int64_t room;
};

// The same over noted rows: operands are columns of `notes`, and nothing is read from the states.
struct ScanReplayArgs : ScanArgs {};

constexpr int MAX_S = 64;
constexpr int64_t PER_CHUNK = 512;  // exponentials of a vector: some microseconds

// Sixteen channels of one sequence; in scratch memory their state is S vectors.
struct Strip {
    const ScanArgs& a;
    int64_t first;  // channel
    int some;       // channels

    INLINE F32 get(const float* p) const { return some < LANES ? load_n(p + first, some) : load(p + first); }
    INLINE void put(float* p, F32 x) const {
        if (some < LANES) store_n(p + first, x, some);
        else store(p + first, x);
    }
    float* pool(int64_t slot) const { return a.states + slot * a.num_states * a.channels; }

    void read(int64_t slot, float* h) const {
        for (int n = 0; n < a.num_states; n++) store(h + LANES * n, get(pool(slot) + int64_t(n) * a.channels));
    }
    void leave(int64_t slot, const float* h) const {
        for (int n = 0; n < a.num_states; n++) put(pool(slot) + int64_t(n) * a.channels, load(h + LANES * n));
    }

    // Row t: the state `from` becomes the state `to`, which may be the same memory.
    template <bool OUT>
    __attribute__((noinline)) void row(int64_t t, const float* from, float* to) const {
        int64_t padded = ceil_div(a.channels, LANES) * LANES;
        F32 x = get(a.x + t * a.x_stride), dt = get(a.dt + t * a.dt_stride), in = mul(dt, x), sum = set1(0.0f);
        const float *B = a.B + t * a.B_stride, *C = OUT ? a.C + t * a.C_stride : B, *A = a.A + first;
        for (int n = 0; n < a.num_states; n++) {
            F32 decay = exp(mul(dt, load(A + n * padded)));
            F32 h = fma(decay, load(from + LANES * n), mul(in, set1(B[n])));
            store(to + LANES * n, h);
            if constexpr (OUT) sum = fma(h, set1(C[n]), sum);
        }
        if constexpr (OUT) put(a.y + t * a.y_stride, fma(load(a.D + first), x, sum));
    }

    // What a replay needs of these channels; B is noted with the first ones.
    void note(const Noted& noted) const {
        int64_t width = 2 * int64_t(a.channels) + a.num_states;
        for (int i = 0; i < noted.rows.count; i++) {
            int64_t t = noted.rows.at(i);
            float* to = a.notes + (noted.to + i) * width;
            put(to, get(a.x + t * a.x_stride));
            put(to + a.channels, get(a.dt + t * a.dt_stride));
            if (first == 0) std::memcpy(to + 2 * a.channels, a.B + t * a.B_stride, size_t(a.num_states) * 4);
        }
    }
};

// A draft tree: every row leaves its state where its children find it.
__attribute__((noinline)) void tree(
    const Strip& strip, const Path& rows, int definite, const int32_t* parents, float* h
) {
    alignas(64) float memory[MAX_TREE_ROWS * MAX_S * LANES];
    int size = strip.a.num_states * LANES;
    if (rows.count > MAX_TREE_ROWS) __builtin_trap();
    for (int i = 0; i < rows.count; i++)
        strip.row<true>(rows.at(i), parents[i] < 0 ? h : memory + parents[i] * size, memory + i * size);
    if (definite) std::memcpy(h, memory + (definite - 1) * size, size_t(size) * 4);
}

void sequence(const Strip& strip, const Step& step, int64_t b) {
    const ScanArgs& a = strip.a;
    alignas(64) float h[MAX_S * LANES] = {};
    Path rows = rows_of(step, b);
    const int32_t* parents = step.parents + rows.start;
    int definite = step.num_definite[b];
    if (a.states) {
        if (step.contexts[b]) strip.read(step.state_source[b], h);
        strip.note(noted_of(step, b, a.room));
    }
    if (branches(parents, definite, rows.count)) {
        tree(strip, rows, definite, parents, h);
        if (a.states) strip.leave(step.state_destination[b], h);
        return;
    }
    for (int i = 0; i < definite; i++) strip.row<true>(rows.at(i), h, h);
    if (a.states) strip.leave(step.state_destination[b], h);
    for (int i = definite; i < rows.count; i++) strip.row<true>(rows.at(i), h, h);
}

// Strips of one chunk.
int64_t per_chunk(const ScanArgs& a, const Step& step) {
    return ceil_div(PER_CHUNK * step.num_seqs, int64_t(a.num_states) * (step.num_rows ? step.num_rows : 1));
}

int64_t count(const ScanArgs& a, const Step& step) {
    return step.num_seqs ? ceil_div(step.num_seqs * ceil_div(a.channels, LANES), per_chunk(a, step)) : 0;
}

// Calls body(b, strip) for chunks [first, last).
template <class Body>
INLINE void each_strip(const ScanArgs& a, const Step& step, int64_t first, int64_t last, Body body) {
    int64_t strips = ceil_div(a.channels, LANES), per = per_chunk(a, step), all = step.num_seqs * strips;
    for (int64_t i = first * per; i < last * per && i < all; i++) {
        int64_t channel = i % strips * LANES, left = a.channels - channel;
        body(i / strips, Strip{a, channel, left < LANES ? int(left) : LANES});
    }
}

int64_t chunks(const ScanArgs& a, const Step& step) { return count(a, step); }

void run(const ScanArgs& a, const Step& step, int64_t first, int64_t last) {
    each_strip(a, step, first, last, [&](int64_t b, const Strip& strip) { sequence(strip, step, b); });
}

int64_t chunks(const ScanReplayArgs& a, const Step& step) { return count(a, step); }

void run(const ScanReplayArgs& a, const Step& step, int64_t first, int64_t last) {
    each_strip(a, step, first, last, [&](int64_t b, const Strip& strip) {
        Path rows = accepted_of(step, b, strip.a.room);
        if (rows.count == 0) return;
        alignas(64) float h[MAX_S * LANES];
        strip.read(step.state_destination[b], h);
        for (int i = 0; i < rows.count; i++) strip.row<false>(rows.at(i), h, h);
        strip.leave(step.state_destination[b], h);
    });
}

}  // namespace

STRETTO_OP(scan, ScanArgs, channels, num_states, x, x_stride, dt, dt_stride, B, B_stride, C, C_stride, A, D, y,
           y_stride, states, notes, room)
STRETTO_OP(scan_replay, ScanReplayArgs, channels, num_states, x, x_stride, dt, dt_stride, B, B_stride, C, C_stride,
           A, D, y, y_stride, states, notes, room)

STRETTO_EXPORT_LIMIT(MAX_S)
