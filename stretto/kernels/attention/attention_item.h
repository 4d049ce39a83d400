// One piece of the work of attention: some rows of one sequence and the query heads of one key head. Here is which keys
// its lines see, where those are stored, and how splits become results; what happens inside a split is the business of
// the forms (attention_exact.h, attention_coarse.h).
#pragma once

#include "attention/attention.h"

namespace tiles {

constexpr int MAX_LINES = 192, MAX_SIZE = 256, MAX_GROUP = 128;
constexpr int MAX_TREE = 64;  // rows; longer sequences are chains

struct Scratch {
    alignas(64) float q[MAX_LINES * MAX_SIZE];
    alignas(64) float s[MAX_LINES * SPLIT];     // scores, then weights
    alignas(64) float o[MAX_LINES * MAX_SIZE];  // of this split, as m[0] and l[0]
    alignas(64) float whole_o[MAX_LINES * MAX_SIZE];
    alignas(64) float m[2][MAX_LINES], l[2][MAX_LINES];
    Range ranges[MAX_LINES];                // of every line
    uint8_t paths[TARGET_LINES][MAX_TREE];  // of every row of a tree: its ancestors, by depth
};

inline thread_local Scratch scratch;

// A line is a row and a head.
class Item {
  public:
    // Rows first_row .. first_row + rows - 1 of sequence b; of a bunch, the rows of as many sequences, for the splits
    // that all of them share.
    Item(const AttentionArgs& a, const Step& step, const Cuts& cuts, int b, int group, int first_row, int rows,
         bool is_bunch = false)
        : a_(a), step_(step), pages_(a.pages(step)), w_(scratch), b_(b), held_(pages_.num_keys[b]), group_(group), per_group_(cuts.per_group), first_row_(first_row),
          rows_(rows), lines_(rows * cuts.per_group), width_((a.value_size + LANES - 1) / LANES * LANES),
          first_(step.starts[b] + first_row), is_scattered_(a.is_scattered(step)) {
        int num_rows = step.starts[b + 1] - step.starts[b];
        const int32_t* parents = step.parents + step.starts[b];
        for (int r = 0; r < num_rows && num_rows <= MAX_TREE; r++) is_tree_ |= parents[r] != r - 1;
        int size = per_group_ * a.key_size;
        for (int r = 0; r < rows; r++) {
            Range keys = Range::of(a, step, is_bunch ? b + r : b, first_ + r);
            for (int h = 0; h < per_group_; h++) w_.ranges[r * per_group_ + h] = keys;
            std::memcpy(w_.q + r * size, a.q + (first_ + r) * a.q_stride + group * size, size_t(size) * 4);
            int depth = keys.hi - held_;
            for (int at = first_row + r; is_tree_ && at >= 0; at = parents[at]) w_.paths[r][--depth] = uint8_t(at);
        }
    }

    // All splits in order, into the outputs.
    void whole(int first_split, int num_splits) {
        for (int split = first_split; split < first_split + num_splits; split++) {
            Range keys = seen(split);
            if (!keys.is_empty()) compute(split, keys), join(split);
        }
        if (a_.sinks) join_sinks();
        for (int i = 0; i < lines_; i++) {
            int64_t line = (first_ + i / per_group_) * a_.num_heads + head(i);
            F32 l = set1(w_.l[1][i]);
            for (int d = 0; d < a_.value_size; d += LANES)
                put(a_.o + line * a_.value_size, d, a_.value_size, div(load(w_.whole_o + i * width_ + d), l));
            a_.lse[line] = log_sum(w_.m[1][i], w_.l[1][i]);
        }
    }

    // One split. partials: of this split, for every row.
    template <class Partials>
    void partial(int split, Partials partials) {
        Range keys = seen(split);
        if (keys.is_empty()) return;
        compute(split, keys);
        for (int i = 0; i < lines_; i++) {
            if (part(range(i), split).is_empty()) continue;
            float* to = partials(i / per_group_);
            to[head(i)] = w_.m[0][i], to[a_.num_heads + head(i)] = w_.l[0][i];
            to += 2 * a_.num_heads + head(i) * a_.value_size;
            for (int d = 0; d < a_.value_size; d += LANES) put(to, d, a_.value_size, load(w_.o + i * width_ + d));
        }
    }

  protected:
    ~Item() = default;

    // m[0], l[0] and o of one split, of which some line sees `keys`: their first one is that of a block.
    virtual void compute(int split, Range keys) = 0;

    int64_t head(int line) const { return group_ * per_group_ + line % per_group_; }
    const Range& range(int line) const { return w_.ranges[line]; }
    static Range part(const Range& range, int split) { return range.within(split * SPLIT, (split + 1) * SPLIT); }

    float* score_of(int line, int split, int key) const { return w_.s + ((line - split) * SPLIT + key); }

    // Where the keys of the list of row `row` are stored.
    void find(Range keys, int row, int64_t* locations) const {
        const int32_t* table = pages_.table(b_);
        int straight = is_tree_ ? least(keys.hi, held_) : keys.hi;
        auto location = [&](unsigned place) {
            return int64_t(table[place / PAGE_TOKENS]) * PAGE_TOKENS + place % PAGE_TOKENS;
        };
        int at = keys.lo;
        for (; at < straight; at++) *locations++ = location(unsigned(at));
        for (; at < keys.hi; at++) *locations++ = location(unsigned(held_ + w_.paths[row][at - held_]));
    }

    // The pages of the keys that sequence b stores at [first, last), [size][16] each; their number.
    template <class Element>
    int find_pages(int b, int group, int first, int last, const Element** pages) const {
        const int32_t* table = pages_.table(b);
        auto keys = reinterpret_cast<const Element*>(a_.k_pages);
        int count = 0;
        for (int page = first / PAGE_TOKENS; page * PAGE_TOKENS < last; page++)
            pages[count++] = keys + (int64_t(table[page]) * a_.num_kv_heads + group) * a_.key_size * PAGE_TOKENS;
        return count;
    }

    // The scales of a page of keys.
    template <class Element>
    const float* key_scales(const Element* page) const {
        return a_.k_scales + (page - reinterpret_cast<const Element*>(a_.k_pages)) / a_.key_size;
    }

    template <class P>
    Stored<P> stored(const int64_t* locations) const {
        auto values = reinterpret_cast<const typename P::Element*>(a_.v_pages);
        return {values + group_ * a_.value_size, int64_t(a_.num_kv_heads) * a_.value_size, locations,
                P::has_scales ? a_.v_scales + group_ : nullptr, a_.num_kv_heads};
    }

    // The end of what is stored when a line is: it sees nothing behind that.
    int end(int line) const { return held_ + first_row_ + line / per_group_ + 1; }

    const AttentionArgs& a_;
    const Step& step_;
    const PageGroup& pages_;
    Scratch& w_;
    const int b_, held_, group_, per_group_, first_row_, rows_, lines_, width_;
    const int64_t first_;  // row of the step
    const bool is_scattered_;
    bool is_tree_ = false;

  private:
    // The keys of a split that any row sees, from the first of their block on.
    Range seen(int split) const {
        int first = INT32_MAX, last = 0;
        for (int i = 0; i < lines_; i += per_group_) {
            Range own = part(range(i), split);
            if (!own.is_empty()) first = least(first, own.lo), last = most(last, own.hi);
        }
        return {first / BLOCK * BLOCK, last};
    }

    // Merges the sinks with all splits.
    void join_sinks() {
        alignas(64) float sinks[LANES], m[LANES], l[LANES], share[LANES], unused[LANES];
        for (int i = 0; i < lines_; i += LANES) {
            int last = least(lines_, i + LANES);
            for (int k = i; k < i + LANES; k++) sinks[k - i] = a_.sinks[head(least(k, last - 1))];
            merge(load(w_.m[1] + i), load(w_.l[1] + i), load(sinks), set1(1.0f)).store(m, l, share, unused);
            for (int k = i; k < last; k++) {
                w_.m[1][k] = m[k - i], w_.l[1][k] = l[k - i];
                float* whole = w_.whole_o + k * width_;
                for (int d = 0; d < width_; d += LANES) store(whole + d, mul(load(whole + d), set1(share[k - i])));
            }
        }
    }

    // Merges a split with those before it.
    void join(int split) {
        alignas(64) float m[LANES], l[LANES], old_share[LANES], new_share[LANES];
        for (int i = 0; i < lines_; i += LANES) {
            Merged x = merge(load(w_.m[1] + i), load(w_.l[1] + i), load(w_.m[0] + i), load(w_.l[0] + i));
            x.store(m, l, old_share, new_share);
            for (int k = i; k < least(lines_, i + LANES); k++) {
                if (part(range(k), split).is_empty()) continue;
                float *whole = w_.whole_o + k * width_, *o = w_.o + k * width_;
                bool is_first = range(k).lo >= split * SPLIT;
                w_.m[1][k] = is_first ? w_.m[0][k] : m[k - i];
                w_.l[1][k] = is_first ? w_.l[0][k] : l[k - i];
                if (is_first) std::memcpy(whole, o, size_t(width_) * 4);
                else
                    for (int d = 0; d < width_; d += LANES)
                        store(whole + d, merged(load(whole + d), old_share[k - i], load(o + d), new_share[k - i]));
            }
        }
    }
};

}  // namespace tiles
