#include "attention/attention.cpp"
#include "attention/attention_merge.cpp"
#include "driver.h"
#include "attention/kv.cpp"

namespace driver {
namespace {

constexpr int FP32 = page_format::F32, BF16 = page_format::BF16, INT8 = page_format::INT8;

struct Layer {
    int heads, groups, key_size, value_size;
    int format;
    int window;
    float softcap = 0.0f;
    bool has_sinks = false;
};

uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return uint16_t(bits >> 16);
}

// Pages of keys, lane by lane, or of values, with their scales: what lies before the rows of the step is random, the rest
// NaN.
class Pages {
  public:
    Pages(const StepRows& rows, const std::vector<Seq>& seqs, const Layer& layer, bool is_keys)
        : rows_(rows), seqs_(seqs), is_keys_(is_keys), format_(layer.format), heads_(layer.groups),
          row_(layer.groups * (is_keys ? layer.key_size : layer.value_size)),
          width_(layer.format == FP32 ? 4 : layer.format == BF16 ? 2 : 1),
          bytes_(int64_t(rows.num_pages) * PAGE_TOKENS * row_ * width_),
          scales_(layer.format == INT8 ? int64_t(rows.num_pages) * PAGE_TOKENS * heads_ : 0) {}

    uint8_t* get() const { return bytes_.get(); }
    float* scales() const { return scales_.get(); }
    void reset(uint64_t seed) {
        Random random(seed);
        bytes_.poison(), scales_.poison();
        for (size_t b = 0; b < seqs_.size(); b++) {
            const int32_t* table = rows_.group.table(int64_t(b));
            for (int at = 0; at < seqs_[b].context; at++) {
                int64_t page = table[at / PAGE_TOKENS], offset = at % PAGE_TOKENS;
                auto place = [&](int row, int i) {
                    return page * PAGE_TOKENS * row + (is_keys_ ? i * PAGE_TOKENS + offset : offset * row + i);
                };
                for (int i = 0; i < row_; i++) {
                    float x = random.value();
                    uint16_t half = to_bf16(x);
                    int8_t code = int8_t(x * 20);
                    const void* from = format_ == FP32 ? (void*)&x : format_ == BF16 ? (void*)&half : (void*)&code;
                    std::memcpy(&bytes_[place(row_, i) * width_], from, size_t(width_));
                }
                for (int h = 0; h < heads_ && format_ == INT8; h++) scales_[place(heads_, h)] = 0.01f + 0.05f * float(h);
            }
        }
    }

  private:
    const StepRows& rows_;
    const std::vector<Seq>& seqs_;
    bool is_keys_;
    int format_, heads_, row_, width_;
    Buffer<uint8_t> bytes_;
    Buffer<float> scales_;
};

void drive(
    const Runner& runner, Random& random, const Layer& layer, const std::vector<Seq>& seqs, int64_t num_partials,
    bool is_coarse = false, int shared_pages = 0
) {
    StepRows rows(random, seqs);
    rows.step.num_step_seqs = is_coarse;  // the others are prompts
    if (shared_pages) rows.step.num_step_seqs = rows.step.num_seqs, rows.share(shared_pages);
    int n = rows.step.num_rows, keys = layer.groups * layer.key_size, all = layer.groups * layer.value_size;
    Matrix q(random, n, layer.heads * layer.key_size), k(random, n, keys), v(random, n, all);
    q.fill(random, 3.0f), k.fill(random, 3.0f), v.fill(random);
    Pages k_pages(rows, seqs, layer, true), v_pages(rows, seqs, layer, false);
    Buffer<float> o(int64_t(n) * layer.heads * layer.value_size), lse(int64_t(n) * layer.heads);
    Buffer<float> sinks(layer.heads);
    for (int h = 0; h < layer.heads; h++) sinks[h] = random.value();
    Buffer<float> partials(num_partials * layer.heads * (layer.value_size + 2));
    AppendArgs append = {keys,       all,     layer.groups, layer.format,  0,
                         0,          k.get(), k.stride(),   v.get(),       v.stride(),
                         k_pages.get(), v_pages.get(), k_pages.scales(), v_pages.scales()};
    AttentionArgs args = {layer.heads,  layer.groups,  layer.key_size,   layer.value_size, layer.format,
                          0.3f,         layer.window,  is_coarse,        0,                layer.softcap,
                          q.get(),      q.stride(),    layer.has_sinks ? sinks.get() : nullptr,
                          k_pages.get(), v_pages.get(), k_pages.scales(), v_pages.scales(),
                          o.get(),      lse.get(),     partials.get(),   num_partials};
    MergeArgs merge = {args};
    Ops ops = {OP(kv_append, append), OP(attention, args)};
    if (num_partials) ops.push_back(OP(attention_merge, merge));
    auto reset = [&] { k_pages.reset(7), v_pages.reset(8), o.poison(), lse.poison(), partials.poison(); };
    Outputs alone;
    auto run = [&] {
        runner.run(num_partials ? "kv_append attention attention_merge" : "kv_append attention", ops, rows.step, reset,
                   [&](Outputs& out) {
                       for (auto* buffer : {&o, &lse})
                           for (int64_t i = 0; i < buffer->count(); i++) {
                               if (!((*buffer)[i] - (*buffer)[i] == 0.0f)) fail("attention left a number out");
                               out.push_back((*buffer)[i]);
                           }
                       if (alone.empty()) alone = out;
                       if (out != alone) fail("sequences that share pages have other bits");
                   });
    };
    run();
    if (!shared_pages) return;
    rows.group.num_shared = nullptr;  // each by itself
    run();
}

}  // namespace

void drive_attention(const Runner& runner) {
    Random random(3);
    const Layer layers[] = {
        {9, 3, 64, 64, BF16, 0},    {4, 2, 20, 8, FP32, 0},    {6, 2, 8, 20, BF16, 300},
        {17, 1, 5, 3, FP32, 0},    {100, 1, 16, 16, BF16, 70}, {2, 2, 20, 64, FP32, 256},
        {2, 1, 256, 256, BF16, 0},  {20, 1, 37, 70, BF16, 0},
        {17, 1, 8, 20, FP32, 70, 2.0f, true}, {6, 3, 16, 16, BF16, 0, 0.0f, true},  {9, 3, 64, 64, INT8, 0},
        {4, 2, 37, 20, INT8, 300},
    };
    for (const Layer& layer : layers)
        for (int64_t partials : {0, 5, 400}) {  // none, not enough, enough
            int context = partials == 400 ? 520 : 280;
            drive(runner, random, layer, {Seq::chain(random.below(2) ? 0 : 17, 1, 1)}, partials);
            drive(runner, random, layer,
                  {Seq::chain(255, 1, 1), Seq::chain(context, 1, 1), Seq::tree(random, 250, 9, 1), Seq::chain(0, 3, 0)},
                  partials);
            if (partials == 5) continue;
            drive(runner, random, layer,
                  {Seq::tree(random, 0, 8, 0), Seq::tree(random, 245, 20, 1), Seq::chain(31, 5, 1)}, partials);
        }
    for (int rows : {2, 8, 65, 130})
        drive(runner, random, layers[rows % 4],
              {Seq::chain(random.below(100), rows, rows), Seq::chain(0, 0, 0), Seq::chain(40, 33, 33)}, 64);
    for (const Layer& layer : layers)  // prompts in 16-bit integers, beside what decodes
        drive(runner, random, layer,
              {Seq::tree(random, 245, 9, 1), Seq::chain(random.below(300), 130, 130), Seq::chain(520, 3, 3)}, 400, true);
    for (int i : {2, 3}) drive(runner, random, layers[i], {Seq::comb(240, 1), Seq::comb(0, 0)}, 64);
    std::vector<Seq> many;  // more items than chunks
    for (int i = 0; i < 50; i++) many.push_back(Seq::chain(random.below(40), 1, 1));
    drive(runner, random, layers[0], many, 16);
    for (int i : {0, 1, 3, 9, 10})  // bunches: as long as partial results find room; two splits, one
        for (int64_t partials : {8, 60})
            for (int pages : {33, 16}) {
                std::vector<Seq> bunch;
                for (int n = 0; n < 8; n++) bunch.push_back(Seq::chain(528 + random.below(20), 1, 1));
                bunch[3] = Seq::chain(530, 2, 1);  // no part of one
                drive(runner, random, layers[i], bunch, partials, false, pages);
            }
}

}  // namespace driver
