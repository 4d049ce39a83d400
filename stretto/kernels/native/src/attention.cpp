// Softmax attention over pages of keys and values.
//
// A row sees a list of keys whose index is their position: first what the cache holds, then its ancestors among the
// rows of this call. The list falls into blocks of 16 keys and splits of 256, both counted from position 0. Per split:
//
//     s_j = scale sum_d q_d k_jd        two chains of fused products, even and odd d
//     m = max s    p_j = exp(s_j - m)   l = sum p, lane by lane over the blocks, then over the lanes
//     o = sum_j p_j v_j                 one chain, in the order of the keys
//
// and splits are merged in order: m' = max(m, m_s), (l, o)' = (l, o) exp(m - m') + (l_s, o_s) exp(m_s - m'). Keys that
// a row does not see are never added, not even with weight 0, so the bits of a row depend on its query and its list
// alone: not on the rows beside it, on the form of the call (decoding, verification, prefill), on threads or on the
// instruction set.
#include "attention.h"

using namespace tiles;

namespace {

constexpr int MAX_LINES = 128, MAX_SIZE = 256;
constexpr int NEAR = 2;       // pages of keys that all lines use before the next ones
constexpr int MAX_TREE = 64;  // rows; longer sequences are chains

// -- one item ---------------------------------------------------------------------------------------------------------

struct Scratch {
    alignas(64) float q[MAX_LINES * MAX_SIZE];
    alignas(64) float values[TILE * MAX_SIZE];
    alignas(64) float s[MAX_LINES * SPLIT];     // scores, then weights
    alignas(64) float o[MAX_LINES * MAX_SIZE];  // of this split, as m[0] and l[0]
    alignas(64) float whole_o[MAX_LINES * MAX_SIZE];
    alignas(64) float m[2][MAX_LINES], l[2][MAX_LINES];
    Range ranges[MAX_LINES];                // of every line
    uint8_t paths[TARGET_LINES][MAX_TREE];  // of every row of a tree: its ancestors, by depth
};

thread_local Scratch scratch;

// Some rows of one sequence and the query heads of one key head. A line is a row and a head.
template <class P>
class Item {
  public:
    Item(const AttentionArgs& a, const Step& step, const Cuts& cuts, int b, int group, int first_row, int rows)
        : a_(a), step_(step), w_(scratch), b_(b), group_(group), per_group_(cuts.per_group), first_row_(first_row),
          rows_(rows), lines_(rows * cuts.per_group), width_((a.value_size + LANES - 1) / LANES * LANES),
          first_(step.starts[b] + first_row) {
        int num_rows = step.starts[b + 1] - step.starts[b];
        const int32_t* parents = step.parents + step.starts[b];
        for (int r = 0; r < num_rows && num_rows <= MAX_TREE; r++) is_tree_ |= parents[r] != r - 1;
        int size = per_group_ * a.key_size;
        for (int r = 0; r < rows; r++) {
            Range keys = Range::of(a, step, first_ + r);
            for (int h = 0; h < per_group_; h++) w_.ranges[r * per_group_ + h] = keys;
            std::memcpy(w_.q + r * size, a.q + (first_ + r) * a.q_stride + group * size, size_t(size) * 4);
            int depth = keys.hi - step.contexts[b];
            for (int at = first_row + r; is_tree_ && at >= 0; at = parents[at]) w_.paths[r][--depth] = uint8_t(at);
        }
    }

    // All splits in order, into the outputs.
    void whole(int first_split, int num_splits) {
        for (int split = first_split; split < first_split + num_splits; split++) {
            if (compute(split)) join(split);
        }
        for (int i = 0; i < lines_; i++) {
            int64_t line = (first_ + i / per_group_) * a_.num_heads + head(i);
            F32 l = set1(w_.l[1][i]);
            for (int d = 0; d < a_.value_size; d += LANES)
                put(a_.o + line * a_.value_size, d, a_.value_size, div(load(w_.whole_o + i * width_ + d), l));
            a_.lse[line] = log_sum(w_.m[1][i], w_.l[1][i]);
        }
    }

    // One split. partials: of this split and the first row; stride: from row to row.
    void partial(int split, float* partials, int64_t stride) {
        if (!compute(split)) return;
        for (int i = 0; i < lines_; i++) {
            if (part(range(i), split).is_empty()) continue;
            float* to = partials + i / per_group_ * stride;
            to[head(i)] = w_.m[0][i], to[a_.num_heads + head(i)] = w_.l[0][i];
            to += 2 * a_.num_heads + head(i) * a_.value_size;
            for (int d = 0; d < a_.value_size; d += LANES) put(to, d, a_.value_size, load(w_.o + i * width_ + d));
        }
    }

  private:
    using Page = const typename P::Item*;  // of keys of one head: [size][16]

    int64_t head(int line) const { return group_ * per_group_ + line % per_group_; }
    const Range& range(int line) const { return w_.ranges[line]; }
    static Range part(const Range& range, int split) { return range.within(split * SPLIT, (split + 1) * SPLIT); }

    float* score_of(int line, int split, int key) const { return w_.s + ((line - split) * SPLIT + key); }

    // m, l and o of one split; false if no row sees any of it.
    bool compute(int split) {
        int first = INT32_MAX, last = 0;  // keys that any row sees
        for (int i = 0; i < lines_; i += per_group_) {
            Range own = part(range(i), split);
            if (!own.is_empty()) first = least(first, own.lo), last = most(last, own.hi);
        }
        if (last == 0) return false;
        first = first / BLOCK * BLOCK;
        Range shared = {first, is_tree_ ? least(last, step_.contexts[b_]) : last};
        int64_t slots[SPLIT];
        find(shared, 0, slots);
        if (!shared.is_empty()) score(split, shared, slots);
        if (shared.hi < last) score_tree(split, most(first, shared.hi), last);
        softmax(split);
        std::memset(w_.o, 0, size_t(lines_) * size_t(width_) * 4);
        weigh_all(split, {first, last}, shared, slots);
        return true;
    }

    // Where the keys of the list of row `row` are stored.
    void find(Range keys, int row, int64_t* slots) const {
        const int32_t* table = step_.block_table + b_ * step_.block_width;
        int context = step_.contexts[b_], straight = is_tree_ ? least(keys.hi, context) : keys.hi;
        auto slot = [&](unsigned place) {
            return int64_t(table[place / PAGE_TOKENS]) * PAGE_TOKENS + place % PAGE_TOKENS;
        };
        int at = keys.lo;
        for (; at < straight; at++) *slots++ = slot(unsigned(at));
        for (; at < keys.hi; at++) *slots++ = slot(unsigned(context + w_.paths[row][at - context]));
    }

    // The pages of the keys that sequence b stores at [first, last); their number.
    int find_pages(int b, int group, int first, int last, Page* pages) const {
        const int32_t* table = step_.block_table + b * step_.block_width;
        auto items = reinterpret_cast<Page>(a_.k_pages);
        int count = 0;
        for (int page = first / PAGE_TOKENS; page * PAGE_TOKENS < last; page++)
            pages[count++] = items + (int64_t(table[page]) * a_.num_kv_heads + group) * a_.key_size * PAGE_TOKENS;
        return count;
    }

    // The end of what is stored when a line is: it sees nothing behind that.
    int end(int line) const { return step_.contexts[b_] + first_row_ + line / per_group_ + 1; }

    Stored<P> stored(const int64_t* slots) const {
        auto items = reinterpret_cast<Page>(a_.v_pages);
        return {items + group_ * a_.value_size, int64_t(a_.num_kv_heads) * a_.value_size, slots};
    }

    // Asks for what is needed soon. Inlined by force: gcc drops calls that only do this.
    INLINE static void fetch(Page items, int count) {
        for (int i = 0; i < count; i += 64 / int(sizeof *items)) __builtin_prefetch(items + i);
    }

    // The keys at these places for the item that is likely to come next: another key head, or another sequence.
    INLINE void fetch_next(Range keys) const {
        bool is_last = group_ + 1 == a_.num_kv_heads;
        if (is_last && (b_ + 1 == step_.num_seqs || step_.contexts[b_] >= SPLIT)) return;
        int b = is_last ? b_ + 1 : b_, last = least(keys.hi, step_.contexts[b]);
        Page pages[TILE / BLOCK + 1];
        int count = find_pages(b, is_last ? 0 : group_ + 1, keys.lo, last, pages);
        for (int n = 0; n < count; n++) fetch(pages[n], a_.key_size * BLOCK);
    }

    // Scores of keys that all lists share. Few lines wait for memory, so values are asked for while keys are
    // multiplied, and the next item's keys while values are.
    void score(int split, Range keys, const int64_t* slots) {
        Page pages[SPLIT / BLOCK];
        int count = find_pages(b_, group_, keys.lo, keys.hi, pages);
        for (int at = 0; at < count; at += NEAR) {
            int key = keys.lo + at * BLOCK;
            if (lines_ <= FEW_LINES) {
                for (int n = at ? at + NEAR : 0; group_ == 0 && n < least(count, at + 2 * NEAR); n++)
                    fetch(pages[n], a_.key_size * BLOCK);
                for (int n = key; n < least(keys.hi, key + NEAR * BLOCK); n++)
                    fetch(stored(slots).row(n - keys.lo), a_.value_size);
            }
            for (int i = 0; i < lines_; i += QK_LINES)
                score_lines(i, key, pages + at, least(NEAR, count - at), score_of(i, split, key), SPLIT);
        }
    }

    // Scores of the keys [first, last) behind the context of a tree: those of all rows, of which a line picks its own.
    void score_tree(int split, int first, int last) {
        Page pages[MAX_TREE / BLOCK + 1];
        int context = step_.contexts[b_], start = context / BLOCK * BLOCK;
        int count = find_pages(b_, group_, start, end(lines_ - 1), pages);
        float s[QK_LINES][MAX_TREE + BLOCK];
        for (int i = 0; i < lines_; i += QK_LINES) {
            score_lines(i, start, pages, count, s[0], MAX_TREE + BLOCK);
            for (int k = i; k < least(lines_, i + QK_LINES); k++) {
                const float* of_rows = s[k - i] + context - start;
                const uint8_t* path = w_.paths[k / per_group_];
                for (int at = first; at < least(last, range(k).hi); at++)
                    *score_of(k, split, at) = of_rows[path[at - context]];
            }
        }
    }

    // Up to QK_LINES lines and `count` pages of keys, stored from `first` on.
    INLINE void score_lines(int line, int first, const Page* pages, int count, float* s, int64_t stride) {
        int n = least(QK_LINES, lines_ - line), size = a_.key_size;
        count = least(count, (end(line + n - 1) - first + BLOCK - 1) / BLOCK);
        const float* q = w_.q + line * size;
        with_lines<QK_LINES>(n, [&](auto lines) {
            constexpr int R = decltype(lines)::value, N = QK_BLOCKS;
            F32 scale = set1(a_.scale);
            int at = 0;
            for (; at + N <= count; at += N) scores<P, R, N>(q, pages + at, size, scale, s + at * BLOCK, stride);
            for (; at < count; at++) scores<P, R, 1>(q, pages + at, size, scale, s + at * BLOCK, stride);
        });
    }

    // Scores to weights: s, m and l of every line, 16 lines at a time.
    void softmax(int split) {
        alignas(64) float lanes[LANES][LANES];
        for (int i = 0; i < lines_; i += LANES) {
            int n = least(LANES, lines_ - i);
            std::memset(lanes, 0, sizeof lanes);
            for (int k = 0; k < n; k++) store(lanes[k], highest_score(i + k, split));
            F32 top = max(set1(-FLT_MAX), reduce(lanes, [](F32 x, F32 y) { return max(x, y); }));
            store(w_.m[0] + i, top);
            for (int k = 0; k < n; k++) store(lanes[k], weights(i + k, split, set1(w_.m[0][i + k])));
            store(w_.l[0] + i, reduce(lanes, [](F32 x, F32 y) { return add(x, y); }));
        }
    }

    // The highest score in every lane. Scores of the first and the last block that the line does not see become -inf.
    F32 highest_score(int line, int split) {
        F32 top = set1(-INFINITY);
        Range keys = part(range(line), split);
        if (keys.is_empty()) return top;
        float* first = score_of(line, split, keys.lo / BLOCK * BLOCK);
        float* last = score_of(line, split, (keys.hi - 1) / BLOCK * BLOCK);
        F32 lane = load(LANE), low = set1(float(keys.lo % BLOCK)), high = set1(float((keys.hi - 1) % BLOCK + 1));
        store(first, select_less(lane, low, top, load(first)));
        store(last, select_less(lane, high, load(last), top));
        for (float* s = first; s <= last; s += BLOCK) top = max(top, load(s));
        return top;
    }

    // Weights in place of scores; their sum in every lane.
    F32 weights(int line, int split, F32 top) {
        F32 total = set1(0.0f);
        Range keys = part(range(line), split);
        for (int at = keys.lo / BLOCK * BLOCK; at < keys.hi; at += BLOCK) {
            float* s = score_of(line, split, at);
            F32 p = exp(sub(load(s), top));
            store(s, p);
            total = add(total, p);
        }
        return total;
    }

    // Adds weighted values, tile by tile: for all rows where their lists agree, which is everywhere on a chain and the
    // context on a tree; else for each row by itself.
    void weigh_all(int split, Range keys, Range shared, const int64_t* slots) {
        for (int at = keys.lo; at < keys.hi; at += TILE) {
            Range tile = keys.within(at, at + TILE);
            if (tile.hi <= shared.hi) {
                if (lines_ <= FEW_LINES) fetch_next(tile);
                weigh(split, tile, slots + at - keys.lo, 0, rows_);
                continue;
            }
            for (int r = 0; r < rows_; r++) {
                Range own = tile.within(0, range(r * per_group_).hi);
                if (own.is_empty()) continue;
                int64_t own_slots[TILE];
                find(own, r, own_slots);
                weigh(split, own, own_slots, r, 1);
            }
        }
    }

    // slots: where the values of the keys are.
    void weigh(int split, Range keys, const int64_t* slots, int row, int rows) {
        int size = a_.value_size, end = (row + rows) * per_group_;
        Stored<P> values = stored(slots);
        if (rows * per_group_ <= PV_LINES && size % LANES == 0)  // a tile would be read once
            return weigh_some(split, keys, values, row * per_group_, end);
        tile_values(values, keys.hi - keys.lo, size, w_.values);
        for (int i = row * per_group_; i < end; i += PV_LINES)
            weigh_some(split, keys, Tiled{w_.values, width_}, i, least(i + PV_LINES, end));
    }

    // Lines first .. last - 1 together where all of them see a key, before and after that each by itself.
    template <class Values>
    INLINE void weigh_some(int split, Range keys, Values values, int first, int last) {
        Range all = keys;
        for (int i = first; i < last; i++) all = all.within(range(i).lo, range(i).hi);
        if (all.is_empty()) all.lo = all.hi = keys.hi;
        auto single = [&](Range some) {
            for (int i = first; i < last && !some.is_empty(); i++)
                weigh_lines<1>(split, range(i).within(some.lo, some.hi), keys.lo, values, i);
        };
        single({keys.lo, all.lo});
        with_lines<PV_LINES>(last - first, [&](auto lines) {
            weigh_lines<decltype(lines)::value>(split, all, keys.lo, values, first);
        });
        single({all.hi, keys.hi});
    }

    template <int R, class Values>
    INLINE void weigh_lines(int split, Range keys, int tile_start, Values values, int line) {
        if (keys.is_empty()) return;
        values = values.from(keys.lo - tile_start);
        const float* p = score_of(line, split, keys.lo);
        float* o = w_.o + line * width_;
        int n = keys.hi - keys.lo, d = 0;
        for (; d + PV_VECTORS * LANES <= width_; d += PV_VECTORS * LANES)
            outputs<R, PV_VECTORS>(p, values, n, d, width_, o + d);
        for (; d < width_; d += LANES) outputs<R, 1>(p, values, n, d, width_, o + d);
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

    const AttentionArgs& a_;
    const Step& step_;
    Scratch& w_;
    const int b_, group_, per_group_, first_row_, rows_, lines_, width_;
    const int64_t first_;  // row of the step
    bool is_tree_ = false;
};


int64_t num_items(const AttentionArgs& a, const Step& step) {
    Cuts cuts(a, step);
    int64_t parts = 0;
    for (int b = 0; b < step.num_seqs; b++) parts += cuts.next(b).parts();
    return parts * a.num_kv_heads;
}

// A chunk finds its items by walking through the sequences: where there are many, chunks have several items.
int64_t num_chunks(const Step& step, int64_t items) {
    int64_t bound = most(32, 1024 / most(1, step.num_seqs));
    return items < bound ? items : bound;
}

int64_t chunks(const AttentionArgs& a, const Step& step) { return num_chunks(step, num_items(a, step)); }

template <class P>
void run_item(const AttentionArgs& a, const Step& step, const Cuts& cuts, const Cut& cut, int b, int part, int group) {
    int split = part / cut.blocks, block = part % cut.blocks, half = (cut.blocks + 1) / 2;
    // The longest lists first, in each half of the blocks: threads begin with different halves.
    block = cut.blocks - 1 - (block < half ? 2 * block : 2 * (block - half) + 1);
    int row = block * cut.block_rows, rows = least(cut.block_rows, cut.num_rows - row);
    Item<P> item(a, step, cuts, b, group, row, rows);
    if (cut.is_split()) {
        int64_t size = a.partial_size(), first = cut.first_partial + int64_t(row) * cut.num_splits + split;
        item.partial(cut.first_split + split, a.partials + first * size, cut.num_splits * size);
    } else {
        item.whole(cut.first_split, cut.num_splits);
    }
}

void run(const AttentionArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t items = num_items(a, step), all = num_chunks(step, items), before = 0;
    if (items == 0) return;
    int64_t from = items * first / all, to = items * last / all;
    Cuts cuts(a, step);
    for (int b = 0; b < step.num_seqs && before < to; b++) {
        Cut cut = cuts.next(b);
        int64_t here = int64_t(cut.parts()) * a.num_kv_heads;
        for (int64_t i = from > before ? from - before : 0; i < here && i < to - before; i++) {
            int part = int(i / a.num_kv_heads), group = int(i % a.num_kv_heads);
            if (a.is_bf16) run_item<Bf16>(a, step, cuts, cut, b, part, group);
            else run_item<Fp32>(a, step, cuts, cut, b, part, group);
        }
        before += here;
    }
}

}  // namespace

STRETTO_OP(attention, AttentionArgs)
