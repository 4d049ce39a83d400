// Splits of prompts in 16-bit integers: an approximation, for those who ask for it.
//
// Every query, every key and every value has a step of its own, so the bits of a row depend on what it sees alone, as
// those of exact attention do:
//
//     scale q_d = u q'_d    k_jd = u_j k'_jd    s_j = u u_j sum_d q'_d k'_jd      m = max s    p_j = exp(s_j - m)
//     v_jd = w_j v'_jd      p_j w_j = g x'_j    o_d = g sum_j x'_j v'_jd          l = sum p
//
// Both sums of products are of integers, exact in any order. |k'| <= 4095 and |v'| <= 2047; u and g are the smallest
// steps with which nothing leaves 16 bits and no sum leaves 32. Weights are rounded in units of what they can add to the
// output: a large weight of a small value takes no precision from the others.
//
// Sixteen lines at a time go through a whole split, whose keys and values are rounded once for all lines of the item.
// Prompts are chains, so all lists agree.
#pragma once

#include "attention/attention_item.h"

namespace tiles {

constexpr float KEY_LEVELS = 4095, VALUE_LEVELS = 2047, LEVELS = 32767;
constexpr float Q_TOTAL = 520000, WEIGHT_TOTAL = 1048000;  // sums of levels: times those of keys or values below 2^31

// Accumulators: 16 of 32 registers, or 8 of 16 half as wide.
#if defined(VEC_512)
constexpr int DOT_LINES = 4, KEY_BLOCKS = 4, VALUE_VECTORS = 4;
#else
constexpr int DOT_LINES = 4, KEY_BLOCKS = 1, VALUE_VECTORS = 1;
#endif

struct CoarseScratch {
    alignas(64) uint16_t q[MAX_LINES * MAX_SIZE];
    alignas(64) uint16_t keys[SPLIT * MAX_SIZE];    // [block][size / 2][16][2]
    alignas(64) uint16_t values[SPLIT * MAX_SIZE];  // [key / 2][width][2]
    alignas(64) float scores[LANES * SPLIT];
    alignas(64) uint16_t weights[LANES * SPLIT];
    alignas(64) float key_steps[SPLIT], value_steps[SPLIT];
    alignas(64) float q_steps[MAX_LINES], weight_steps[MAX_LINES];
};

inline thread_local CoarseScratch coarse_scratch;

// The smallest step with which |x| <= top fits into 16 bits and sums of |x| into `levels`; NaN where the sum is.
INLINE F32 step_of(F32 top, F32 total, float levels) {
    return max(mul(top, set1(1 / LEVELS)), mul(total, set1(1 / levels)));
}

// Lanes of the block at `at` that `keys` leaves out become `other`.
struct Some {
    F32 lo, hi;

    INLINE Some(Range keys, int at) : lo(set1(float(keys.lo - at))), hi(set1(float(keys.hi - at))) {}
    INLINE F32 operator()(F32 x, float other) const {
        F32 lane = load(LANE), y = set1(other);
        return select_less(lane, lo, y, select_less(lane, hi, x, y));
    }
};

INLINE I32 pairs(I32 even, I32 odd) { return bor(band(even, set1i(0xFFFF)), shl<16>(odd)); }

// e^(c (x - top)), for what is not above 0: relative error below 4e-6.
INLINE F32 exp_below(F32 x, F32 top, F32 c) {
    F32 y = max(set1(-120.0f), mul(sub(x, top), c));  // in this order NaN stays NaN. c: times log2(e)
    F32 n = round_even(y), r = sub(y, n);
    F32 p = set1(9.57009e-3f);
    p = fma(p, r, set1(5.591786e-2f));
    p = fma(p, r, set1(2.4024745e-1f));
    p = fma(p, r, set1(6.9312181e-1f));
    p = fma(p, r, set1(9.9999926e-1f));
    return bits(add(bits(p), shl<23>(to_int(n))));
}

// P: how keys and values are stored.
template <class P>
class Coarse final : public Item {
  public:
    Coarse(const AttentionArgs& a, const Step& step, const Cuts& cuts, int b, int group, int first_row, int rows)
        : Item(a, step, cuts, b, group, first_row, rows), k_pairs_((a.key_size + 1) / 2) {
        for (int i = 0; i < lines_; i += LANES) round_queries(i, least(LANES, lines_ - i));
    }

  private:
    void compute(int split, Range keys) override {
        int64_t locations[SPLIT];
        find(keys, 0, locations);
        round_keys(keys);
        round_values(keys, stored<P>(locations));
        for (int first = 0; first < lines_; first += LANES) {
            int last = least(lines_, first + LANES);
            for (int i = first; i < last; i += DOT_LINES) score(split, keys, i, least(DOT_LINES, last - i));
            weigh(split, keys, first, last - first);
            for (int i = first; i < last; i += DOT_LINES) add_values(split, keys, i, least(DOT_LINES, last - i));
        }
    }

    // -- to integers --------------------------------------------------------------------------------------------------

    // Up to 16 lines.
    void round_queries(int first, int count) {
        alignas(64) Vectors tops, totals;
        alignas(64) float factors[LANES];
        clear(tops, count), clear(totals, count);
        int size = a_.key_size;
        auto scaled = [&](int i, int d) { return mul(set1(a_.scale), get(w_.q + (first + i) * size, d, size)); };
        for (int i = 0; i < count; i++) {
            I32 top = set1i(0);
            F32 total = set1(0.0f);
            for (int d = 0; d < size; d += LANES) {
                F32 x = abs(scaled(i, d));
                top = max(top, bits(x)), total = add(total, x);
            }
            storei(tops[i], top), store(totals[i], total);
        }
        F32 step = step_of(reduce(tops, greatest_bits), reduce(totals, plus), Q_TOTAL);
        store(factors, inverse(step)), store(c_.q_steps + first, step);
        for (int i = 0; i < count; i++)
            for (int d = 0; d < 2 * k_pairs_; d += LANES) {
                F32 x = mul(set1(factors[i]), scaled(i, d));
                store_u16(c_.q + (first + i) * 2 * k_pairs_ + d, band(to_int(x), set1i(0xFFFF)));
            }
    }

    // Lane by lane: other keys of a page do not matter.
    void round_keys(Range keys) {
        const typename P::Element* pages[SPLIT / BLOCK];
        int count = find_pages(b_, group_, keys.lo, keys.hi, pages), size = a_.key_size;
        for (int n = 0; n < count; n++) {
            const typename P::Element* page = pages[n];
            I32 top = set1i(0);
            for (int d = 0; d < size; d++) top = max(top, size_of(P::lanes(page + d * BLOCK)));
            F32 step = mul(bits(top), set1(1 / KEY_LEVELS)), factor = inverse(step);
            if constexpr (P::has_scales) store(c_.key_steps + n * BLOCK, mul(step, load(key_scales(page))));
            else store(c_.key_steps + n * BLOCK, step);
            uint16_t* out = c_.keys + n * k_pairs_ * 2 * BLOCK;
            auto whole = [&](int d) { return to_int(mul(factor, P::lanes(page + d * BLOCK))); };
            int d = 0;
            for (; d + 2 <= size; d += 2) storei(out + d * BLOCK, pairs(whole(d), whole(d + 1)));
            if (d < size) storei(out + d * BLOCK, pairs(whole(d), set1i(0)));
        }
    }

    // Steps of keys that no line sees are 0.
    void round_values(Range keys, Stored<P> values) {
        alignas(64) Vectors lanes;
        alignas(64) float factors[LANES];
        int size = a_.value_size;
        auto value = [&](int j, int d) {
            return d + LANES <= size ? values.at(j, d) : values.some(j, d, size - d);
        };
        for (int first = 0; first < keys.hi - keys.lo; first += BLOCK) {
            int n = least(BLOCK, keys.hi - keys.lo - first);
            clear(lanes, n);
            for (int j = 0; j < n; j++) {
                I32 top = set1i(0);
                for (int d = 0; d < size; d += LANES) top = max(top, size_of(value(first + j, d)));
                storei(lanes[j], top);
            }
            F32 step = mul(reduce(lanes, greatest_bits), set1(1 / VALUE_LEVELS));
            store(c_.value_steps + first, step), store(factors, inverse(step));
            auto whole = [&](int j, int d) {
                return j < n ? to_int(mul(set1(factors[j]), value(first + j, d))) : set1i(0);
            };
            uint16_t* out = c_.values + first * width_;
            for (int j = 0; j < n; j += 2)
                for (int d = 0; d < width_; d += LANES, out += 2 * LANES) storei(out, pairs(whole(j, d), whole(j + 1, d)));
        }
    }

    // -- scores to weights --------------------------------------------------------------------------------------------

    float* score_at(int line, int split, int key) const { return c_.scores + (line % LANES - split) * SPLIT + key; }

    // Scores in units of the step of a line.
    void score(int split, Range keys, int line, int n) {
        int at = keys.lo, hi = least(keys.hi, end(line + n - 1));
        with_lines<DOT_LINES>(n, [&](auto lines) {
            constexpr int R = decltype(lines)::value;
            for (; at + KEY_BLOCKS * BLOCK - BLOCK < hi; at += KEY_BLOCKS * BLOCK)
                scores<R, KEY_BLOCKS>(line, split, at, at - keys.lo);
            for (; at < hi; at += BLOCK) scores<R, 1>(line, split, at, at - keys.lo);
        });
    }

    // key: of the first block; place: among those that are rounded.
    template <int R, int N>
    INLINE void scores(int line, int split, int key, int place) {
        const uint16_t *keys = c_.keys + place * 2 * k_pairs_, *q = c_.q + line * 2 * k_pairs_;
        I32 acc[R][N];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int n = 0; n < N; n++) acc[r][n] = set1i(0);
        for (int d = 0; d < k_pairs_; d++) {
            I32 k[N];
            UNROLL for (int n = 0; n < N; n++) k[n] = loadi(keys + (n * k_pairs_ + d) * 2 * BLOCK);
            UNROLL for (int r = 0; r < R; r++) {
                I32 x = four(q + 2 * (r * k_pairs_ + d));
                UNROLL for (int n = 0; n < N; n++) acc[r][n] = dot2(acc[r][n], k[n], x);
            }
        }
        UNROLL for (int n = 0; n < N; n++) {
            F32 step = load(c_.key_steps + place + n * BLOCK);
            UNROLL for (int r = 0; r < R; r++)
                store(score_at(line + r, split, key) + n * BLOCK, mul(to_float(acc[r][n]), step));
        }
    }

    // Up to 16 lines: m, l, and weights in integers.
    void weigh(int split, Range keys, int first, int count) {
        alignas(64) Vectors tops, sums, totals;
        alignas(64) float top[LANES], factors[LANES];
        clear(tops, count), clear(sums, count), clear(totals, count);
        for (int i = 0; i < count; i++) store(tops[i], highest_score(first + i, split));
        store(top, max(set1(-FLT_MAX), reduce(tops, greatest)));
        store(w_.m[0] + first, mul(load(top), load(c_.q_steps + first)));
        for (int i = 0; i < count; i++) exponentials(first + i, split, keys.lo, top[i], sums[i], totals[i], tops[i]);
        store(w_.l[0] + first, reduce(sums, plus));
        F32 step = step_of(reduce(tops, greatest), reduce(totals, plus), WEIGHT_TOTAL);
        store(c_.weight_steps + first, step), store(factors, inverse(step));
        for (int i = 0; i < count; i++) round_weights(first + i, split, keys, factors[i]);
    }

    // Calls f with the first key of every block of which a line sees some, and with what replaces lanes that it does
    // not see.
    template <class Function>
    INLINE void blocks(Range keys, Function f) {
        int at = keys.lo / BLOCK * BLOCK;
        if (at < keys.lo && !keys.is_empty()) f(at, Some(keys, at)), at += BLOCK;
        for (; at + BLOCK <= keys.hi; at += BLOCK) f(at, [](F32 x, float) { return x; });
        if (at < keys.hi) f(at, Some(keys, at));
    }

    F32 highest_score(int line, int split) {
        F32 top = set1(-INFINITY);
        blocks(part(range(line), split), [&](int at, auto seen) {
            top = max(top, seen(load(score_at(line, split, at)), -INFINITY));
        });
        return top;
    }

    // Weights times the steps of values, in place of scores; lane by lane, the sum of the weights, and sum and maximum
    // of the products.
    void exponentials(int line, int split, int first_key, float top, float* sum, float* total, float* highest) {
        F32 c = set1(c_.q_steps[line] * 1.44269504f), l = set1(0.0f), all = l, peak = l;
        blocks(part(range(line), split), [&](int at, auto seen) {
            float* s = score_at(line, split, at);
            F32 p = exp_below(load(s), set1(top), c), x = mul(p, load(c_.value_steps + at - first_key));
            p = seen(p, 0.0f), x = seen(x, 0.0f);
            store(s, x);
            l = add(l, p), all = add(all, x), peak = max(peak, x);
        });
        store(sum, l), store(total, all), store(highest, peak);
    }

    // Of all keys: 0 for those that the line does not see.
    void round_weights(int line, int split, Range keys, float factor) {
        uint16_t* out = c_.weights + line % LANES * SPLIT - keys.lo;
        Range own = part(range(line), split);
        int first = own.is_empty() ? keys.hi : own.lo / BLOCK * BLOCK, at = keys.lo;
        for (; at < first; at += BLOCK) store_u16(out + at, set1i(0));
        for (; at < own.hi; at += BLOCK) store_u16(out + at, to_int(mul(set1(factor), load(score_at(line, split, at)))));
        for (; at < keys.hi; at += BLOCK) store_u16(out + at, set1i(0));
    }

    // -- outputs ------------------------------------------------------------------------------------------------------

    void add_values(int split, Range keys, int line, int n) {
        int first = keys.hi, last = 0;
        for (int i = line; i < line + n; i++) {
            Range own = part(range(i), split);
            if (!own.is_empty()) first = least(first, own.lo), last = most(last, own.hi);
        }
        first = most(0, first - keys.lo) / 2, last = (last - keys.lo + 1) / 2;
        with_lines<DOT_LINES>(n, [&](auto lines) {
            constexpr int R = decltype(lines)::value, N = VALUE_VECTORS;
            int d = 0;
            for (; d + N * LANES <= width_; d += N * LANES) outputs<R, N>(line, first, last, d);
            for (; d < width_; d += LANES) outputs<R, 1>(line, first, last, d);
        });
    }

    // Pairs of keys first .. last - 1.
    template <int R, int N>
    INLINE void outputs(int line, int first, int last, int d) {
        const uint16_t* weights = c_.weights + line % LANES * SPLIT;
        I32 acc[R][N];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int n = 0; n < N; n++) acc[r][n] = set1i(0);
        for (int j = first; j < last; j++) {
            I32 v[N];
            UNROLL for (int n = 0; n < N; n++) v[n] = loadi(c_.values + 2 * (j * width_ + d + n * LANES));
            UNROLL for (int r = 0; r < R; r++) {
                I32 x = four(weights + r * SPLIT + 2 * j);
                UNROLL for (int n = 0; n < N; n++) acc[r][n] = dot2(acc[r][n], v[n], x);
            }
        }
        UNROLL for (int r = 0; r < R; r++) {
            F32 step = set1(c_.weight_steps[line + r]);
            UNROLL for (int n = 0; n < N; n++)
                store(w_.o + (line + r) * width_ + d + n * LANES, mul(step, to_float(acc[r][n])));
        }
    }

    CoarseScratch& c_ = coarse_scratch;
    const int k_pairs_;
};

}  // namespace tiles
