// The splits of a row, computed by different threads, become one result: in order, as attention.cpp does by itself.
#include "attention/attention.h"

using namespace tiles;

namespace {

struct MergeArgs : AttentionArgs {};

constexpr int64_t MERGE_FLOATS = 1 << 15;  // less than that is not worth several threads

// Up to 16 heads of one row.
void merge_heads(
    const AttentionArgs& a, const Step& step, const Cut& cut, const float* partials, int b, int64_t row, int head) {
    alignas(64) float m[LANES], l[LANES], old_share[LANES], new_share[LANES];
    int heads = least(LANES, a.num_heads - head), size = a.value_size;
    Range range = Range::of(a, step, b, row);
    int first = range.lo / SPLIT, last = (range.hi - 1) / SPLIT;
    float* o = a.o + (row * a.num_heads + head) * size;
    F32 top = set1(0.0f), total = set1(0.0f);
    for (int split = first; split <= last; split++) {
        const float* p = partials + (split - cut.first_split) * a.partial_size() + head;
        F32 m_p = load_n(p, heads), l_p = load_n(p + a.num_heads, heads);
        p += 2 * a.num_heads + int64_t(head) * (size - 1);
        if (split == first) {
            top = m_p, total = l_p;
            std::memcpy(o, p, size_t(heads) * size_t(size) * 4);
            continue;
        }
        Merged x = merge(top, total, m_p, l_p);
        top = x.m, total = x.l;
        x.store(m, l, old_share, new_share);
        for (int h = 0; h < heads; h++)
            for (int d = 0; d < size; d += LANES) {
                F32 old = get(o + h * size, d, size), added = get(p + h * size, d, size);
                put(o + h * size, d, size, merged(old, old_share[h], added, new_share[h]));
            }
    }
    if (a.sinks) {
        Merged x = merge(top, total, load_n(a.sinks + head, heads), set1(1.0f));
        top = x.m, total = x.l;
        x.store(m, l, old_share, new_share);
        for (int h = 0; h < heads; h++)
            for (int d = 0; d < size; d += LANES)
                put(o + h * size, d, size, mul(get(o + h * size, d, size), set1(old_share[h])));
    }
    store(m, top), store(l, total);
    for (int h = 0; h < heads; h++) {
        for (int d = 0; d < size; d += LANES) put(o + h * size, d, size, div(get(o + h * size, d, size), set1(l[h])));
        a.lse[row * a.num_heads + head + h] = log_sum(m[h], l[h]);
    }
}

int64_t chunks(const MergeArgs& a, const Step& step) {
    Cuts cuts(a, step);
    int64_t rows = 0, partials = 0;
    for (int b = 0; b < step.num_seqs; b++) {
        Cut cut = cuts.next(b);
        if (cut.is_split()) rows += cut.num_rows, partials += int64_t(cut.num_rows) * cut.num_splits;
    }
    bool is_small = partials * a.num_heads * a.value_size < MERGE_FLOATS;
    return is_small ? rows > 0 : rows * ceil_div(a.num_heads, LANES);
}

void run(const MergeArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t per_row = ceil_div(a.num_heads, LANES), before = 0;
    if (chunks(a, step) == 1) last = INT64_MAX;  // all of it
    Cuts cuts(a, step);
    for (int b = 0; b < step.num_seqs && before < last; b++) {
        Cut cut = cuts.next(b);
        if (!cut.is_split()) continue;
        int64_t here = cut.num_rows * per_row;
        for (int64_t i = first > before ? first - before : 0; i < here && i < last - before; i++) {
            int64_t row = i / per_row;
            const float* partials = a.partials + (cut.first_partial + row * cut.num_splits) * a.partial_size();
            merge_heads(a, step, cut, partials, b, step.starts[b] + row, int(i % per_row) * LANES);
        }
        before += here;
    }
}

}  // namespace

STRETTO_OP(attention_merge, MergeArgs, num_heads, num_kv_heads, key_size, value_size, format, scale, window,
           coarse_prompts, group, softcap, q, q_stride, sinks, k_pages, v_pages, k_scales, v_scales, o, lse, partials, num_partials)
