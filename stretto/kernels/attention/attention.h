// What attention and the merging of its partial results agree on: arguments, which keys a row sees, and how the rows of a
// step fall into pieces of work.
#pragma once

#include "attention/attention_tiles.h"
#include "op.h"

namespace tiles {

// Lines (a row and a query head) that share keys, unless one row has more; where there are few items, so that several
// threads have some; where keys and values are rounded first.
constexpr int TARGET_LINES = 96, FEW_LINES = 24, FEW_ITEMS = 8, COARSE_LINES = 192;

struct AttentionArgs {
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t key_size;
    int32_t value_size;
    int32_t format;  // of pages
    float scale;
    int32_t window;  // 0: none
    int32_t coarse_prompts;
    int32_t group;  // whose pages
    float softcap;  // 0: none
    const float* q;  // heads of a row are contiguous
    int64_t q_stride;
    const float* sinks;      // [H] or null
    const uint8_t* k_pages;  // [P, G, K, PAGE_TOKENS]
    const uint8_t* v_pages;  // [P, PAGE_TOKENS, G, V]
    const float* k_scales;   // of formats that have some: [P, G, PAGE_TOKENS]
    const float* v_scales;   // [P, PAGE_TOKENS, G]
    float* o;                // [T, H, V]
    float* lse;              // [T, H]
    float* partials;         // per row and split: m [H], l [H], o [H, V]
    int64_t num_partials;    // how many of these there is room for

    int64_t partial_size() const { return int64_t(num_heads) * (value_size + 2); }
    const PageGroup& pages(const Step& step) const { return step.groups[group]; }
    // Whether a window hides keys anywhere in a list, and not only its beginning.
    bool is_scattered(const Step& step) const { return window && pages(step).key_positions; }
    // Whether a sequence is computed in integers, which know neither scattered windows nor soft-capping.
    bool is_coarse(const Step& step, int b) const {
        return coarse_prompts && b >= step.num_step_seqs && !is_scattered(step) && softcap == 0;
    }
    // How many positions at the beginning of the list a row at `position` of it does not see.
    int hidden(const Step& step, int position) const {
        return window && !is_scattered(step) && position >= window ? position + 1 - window : 0;
    }
};

INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }

// How the rows of one sequence fall into items: one per key head and block of rows, which goes through all splits. Few
// rows: one per split, too, which leaves a partial result.
//
// Sequences that decode beside one another and begin on the same pages are a bunch: its first sequence has the items of
// the splits that all of it shares, with the rows of all of it, so that their keys are read once (RelayAttention, arXiv
// 2402.14808). Partial results and their order stay those of every sequence by itself.
struct Cut {
    int num_rows, first_split, num_splits, block_rows, blocks;
    int64_t first_partial;  // -1: none
    int bunch = 1;    // sequences, of the first one
    int shared = 0;   // splits that it computes for the bunch
    int skipped = 0;  // splits that the first sequence computes for this one

    bool is_split() const { return first_partial >= 0; }
    int parts() const { return is_split() ? (num_splits - skipped) * blocks : blocks; }
};

class Cuts {
  public:
    const int per_group;

    Cuts(const AttentionArgs& a, const Step& step)
        : per_group(a.num_heads / a.num_kv_heads), most_rows_(most(1, TARGET_LINES / per_group)),
          few_rows_(step.num_seqs * a.num_kv_heads < FEW_ITEMS ? most(1, FEW_LINES / per_group) : most_rows_), a_(a),
          step_(step) {}

    // Of sequence b; to be called for all sequences in order.
    Cut next(int b) {
        int n = step_.starts[b + 1] - step_.starts[b], held = a_.pages(step_).num_keys[b], length = held + n;
        int rows = n <= most_rows_ ? few_rows_ : a_.is_coarse(step_, b) ? most(1, COARSE_LINES / per_group) : most_rows_;
        int blocks = (n + rows - 1) / rows;
        int first = a_.hidden(step_, held) / SPLIT;
        Cut c = {n, first, (length + SPLIT - 1) / SPLIT - first, blocks ? (n + blocks - 1) / blocks : 0, blocks, -1};
        int64_t partials = int64_t(n) * c.num_splits;
        if (n > 0 && n <= most_rows_ && c.num_splits > 1 && used_ + partials <= a_.num_partials) {
            c.first_partial = used_;
            used_ += partials;
        }
        if (followers_ > 0) followers_--, c.skipped = shared_;
        else if (c.is_split() && n == 1) lead(b, c);
        return c;
    }

  private:
    // Sequence b is the first of a bunch if those behind it share as many splits as the next one does.
    void lead(int b, Cut& c) {
        int shared = shared_splits(b + 1), rows = 1;
        if (shared == 0) return;
        for (int64_t used = used_; rows < most_rows_ && shared_splits(b + rows) >= shared; rows++) {
            used += a_.pages(step_).num_keys[b + rows] / SPLIT + 1;
            if (used > a_.num_partials) break;  // it would have no partial results
        }
        if (rows > 1) c.bunch = rows, c.shared = shared_ = shared, followers_ = rows - 1;
    }

    // How many splits a sequence that decodes shares with the one before it.
    int shared_splits(int b) const {
        const PageGroup& pages = a_.pages(step_);
        if (a_.window || !pages.num_shared || b >= step_.num_step_seqs) return 0;
        return step_.starts[b + 1] - step_.starts[b] == 1 ? pages.num_shared[b] / SPLIT : 0;
    }

    const int most_rows_, few_rows_;  // of a block
    const AttentionArgs& a_;
    const Step& step_;
    int64_t used_ = 0;
    int followers_ = 0, shared_ = 0;  // of the bunch that has begun
};

// The keys [lo, hi) of its list that a row of sequence b sees, if it is not scattered.
struct Range {
    int lo, hi;

    static Range of(const AttentionArgs& a, const Step& step, int b, int64_t row) {
        int place = a.pages(step).num_keys[b] + step.positions[row] - step.contexts[b];
        return {a.hidden(step, place), place + 1};
    }
    Range within(int first, int last) const { return {most(lo, first), least(hi, last)}; }
    bool is_empty() const { return lo >= hi; }
};

}  // namespace tiles
