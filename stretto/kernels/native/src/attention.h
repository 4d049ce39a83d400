// What attention and the merging of its partial results agree on: arguments, which keys a row sees, and how the rows of a
// step fall into pieces of work.
#pragma once

#include "attention_tiles.h"
#include "op.h"

namespace tiles {

constexpr int TARGET_LINES = 96;  // lines (a row and a query head) that share tiles, unless one row has more

struct AttentionArgs {
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t key_size;
    int32_t value_size;
    int32_t is_bf16;  // pages; else fp32
    int32_t page_size;
    float scale;
    int32_t window;  // 0: none
    const float* q;  // heads of a row are contiguous
    int64_t q_stride;
    const uint8_t* k_pages;  // [P, page_size, G, K]
    const uint8_t* v_pages;  // [P, page_size, G, V]
    float* o;                // [T, H, V]
    float* lse;              // [T, H]
    float* partials;         // per row and split: m [H], l [H], o [H, V]
    int64_t num_partials;    // how many of these there is room for

    int64_t partial_size() const { return int64_t(num_heads) * (value_size + 2); }
};

INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }

// How the rows of one sequence fall into items. Few rows: one item per key head and split, which leaves a partial
// result. More: one per key head and block of rows, which goes through all splits.
struct Cut {
    int num_rows, first_split, num_splits, parts;  // parts: splits or blocks
    int64_t first_partial;                         // -1: none

    bool is_split() const { return first_partial >= 0; }
};

class Cuts {
  public:
    const int per_group, block_rows;

    Cuts(const AttentionArgs& a, const Step& step)
        : per_group(a.num_heads / a.num_kv_heads),
          block_rows(per_group < TARGET_LINES ? TARGET_LINES / per_group : 1), a_(a), step_(step) {}

    // Of sequence b; to be called for all sequences in order.
    Cut next(int b) {
        int n = step_.starts[b + 1] - step_.starts[b], length = step_.contexts[b] + n;
        int blocks = n <= block_rows ? n > 0 : (n + block_rows - 1) / block_rows;
        int first = a_.window ? most(0, step_.contexts[b] + 1 - a_.window) / SPLIT : 0;
        Cut c = {n, first, (length + SPLIT - 1) / SPLIT - first, blocks, -1};
        int64_t partials = int64_t(n) * c.num_splits;
        if (blocks == 1 && c.num_splits > 1 && used_ + partials <= a_.num_partials) {
            c.parts = c.num_splits, c.first_partial = used_;
            used_ += partials;
        }
        return c;
    }

  private:
    const AttentionArgs& a_;
    const Step& step_;
    int64_t used_ = 0;
};

// The keys [lo, hi) of its list that a row sees.
struct Range {
    int lo, hi;

    static Range of(const AttentionArgs& a, const Step& step, int64_t row) {
        int hi = step.positions[row] + 1;
        return {a.window ? most(0, hi - a.window) : 0, hi};
    }
    Range within(int first, int last) const { return {most(lo, first), least(hi, last)}; }
    bool is_empty() const { return lo >= hi; }
};

}  // namespace tiles
