// Softmax attention over pages of keys and values.
//
// A row sees a list of keys: first what the cache holds, then its ancestors among the rows of this call. The list falls
// into blocks of 16 keys and splits of 256, both counted from its start, whatever a window hides of it. Per split:
//
//     s_j = scale sum_d q_d k_jd        two chains of fused products, even and odd d
//     m = max s    p_j = exp(s_j - m)   l = sum p, lane by lane over the blocks, then over the lanes
//     o = sum_j p_j v_j                 one chain, in the order of the keys
//
// (with soft-capping s_j becomes cap tanh(s_j / cap)), and splits are merged in order: m' = max(m, m_s), (l, o)' =
// (l, o) exp(m - m') + (l_s, o_s) exp(m_s - m'); a sink is merged last, as a split with m = sink, l = 1, o = 0. Keys that
// a row does not see are never added, not even with weight 0, so the bits of a row depend on its query and its list
// alone: not on the rows beside it, on the form of the call (decoding, verification, prefill), on the sequences that
// share its pages, on threads or on the instruction set. (In a list whose positions are not in order, keys that a window hides have weight 0.)
//
// Prompts may be computed in another way, on request (attention_coarse.h).
#include "attention/attention_coarse.h"
#include "attention/attention_exact.h"

using namespace tiles;

namespace {

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

// A split that a whole bunch of sequences shares, whose first one is b: once for all of their rows.
template <class Form>
void run_bunch(
    const AttentionArgs& a, const Step& step, const Cuts& cuts, const Cut& cut, int b, int split, int group) {
    int64_t first[TARGET_LINES] = {cut.first_partial};
    Cuts rest = cuts;
    for (int r = 1; r < cut.bunch; r++) first[r] = rest.next(b + r).first_partial;
    Form item(a, step, cuts, b, group, 0, cut.bunch, true);
    item.partial(split, [&](int r) { return a.partials + (first[r] + split) * a.partial_size(); });
}

template <class Form>
void run_item(const AttentionArgs& a, const Step& step, const Cuts& cuts, const Cut& cut, int b, int part, int group) {
    int split = cut.skipped + part / cut.blocks, block = part % cut.blocks, half = (cut.blocks + 1) / 2;
    // The longest lists first, in each half of the blocks: threads begin with different halves.
    block = cut.blocks - 1 - (block < half ? 2 * block : 2 * (block - half) + 1);
    int row = block * cut.block_rows, rows = least(cut.block_rows, cut.num_rows - row);
    Form item(a, step, cuts, b, group, row, rows);
    if (cut.is_split()) {
        int64_t first = cut.first_partial + int64_t(row) * cut.num_splits + split;
        item.partial(cut.first_split + split, [&](int r) {
            return a.partials + (first + r * cut.num_splits) * a.partial_size();
        });
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
            bool is_coarse = a.is_coarse(step, b);
            auto run = with_format(a.format, [&](auto format) {
                using P = decltype(format);
                if (part < cut.shared) return run_bunch<Exact<P>>;
                return is_coarse ? run_item<Coarse<P>> : run_item<Exact<P>>;
            });
            run(a, step, cuts, cut, b, part, group);
        }
        before += here;
    }
}

}  // namespace

STRETTO_OP(attention, AttentionArgs, num_heads, num_kv_heads, key_size, value_size, format, scale, window,
           coarse_prompts, group, softcap, q, q_stride, sinks, k_pages, v_pages, k_scales, v_scales, o, lse, partials, num_partials)

extern "C" const char* PageFormat_names() { return page_format::PageFormat_list; }

STRETTO_EXPORT_LIMIT(SPLIT)
STRETTO_EXPORT_LIMIT(MAX_SIZE)
STRETTO_EXPORT_LIMIT(MAX_GROUP)
