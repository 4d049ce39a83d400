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
constexpr int FEW_LINES = 24;  // memory is their bound: keys and values are asked for ahead of time
constexpr int MAX_TREE = 64;   // rows; longer sequences are chains

// -- one item ---------------------------------------------------------------------------------------------------------

struct Scratch {
    alignas(64) float q[MAX_LINES * MAX_SIZE];
    alignas(64) float keys[TILE * MAX_SIZE];
    alignas(64) float values[TILE * MAX_SIZE];
    alignas(64) float s[MAX_LINES * SPLIT];     // scores, then weights
    alignas(64) float o[MAX_LINES * MAX_SIZE];  // of this split, as m[0] and l[0]
    alignas(64) float whole_o[MAX_LINES * MAX_SIZE];
    alignas(64) float m[2][MAX_LINES], l[2][MAX_LINES];
    Range ranges[TARGET_LINES];             // of every row
    uint8_t paths[TARGET_LINES][MAX_TREE];  // of every row of a tree: its ancestors, by depth
};

thread_local Scratch scratch;

// Some rows of one sequence and the query heads of one key head. A line is a row and a head.
template <class P>
class Item {
  public:
    Item(const AttentionArgs& a, const Step& step, const Cuts& cuts, int b, int group, int first_row, int rows)
        : a_(a), step_(step), w_(scratch), b_(b), group_(group), per_group_(cuts.per_group), rows_(rows),
          lines_(rows * cuts.per_group), width_((a.value_size + LANES - 1) / LANES * LANES),
          first_(step.starts[b] + first_row) {
        int num_rows = step.starts[b + 1] - step.starts[b];
        const int32_t* parents = step.parents + step.starts[b];
        for (int r = 0; r < num_rows && num_rows <= MAX_TREE; r++) is_tree_ |= parents[r] != r - 1;
        int size = per_group_ * a.key_size;
        for (int r = 0; r < rows; r++) {
            w_.ranges[r] = Range::of(a, step, first_ + r);
            std::memcpy(w_.q + r * size, a.q + (first_ + r) * a.q_stride + group * size, size_t(size) * 4);
            int depth = w_.ranges[r].hi - step.contexts[b];
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
    // Keys of a tile. slots: where they are, whole blocks of them, and behind them `next` keys of the next tile.
    struct Keys {
        Range range;
        const int64_t* slots;
        int next;
    };

    int64_t head(int line) const { return group_ * per_group_ + line % per_group_; }
    const Range& range(int line) const { return w_.ranges[line / per_group_]; }
    static Range part(const Range& range, int split) { return range.within(split * SPLIT, (split + 1) * SPLIT); }

    float* score_of(int line, int split, int key) const { return w_.s + ((line - split) * SPLIT + key); }

    // m, l and o of one split; false if no row sees any of it.
    bool compute(int split) {
        int first = INT32_MAX, last = 0;  // keys that any row sees
        for (int r = 0; r < rows_; r++) {
            Range own = part(w_.ranges[r], split);
            if (!own.is_empty()) first = least(first, own.lo), last = most(last, own.hi);
        }
        if (last == 0) return false;
        first = first / BLOCK * BLOCK;
        for_tiles(first, last, [&](const Keys& keys, int row, int rows) { score(split, keys, row, rows); });
        softmax(split);
        std::memset(w_.o, 0, size_t(lines_) * size_t(width_) * 4);
        for_tiles(first, last, [&](const Keys& keys, int row, int rows) { weigh(split, keys, row, rows); });
        return true;
    }

    // Calls f for the rows that share a tile: all of them where their lists agree, which is everywhere on a chain and
    // the context on a tree; else each row by itself.
    template <class Function>
    INLINE void for_tiles(int first, int last, Function f) {
        int64_t slots[SPLIT];
        Range shared = {first, is_tree_ ? least(last, step_.contexts[b_]) : last};
        find(shared, 0, slots);
        for (int at = first; at < last; at += TILE) {
            Range keys = {at, least(at + TILE, last)};
            if (keys.hi <= shared.hi) {
                f(Keys{keys, slots + at - first, least(TILE, shared.hi - keys.hi)}, 0, rows_);
                continue;
            }
            for (int r = 0; r < rows_; r++) {
                Range own = keys.within(0, w_.ranges[r].hi);
                if (own.is_empty()) continue;
                int64_t own_slots[TILE];
                find(own, r, own_slots);
                f(Keys{own, own_slots, 0}, r, 1);
            }
        }
    }

    // Where the keys of the list of row `row` are; what misses to a whole block repeats the last one.
    void find(Range keys, int row, int64_t* slots) const {
        const int32_t* table = step_.block_table + b_ * step_.block_width;
        int size = a_.page_size, context = step_.contexts[b_], straight = is_tree_ ? least(keys.hi, context) : keys.hi;
        int at = keys.lo, page = at / size, offset = at % size;
        for (; at < straight; page++, offset = 0)
            for (; at < straight && offset < size; at++, offset++) *slots++ = int64_t(table[page]) * size + offset;
        for (; at < keys.hi; at++) {
            int place = context + w_.paths[row][at - context];
            *slots++ = int64_t(table[place / size]) * size + place % size;
        }
        for (; (at - keys.lo) % BLOCK; at++, slots++) *slots = slots[-1];
    }

    Stored<P> stored(const uint8_t* pages, int size, const int64_t* slots) const {
        auto items = reinterpret_cast<const typename P::Item*>(pages);
        return {items + group_ * size, int64_t(a_.num_kv_heads) * size, slots};
    }

    // Asks for keys or values that are needed soon. Inlined by force: gcc drops calls that only do this.
    INLINE static void fetch(Stored<P> stored, int count, int size) {
        for (int j = 0; j < count; j++)
            for (int d = 0; d < size; d += 64 / int(sizeof(typename P::Item))) __builtin_prefetch(stored.row(j) + d);
    }

    void score(int split, const Keys& tile, int row, int rows) {
        Range keys = tile.range;
        if (lines_ <= FEW_LINES) {
            fetch(stored(a_.k_pages, a_.key_size, tile.slots + TILE), tile.next, a_.key_size);
            fetch(stored(a_.v_pages, a_.value_size, tile.slots), keys.hi - keys.lo, a_.value_size);
        }
        int size = a_.key_size, blocks = (keys.hi - keys.lo + BLOCK - 1) / BLOCK, end = (row + rows) * per_group_;
        tile_keys(stored(a_.k_pages, size, tile.slots), blocks, size, w_.keys);
        F32 scale = set1(a_.scale);
        for (int i = row * per_group_; i < end; i += QK_LINES) {
            int n = least(QK_LINES, end - i), hi = 0;
            for (int k = i; k < i + n; k++) hi = most(hi, range(k).hi);
            int wanted = least(blocks, (hi - keys.lo + BLOCK - 1) / BLOCK);
            const float *q = w_.q + i * size, *k = w_.keys;
            float* s = score_of(i, split, keys.lo);
            with_lines<QK_LINES>(n, [&](auto lines) {
                constexpr int R = decltype(lines)::value, N = QK_BLOCKS;
                for (; wanted >= N; wanted -= N, k += N * BLOCK * size, s += N * BLOCK)
                    scores<R, N>(q, k, size, scale, s);
                for (; wanted > 0; wanted--, k += BLOCK * size, s += BLOCK) scores<R, 1>(q, k, size, scale, s);
            });
        }
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

    void weigh(int split, const Keys& tile, int row, int rows) {
        Range keys = tile.range;
        int size = a_.value_size, end = (row + rows) * per_group_;
        Stored<P> values = stored(a_.v_pages, size, tile.slots);
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
    const int b_, group_, per_group_, rows_, lines_, width_;
    const int64_t first_;  // row of the step
    bool is_tree_ = false;
};

constexpr int64_t MOST_CHUNKS = 128;  // items are found by walking through the sequences: not too often

int64_t num_items(const AttentionArgs& a, const Step& step) {
    Cuts cuts(a, step);
    int64_t parts = 0;
    for (int b = 0; b < step.num_seqs; b++) parts += cuts.next(b).parts;
    return parts * a.num_kv_heads;
}

int64_t chunks(const AttentionArgs& a, const Step& step) {
    int64_t items = num_items(a, step);
    return items < MOST_CHUNKS ? items : MOST_CHUNKS;
}

template <class P>
void run_item(const AttentionArgs& a, const Step& step, const Cuts& cuts, const Cut& cut, int b, int part, int group) {
    if (cut.is_split()) {
        int64_t size = a.partial_size(), stride = cut.num_splits * size;
        float* partials = a.partials + (cut.first_partial + part) * size;
        Item<P>(a, step, cuts, b, group, 0, cut.num_rows).partial(cut.first_split + part, partials, stride);
    } else {
        int row = (cut.parts - 1 - part) * cuts.block_rows;  // the longest lists first
        int rows = least(cuts.block_rows, cut.num_rows - row);
        Item<P>(a, step, cuts, b, group, row, rows).whole(cut.first_split, cut.num_splits);
    }
}

void run(const AttentionArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t items = num_items(a, step), all = items < MOST_CHUNKS ? items : MOST_CHUNKS, before = 0;
    if (items == 0) return;
    int64_t from = items * first / all, to = items * last / all;
    Cuts cuts(a, step);
    for (int b = 0; b < step.num_seqs && before < to; b++) {
        Cut cut = cuts.next(b);
        int64_t here = int64_t(cut.parts) * a.num_kv_heads;
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
