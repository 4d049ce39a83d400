#include "driver.h"
#include "sampling/sample.cpp"

namespace driver {
namespace {

// Rows of one call, each with its own law.
void drive(const Runner& runner, Random& random, int num_rows, int width) {
    std::vector<std::unique_ptr<Buffer<float>>> logits;
    Buffer<Row> rows(num_rows);
    Buffer<int32_t> argmax(num_rows);
    for (int r = 0; r < num_rows; r++) {
        logits.push_back(std::make_unique<Buffer<float>>(width));
        float* x = logits.back()->get();
        bool has_ties = random.below(2);
        for (int i = 0; i < width; i++) x[i] = has_ties ? float(random.below(9)) / 4 : 9 * random.value();
        for (int i = 0; i < width / 4; i++) x[random.below(width)] = -INFINITY;
        x[random.below(width)] = 9.5f;
        Row row = {};
        argmax[r] = int32_t(std::max_element(x, x + width) - x);
        row.x = x, row.width = width, row.argmax = &argmax[r];
        row.temperature = random.one_of({0.0f, 1e-30f, 0.7f, 1.0f, 9.0f});
        row.top_p = random.one_of({1.0f, 0.9999f, 0.9f, 1e-6f}), row.top_k = random.one_of({0, 1, 40, 3000});
        row.log_min_p = random.one_of({-INFINITY, -3.0f, 0.0f});
        row.key[0] = random.word(), row.key[1] = random.word(), row.position = random.word(), row.token = -1;
        rows[r] = row;
    }
    ChooseArgs args = {num_rows, rows.get()};
    auto reset = [&] {
        for (int r = 0; r < num_rows; r++) rows[r].token = -1;
    };
    runner.run("choose", {OP(choose, args)}, Step{}, reset, [&](Outputs& out) {
        for (int r = 0; r < num_rows; r++) {
            if (rows[r].token < 0 || rows[r].token >= width) fail("a token that does not exist");
            out.push_back(float(rows[r].token));
        }
    });
}

}  // namespace

void drive_sample(const Runner& runner) {
    Random random(5);
    for (int width : {1, 3, 16, 17, 63, 64, 65, 1000, 5000})
        for (int turn = 0; turn < 6; turn++) drive(runner, random, 1 + random.below(9), width);
}

}  // namespace driver
