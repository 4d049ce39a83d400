// The gated linear recurrence, token after token.
//
// A recurrent layer leaves in its pool the state after the definite rows of every sequence. Provisional rows continue
// from the state of their parent in scratch memory; their inputs are noted, and once it is known which of them are
// kept, a replay advances the pool over those with the code that computed the rows. Rows therefore have the same bits
// alone, in prefill, in a draft and in a replay. A state belongs to one sequence: nobody else reads where a sequence
// writes.
#include <type_traits>

#include "functions.h"
#include "paths.h"

using namespace vec;

namespace {

// S_t = e^g S + k new^T,  new = v, or beta (v - e^g S^T k) with beta;  o = scale S_t^T q
struct GlrArgs {
    int32_t heads;   // H
    int32_t groups;  // G: head h reads keys and queries of group h G / H
    int32_t num_k;
    int32_t num_v;
    const float* q;  // [T, G, K]
    int64_t q_stride;
    const float* k;  // [T, G, K]
    int64_t k_stride;
    const float* v;  // [T, H, V]
    int64_t v_stride;
    const float* g;  // [T, H] log decay
    int64_t g_stride;
    const float* beta;  // [T, H], or null
    int64_t beta_stride;
    float* o;  // [T, H, V]
    int64_t o_stride;
    float* states;  // [slots, H, K, V], or null: every sequence starts from zero and leaves nothing
    float* notes;    // [room, G K + H V + H + H]: k, v, g and beta of provisional rows, beside `states`
    int32_t room;
    float scale;
};

// The same over noted rows: operands are columns of `notes`, and there are no queries.
struct GlrReplayArgs : GlrArgs {};

constexpr int STRIP = 2 * LANES;  // columns of a state that are computed together; columns do not know each other
constexpr int MAX_K = 256;        // so that a strip stays in the nearest cache
constexpr int MAX_LIVE = 34;      // states that a tree of 64 rows needs at once, see `tree`
constexpr int64_t PER_CHUNK = 16 << 10;  // products of a chunk: about a microsecond

// K rows of one strip, somewhere in memory.
struct From {
    const float* at;
    int64_t stride;
};

struct To {
    float* at;
    int64_t stride;

    operator From() const { return {at, stride}; }
};

alignas(64) constexpr float ZEROS[STRIP] = {};

// One head and N vectors of its columns; PARTIAL: the last vector has less than 16 of them.
template <int N, bool PARTIAL, bool DELTA, bool OUT>
struct Strip {
    const GlrArgs& a;
    int64_t head;
    int64_t first;  // column
    int last;       // columns of the last vector

    INLINE F32 get(const float* p, int n) const {
        return PARTIAL && n == N - 1 ? load_n(p + LANES * n, last) : load(p + LANES * n);
    }
    INLINE void put(float* p, int n, F32 x) const {
        if (PARTIAL && n == N - 1) store_n(p + LANES * n, x, last);
        else store(p + LANES * n, x);
    }

    // sums += k S, one row of S
    INLINE void look_up(const float* s, float k, F32 (&sums)[N]) const {
        UNROLL for (int n = 0; n < N; n++) sums[n] = fma(get(s, n), set1(k), sums[n]);
    }

    // One row of S moves on, and sums += q S.
    INLINE void move_on(
        const float* s, float* to, F32 decay, float k, float q, const F32 (&news)[N], F32 (&sums)[N]
    ) const {
        UNROLL for (int n = 0; n < N; n++) {
            F32 x = fma(set1(k), news[n], mul(decay, get(s, n)));
            put(to, n, x);
            if constexpr (OUT) sums[n] = fma(x, set1(q), sums[n]);
        }
    }

    // Row t: the state `from` becomes the state `to`, which may be the same memory. Four sums at a time, so that no
    // product waits for the one before it.
    __attribute__((noinline)) void row(int64_t t, From from, To to) const {
        int64_t group = head * a.groups / a.heads;
        int num_k = a.num_k, i = 0;
        const float* k = a.k + t * a.k_stride + group * num_k;
        const float* q = OUT ? a.q + t * a.q_stride + group * num_k : k;
        const float *v = a.v + t * a.v_stride + head * a.num_v + first, *s = from.at;
        F32 decay = exp(set1(a.g[t * a.g_stride + head])), news[N], sums[4][N];
        UNROLL for (int n = 0; n < N; n++) news[n] = get(v, n);
        if constexpr (DELTA) {
            UNROLL for (int c = 0; c < 4; c++)
                UNROLL for (int n = 0; n < N; n++) sums[c][n] = set1(0.0f);
            for (; i + 4 <= num_k; i += 4, s += 4 * from.stride)
                UNROLL for (int c = 0; c < 4; c++) look_up(s + c * from.stride, k[i + c], sums[c]);
            UNROLL for (int c = 0; c < 3; c++)
                if (i + c < num_k) look_up(s + c * from.stride, k[i + c], sums[c]);
            F32 beta = set1(a.beta[t * a.beta_stride + head]), minus = sub(set1(0.0f), decay);
            UNROLL for (int n = 0; n < N; n++) news[n] = mul(beta, fma(minus, total(sums, n), news[n]));
        }
        UNROLL for (int c = 0; c < 4; c++)
            UNROLL for (int n = 0; n < N; n++) sums[c][n] = set1(0.0f);
        float* next = to.at;
        s = from.at;
        for (i = 0; i + 4 <= num_k; i += 4, s += 4 * from.stride, next += 4 * to.stride)
            UNROLL for (int c = 0; c < 4; c++)
                move_on(s + c * from.stride, next + c * to.stride, decay, k[i + c], q[i + c], news, sums[c]);
        UNROLL for (int c = 0; c < 3; c++)
            if (i + c < num_k)
                move_on(s + c * from.stride, next + c * to.stride, decay, k[i + c], q[i + c], news, sums[c]);
        if constexpr (OUT) {
            float* o = a.o + t * a.o_stride + head * a.num_v + first;
            UNROLL for (int n = 0; n < N; n++) put(o, n, mul(set1(a.scale), total(sums, n)));
        }
    }

    static INLINE F32 total(const F32 (&sums)[4][N], int n) {
        return add(add(sums[0][n], sums[1][n]), add(sums[2][n], sums[3][n]));
    }

    void copy(From from, To to) const {
        if (from.at == to.at) return;
        for (int i = 0; i < a.num_k; i++)
            UNROLL for (int n = 0; n < N; n++) put(to.at + i * to.stride, n, get(from.at + i * from.stride, n));
    }

    // Every row follows the one before it. `end`: after the first `definite` rows; rows beyond leave nothing.
    __attribute__((noinline)) void chain(From entry, To end, const Path& rows, int definite) const {
        alignas(64) float memory[MAX_K * STRIP];
        To scratch = {memory, STRIP};
        From state = entry;
        if (definite == 0) copy(entry, end);
        for (int i = 0; i < rows.count; i++) {
            To next = i == definite - 1 ? end : scratch;
            row(rows.at(i), state, next);
            state = next;
        }
    }

    // Every row follows its parent. A place holds the state of a row that still has children to come, and the last
    // child takes the place of its parent; with the state that stays as one more child there are at most 33 such rows
    // beside the current one.
    __attribute__((noinline)) void tree(
        From entry, To end, const Path& rows, int definite, const int32_t* parents
    ) const {
        alignas(64) float memory[MAX_LIVE * MAX_K * STRIP];
        int children[MAX_TREE_ROWS] = {};
        To places[MAX_TREE_ROWS];
        uint64_t free = (uint64_t(1) << MAX_LIVE) - 1;
        int64_t size = int64_t(a.num_k) * STRIP;
        for (int i = 0; i < rows.count; i++)
            if (parents[i] >= 0) children[parents[i]]++;
        if (definite) children[definite - 1]++;
        for (int i = 0; i < rows.count; i++) {
            int parent = parents[i];
            if (parent >= 0 && --children[parent] == 0) {
                places[i] = places[parent];
            } else {
                int place = __builtin_ctzll(free);
                free &= free - 1;
                places[i] = {memory + place * size, STRIP};
            }
            row(rows.at(i), parent < 0 ? entry : From(places[parent]), places[i]);
            if (children[i] == 0) free |= uint64_t(1) << ((places[i].at - memory) / size);
        }
        copy(definite ? From(places[definite - 1]) : entry, end);
    }
};

int64_t strips(const GlrArgs& a) { return ceil_div(a.num_v, STRIP); }

// Strips of one chunk. `rows`: of all sequences together.
int64_t per_chunk(const GlrArgs& a, int64_t rows, int64_t seqs) {
    int64_t products = int64_t(a.num_k) * (a.num_v < STRIP ? a.num_v : STRIP) * (rows ? rows : 1);
    return ceil_div(PER_CHUNK * seqs, products);
}

int64_t count(const GlrArgs& a, int64_t rows, int64_t seqs) {
    return seqs ? ceil_div(seqs * a.heads * strips(a), per_chunk(a, rows, seqs)) : 0;
}

template <bool OUT, class Body>
INLINE void with_strip(const GlrArgs& a, int64_t head, int64_t first, Body body) {
    int columns = int(a.num_v - first < STRIP ? a.num_v - first : STRIP), last = (columns - 1) % LANES + 1;
    auto pick = [&](auto n, auto partial) {
        constexpr int N = decltype(n)::value;
        constexpr bool PARTIAL = decltype(partial)::value;
        if (a.beta) body(Strip<N, PARTIAL, true, OUT>{a, head, first, last});
        else body(Strip<N, PARTIAL, false, OUT>{a, head, first, last});
    };
    auto lanes = [&](auto n) {
        if (last == LANES) pick(n, std::false_type{});
        else pick(n, std::true_type{});
    };
    if (columns > LANES) lanes(std::integral_constant<int, 2>{});
    else lanes(std::integral_constant<int, 1>{});
}

// Calls body(b, head, first column) for strips [first, last) of all sequences.
template <class Body>
INLINE void each_strip(const GlrArgs& a, int64_t first, int64_t last, int64_t seqs, Body body) {
    int64_t all = seqs * a.heads * strips(a);
    for (int64_t i = first; i < last && i < all; i++)
        body(i / strips(a) / a.heads, i / strips(a) % a.heads, i % strips(a) * STRIP);
}

To piece(const GlrArgs& a, int64_t slot, int64_t head, int64_t first) {
    return {a.states + (slot * a.heads + head) * a.num_k * a.num_v + first, a.num_v};
}

// What a replay of provisional rows needs of this strip; shared operands are noted with the first strip of theirs.
void note(const GlrArgs& a, const Noted& noted, int64_t head, int64_t first) {
    int64_t columns = a.num_v - first < STRIP ? a.num_v - first : STRIP;
    int64_t v_at = int64_t(a.groups) * a.num_k, g_at = v_at + int64_t(a.heads) * a.num_v, width = g_at + 2 * a.heads;
    for (int i = 0; i < noted.rows.count; i++) {
        int64_t t = noted.rows.at(i), column = head * a.num_v + first;
        float* to = a.notes + (noted.to + i) * width;
        std::memcpy(to + v_at + column, a.v + t * a.v_stride + column, size_t(columns) * 4);
        if (first) continue;
        to[g_at + head] = a.g[t * a.g_stride + head];
        if (a.beta) to[g_at + a.heads + head] = a.beta[t * a.beta_stride + head];
        int64_t key = head * a.groups / a.heads * a.num_k;
        if (head * a.groups % a.heads == 0) std::memcpy(to + key, a.k + t * a.k_stride + key, size_t(a.num_k) * 4);
    }
}

void sequence(const GlrArgs& a, const Step& step, int64_t b, int64_t head, int64_t first) {
    alignas(64) float nowhere[MAX_K * STRIP];
    Path rows = rows_of(step, b);
    const int32_t* parents = step.parents + rows.start;
    int definite = step.num_definite[b];
    From entry = {ZEROS, 0};
    To end = {nowhere, STRIP};
    if (a.states) {
        end = piece(a, step.state_destination[b], head, first);
        if (step.contexts[b]) entry = piece(a, step.state_source[b], head, first);
        note(a, noted_of(step, b, a.room), head, first);
    }
    with_strip<true>(a, head, first, [&](const auto& strip) {
        if (!branches(parents, definite, rows.count)) return strip.chain(entry, end, rows, definite);
        if (rows.count > MAX_TREE_ROWS) __builtin_trap();
        strip.tree(entry, end, rows, definite, parents);
    });
}

int64_t chunks(const GlrArgs& a, const Step& step) { return count(a, step.num_rows, step.num_seqs); }

void run(const GlrArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t per = per_chunk(a, step.num_rows, step.num_seqs);
    each_strip(a, first * per, last * per, step.num_seqs,
               [&](int64_t b, int64_t head, int64_t column) { sequence(a, step, b, head, column); });
}

int64_t chunks(const GlrReplayArgs& a, const Step& step) { return count(a, step.num_rows, step.num_seqs); }

void run(const GlrReplayArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t per = per_chunk(a, step.num_rows, step.num_seqs);
    each_strip(a, first * per, last * per, step.num_seqs, [&](int64_t b, int64_t head, int64_t column) {
        Path rows = accepted_of(step, b, a.room);
        if (rows.count == 0) return;
        To state = piece(a, step.state_destination[b], head, column);
        with_strip<false>(a, head, column, [&](const auto& strip) { strip.chain(state, state, rows, rows.count); });
    });
}

}  // namespace

STRETTO_OP(glr, GlrArgs, heads, groups, num_k, num_v, q, q_stride, k, k_stride, v, v_stride, g, g_stride, beta,
           beta_stride, o, o_stride, states, notes, room, scale)
STRETTO_OP(glr_replay, GlrReplayArgs, heads, groups, num_k, num_v, q, q_stride, k, k_stride, v, v_stride, g,
           g_stride, beta, beta_stride, o, o_stride, states, notes, room, scale)

STRETTO_EXPORT_LIMIT(MAX_K)
