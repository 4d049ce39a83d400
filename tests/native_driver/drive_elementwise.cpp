#include "driver.h"
#include "rowwise/elementwise.cpp"
#include "rowwise/heads.cpp"

namespace driver {
namespace {

void fill_away_from_zero(Random& random, const Matrix& x, int64_t rows, int width, bool wide) {
    for (int64_t r = 0; r < rows; r++)
        for (int i = 0; i < width; i++) {  // wide: from subnormal numbers to great ones
            float scale = wide ? random.one_of({1e-42f, 1e-30f, 1e-3f, 1.0f, 1e30f}) : 1.0f;
            x.get()[r * x.stride() + i] = scale * (1.5f + random.value());
        }
}

void drive(const Runner& runner, Random& random, int num_rows, int width) {
    StepRows rows(random, {Seq::chain(random.below(7), num_rows, num_rows)});
    rows.step.num_out = num_rows;
    Rows counted = {random.below(3), num_rows};
    Matrix y(random, num_rows, width);
    auto run = [&](const char* name, Op op) {
        runner.run(name, {op}, rows.step, [&] { y.poison(); }, [&](Outputs& into) { y.read(into); });
    };
    Matrix x(random, num_rows, width), positive(random, num_rows, width);
    fill_away_from_zero(random, positive, num_rows, width, true);
    for (int op = IDENTITY; op <= SQUARE; op++) {
        x.fill(random, op == EXP ? 80.0f : 200.0f);
        bool is_positive = op == LOG || op == LOG1P || op == SQRT || op == RSQRT;
        if (op == RECIPROCAL) fill_away_from_zero(random, x, num_rows, width, false);
        const Matrix& in = is_positive ? positive : x;
        UnaryArgs unary = {counted, width, op, in.get(), in.stride(), y.get(), y.stride()};
        run("unary", OP(unary, unary));
    }

    int every = width % 3 ? 1 : 3;  // elements that share a number of the second operand
    for (int op = ADD; op <= MINIMUM; op++)
        for (bool shared : {false, true}) {  // by all rows
            Matrix z(random, shared ? 1 : num_rows, width / every);
            fill_away_from_zero(random, z, shared ? 1 : num_rows, width / every, false);
            int64_t z_stride = shared ? 0 : z.stride();
            BinaryArgs right = {counted,  width, op,    x.get(), x.stride(), z.get(),
                                z_stride, 1,     every, y.get(), y.stride()};
            run("binary", OP(binary, right));
            if (op == DIV) fill_away_from_zero(random, x, num_rows, width, false);
            BinaryArgs left = {counted,    width, op, z.get(), z_stride,  x.get(),
                               x.stride(), every, 1,  y.get(), y.stride()};
            run("binary", OP(binary, left));
        }

    int heads = 1 + random.below(3), depth = 1 + random.below(9);
    Matrix in(random, num_rows, heads * depth), out(random, num_rows, heads * width), lengths(random, num_rows, heads);
    in.fill(random);
    bool own = random.below(2);  // matrices of every head
    Buffer<float> weight(int64_t(own ? heads : 1) * depth * width);
    for (int64_t i = 0; i < weight.count(); i++) weight[i] = random.value();
    HeadProductArgs product = {counted, heads, depth, width, 0, in.get(), in.stride(), depth, weight.get(),
                               own ? int64_t(depth) * width : 0, out.get(), out.stride()};
    runner.run("head_product", {OP(head_product, product)}, rows.step, [&] { out.poison(); },
               [&](Outputs& into) { out.read(into); });
    HeadLengthArgs length = {counted, heads,          depth,           in.get(), in.stride(),
                             depth,   lengths.get(), lengths.stride()};
    runner.run("head_length", {OP(head_length, length)}, rows.step, [&] { lengths.poison(); },
               [&](Outputs& into) { lengths.read(into); });
}

}  // namespace

void drive_elementwise(const Runner& runner) {
    Random random(9);
    for (int rows : {1, 2, 5, 17})
        for (int width : {1, 6, 15, 16, 33, 64, 99}) drive(runner, random, rows, width);
}

}  // namespace driver
