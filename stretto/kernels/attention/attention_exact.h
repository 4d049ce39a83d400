// Splits in fp32: the order of sums that attention.cpp states.
#pragma once

#include "attention/attention_item.h"

namespace tiles {

constexpr int NEAR = 2;  // pages of keys that all lines use before the next ones

template <class P>
class Exact final : public Item {
  public:
    using Item::Item;

  private:
    using Page = const typename P::Element*;  // of keys of one head: [size][16]

    void compute(int split, Range keys) override {
        Range shared = {keys.lo, is_tree_ ? least(keys.hi, held_) : keys.hi};
        int64_t locations[SPLIT];
        find(shared, 0, locations);
        if (!shared.is_empty()) score(split, shared, locations);
        if (shared.hi < keys.hi) score_tree(split, most(keys.lo, shared.hi), keys.hi);
        softmax(split);
        std::memset(w_.o, 0, size_t(lines_) * size_t(width_) * 4);
        weigh_all(split, keys, shared, locations);
    }

    // Asks for what is needed soon. Inlined by force: gcc drops calls that only do this.
    INLINE static void fetch(Page items, int count) {
        for (int i = 0; i < count; i += 64 / int(sizeof *items)) __builtin_prefetch(items + i);
    }

    // The keys at these places for the item that is likely to come next: another key head, or another sequence.
    INLINE void fetch_next(Range keys) const {
        bool is_last = group_ + 1 == a_.num_kv_heads;
        if (is_last && (b_ + 1 == step_.num_seqs || held_ >= SPLIT)) return;
        int b = is_last ? b_ + 1 : b_, last = least(keys.hi, pages_.num_keys[b]);
        Page pages[TILE / BLOCK + 1];
        int count = find_pages(b, is_last ? 0 : group_ + 1, keys.lo, last, pages);
        for (int n = 0; n < count; n++) fetch(pages[n], a_.key_size * BLOCK);
    }

    // Scores of keys that all lists share. Few lines wait for memory, so values are asked for while keys are
    // multiplied, and the next item's keys while values are.
    void score(int split, Range keys, const int64_t* locations) {
        Page pages[SPLIT / BLOCK];
        int count = find_pages(b_, group_, keys.lo, keys.hi, pages);
        for (int at = 0; at < count; at += NEAR) {
            int key = keys.lo + at * BLOCK;
            if (lines_ <= FEW_LINES) {
                for (int n = at ? at + NEAR : 0; group_ == 0 && n < least(count, at + 2 * NEAR); n++)
                    fetch(pages[n], a_.key_size * BLOCK);
                for (int n = key; n < least(keys.hi, key + NEAR * BLOCK); n++)
                    fetch(stored<P>(locations).row(n - keys.lo), a_.value_size);
            }
            for (int i = 0; i < lines_; i += QK_LINES)
                score_lines(i, key, pages + at, least(NEAR, count - at), score_of(i, split, key), SPLIT);
        }
    }

    // Scores of the keys [first, last) behind the context of a tree: those of all rows, of which a line picks its own.
    void score_tree(int split, int first, int last) {
        Page pages[MAX_TREE / BLOCK + 1];
        int start = held_ / BLOCK * BLOCK;
        int count = find_pages(b_, group_, start, end(lines_ - 1), pages);
        float s[QK_LINES][MAX_TREE + BLOCK];
        for (int i = 0; i < lines_; i += QK_LINES) {
            score_lines(i, start, pages, count, s[0], MAX_TREE + BLOCK);
            for (int k = i; k < least(lines_, i + QK_LINES); k++) {
                const float* of_rows = s[k - i] + held_ - start;
                const uint8_t* path = w_.paths[k / per_group_];
                for (int at = first; at < least(last, range(k).hi); at++)
                    *score_of(k, split, at) = of_rows[path[at - held_]];
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
        if constexpr (P::has_scales)
            for (int at = 0; at < count; at++)
                for (int r = 0; r < n; r++) {
                    float* block = s + r * stride + at * BLOCK;
                    store(block, mul(load(block), load(key_scales(pages[at]))));
                }
    }

    // Scores to weights: s, m and l of every line, 16 lines at a time.
    void softmax(int split) {
        alignas(64) Vectors lanes;
        for (int i = 0; i < lines_; i += LANES) {
            int n = least(LANES, lines_ - i);
            clear(lanes, n);
            for (int k = 0; k < n; k++) store(lanes[k], highest_score(i + k, split));
            F32 top = max(set1(-FLT_MAX), reduce(lanes, greatest));
            store(w_.m[0] + i, top);
            for (int k = 0; k < n; k++) store(lanes[k], weights(i + k, split, set1(w_.m[0][i + k])));
            store(w_.l[0] + i, reduce(lanes, plus));
        }
    }

    // The highest score in every lane. Scores of the first and the last block that the line does not see become -inf.
    F32 highest_score(int line, int split) {
        F32 top = set1(-INFINITY);
        Range keys = part(range(line), split);
        if (keys.is_empty()) return top;
        float* first = score_of(line, split, keys.lo / BLOCK * BLOCK);
        float* last = score_of(line, split, (keys.hi - 1) / BLOCK * BLOCK);
        if (a_.softcap != 0) soften(first, last);
        F32 lane = load(LANE), low = set1(float(keys.lo % BLOCK)), high = set1(float((keys.hi - 1) % BLOCK + 1));
        store(first, select_less(lane, low, top, load(first)));
        store(last, select_less(lane, high, load(last), top));
        if (is_scattered_) hide(line, split, keys);
        for (float* s = first; s <= last; s += BLOCK) top = max(top, load(s));
        return top;
    }

    // Soft-caps scores, block by block.
    void soften(float* first, float* last) {
        F32 cap = set1(a_.softcap);
        for (float* s = first; s <= last; s += BLOCK) store(s, mul(cap, tanh(div(load(s), cap))));
    }

    // Scores become -inf where a window hides keys that do not lie in the order of their positions.
    void hide(int line, int split, Range keys) {
        const int32_t* held = pages_.key_positions + b_ * pages_.block_width * PAGE_TOKENS;
        int first = step_.positions[first_ + line / per_group_] + 1 - a_.window;
        for (int at = keys.lo; at < keys.hi; at++) {
            int position = at < held_ ? held[at] : step_.contexts[b_] + at - held_;
            if (position < first) *score_of(line, split, at) = -INFINITY;
        }
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
    void weigh_all(int split, Range keys, Range shared, const int64_t* locations) {
        for (int at = keys.lo; at < keys.hi; at += TILE) {
            Range tile = keys.within(at, at + TILE);
            if (tile.hi <= shared.hi) {
                if (lines_ <= FEW_LINES) fetch_next(tile);
                weigh(split, tile, locations + at - keys.lo, 0, rows_);
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

    // locations: where the values of the keys are.
    void weigh(int split, Range keys, const int64_t* locations, int row, int rows) {
        int size = a_.value_size, end = (row + rows) * per_group_;
        Stored<P> values = stored<P>(locations);
        if (rows * per_group_ <= PV_LINES && size % LANES == 0)  // a tile would be read once
            return weigh_some(split, keys, values, row * per_group_, end);
        alignas(64) float tile[TILE * MAX_SIZE];
        tile_values(values, keys.hi - keys.lo, size, tile);
        for (int i = row * per_group_; i < end; i += PV_LINES)
            weigh_some(split, keys, Tiled{tile, width_}, i, least(i + PV_LINES, end));
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
};

}  // namespace tiles
