#include "driver.h"
#include "lora/lora.cpp"

namespace driver {
namespace {

using Floats = std::vector<std::unique_ptr<Buffer<float>>>;

const float* random_floats(Random& random, Floats& kept, int64_t count) {
    kept.push_back(std::make_unique<Buffer<float>>(count));
    for (int64_t i = 0; i < count; i++) (*kept.back())[i] = random.value();
    return kept.back()->get();
}

// Adapters of any rank, also of none, over a matrix of `widths.size()` segments that stands in the middle of the table.
void drive(const Runner& runner, Random& random, int num_rows, int d_in, const std::vector<int>& widths) {
    const int num_loras = 3, max_rank = 1 + random.below(40), before = random.below(3);
    const int num_segments = int(widths.size()), stride = before + num_segments + random.below(2);
    Buffer<LoraFactors> table(num_loras * stride);  // those of other matrices are never read: all bits are set
    Floats kept;
    int d_out = 0;
    for (int s = 0; s < num_segments; s++) {
        for (int n = 0; n < num_loras; n++) {
            int rank = random.below(max_rank + 1), width = widths[size_t(s)];
            table[n * stride + before + s] = {random_floats(random, kept, int64_t(rank) * d_in),
                                              random_floats(random, kept, int64_t(rank) * width),
                                              rank, d_out, width, random.value()};
        }
        d_out += widths[size_t(s)];
    }
    StepRows rows(random, {Seq::chain(3, num_rows, num_rows)});
    Rows counted = {1 + random.below(2), 0};
    std::vector<int32_t> loras, wanted;
    for (int i = 0; i < num_rows; i++) loras.push_back(random.below(num_loras + 1)), wanted.push_back(random.below(num_rows));
    rows.step.out_rows = rows.keep(wanted), rows.step.num_out = num_rows;

    Matrix x(random, num_rows, d_in), y(random, num_rows, d_out), t(random, num_rows, num_segments * max_rank);
    x.fill(random);
    LoraDownArgs down = {counted, d_in,     num_segments, max_rank,  stride, table.get() + before,
                         x.get(), x.stride(), t.get(),    t.stride()};
    LoraUpArgs up = {counted, d_out,      num_segments, max_rank, stride, table.get() + before,
                     t.get(), t.stride(), y.get(),      y.stride()};
    for (bool has_any : {true, false}) {
        rows.step.loras = has_any ? rows.keep(loras) : nullptr;
        auto reset = [&] {
            Random same(5);
            t.poison(), y.poison(), y.fill(same);
        };
        Ops ops = {OP(lora_down, down), OP(lora_up, up)};
        runner.run("lora_down lora_up", ops, rows.step, reset, [&](Outputs& out) { y.read(out); });
    }
}

}  // namespace
}  // namespace driver

void driver::drive_lora(const Runner& runner) {
    Random random(15);
    for (int num_rows : {1, 8, 19})
        for (int d_in : {1, 16, 53})
            for (const std::vector<int>& widths : {std::vector<int>{7}, {45, 3, 1030}, {1024, 1024}})
                drive(runner, random, num_rows, d_in, widths);
}
