#include "driver.h"
#include "gates/gates.cpp"
#include "layernorm/layernorm.cpp"
#include "rmsnorm/rmsnorm.cpp"
#include "rope/rope.cpp"
#include "rowwise/rowwise.cpp"

namespace driver {
namespace {

void drive(const Runner& runner, Random& random, int num_rows, int width) {
    StepRows rows(random, {Seq::chain(random.below(7), num_rows, num_rows)});
    rows.step.num_out = num_rows;
    Rows counted = {random.below(3), num_rows};
    Matrix x(random, num_rows, width), z(random, num_rows, width), y(random, num_rows, width);
    x.fill(random, 9.0f), z.fill(random, 9.0f);
    auto run = [&](const char* name, Op op, Matrix& out) {
        runner.run(name, {op}, rows.step, [&] { out.poison(); }, [&](Outputs& into) { out.read(into); });
    };

    ResidualArgs residual = {counted,  width,      0.7f,    x.get(),   x.stride(),
                             z.get(), z.stride(), y.get(), y.stride()};
    run("residual", OP(residual, residual), y);
    Matrix both(random, num_rows, 2 * width);  // gate and up lie side by side
    both.fill(random, 200.0f);
    for (int act : {0, 1}) {
        GluArgs glu = {counted,       width,           act,           both.get(),
                       both.stride(), both.get() + width, both.stride(), y.get(), y.stride()};
        run("glu", OP(glu, glu), y);
    }

    std::vector<int32_t> wanted;
    for (int i = 0; i < num_rows; i++) wanted.push_back(random.below(num_rows));
    rows.step.out_rows = rows.keep(wanted);
    TakeArgs take = {width, 0, x.get(), x.stride(), y.get(), y.stride()};
    run("take", OP(take, take), y);

    Buffer<float> values(num_rows);
    Buffer<int32_t> ids(num_rows);
    BestArgs best = {counted, width, 0, x.get(), x.stride(), values.get(), ids.get()};
    runner.run("best", {OP(best, best)}, rows.step, [&] { values.poison(), ids.poison(); },
               [&](Outputs& out) {
                   for (int i = 0; i < num_rows; i++) out.push_back(values[i]), out.push_back(float(ids[i]));
               });

    for (int parts : {1, 3})
        for (int mode : {0, 1, 2}) {
            int all = parts * width;
            Matrix in(random, num_rows, all), gate(random, num_rows, all), out(random, num_rows, all);
            in.fill(random, 5.0f), gate.fill(random, 5.0f);
            bool own = random.below(2);
            Buffer<float> weight(own ? all : width);
            for (int64_t i = 0; i < weight.count(); i++) weight[i] = random.value();
            NormArgs norm = {counted,         parts,       width, in.get(),
                             in.stride(),     width,       random.below(3) ? weight.get() : nullptr,
                             own ? width : 0, mode ? gate.get() : nullptr, gate.stride(), mode, 1e-5f,
                             float(width),    0,           out.get(),    out.stride()};
            run("norm", OP(norm, norm), out);
        }

    for (int parts : {1, 3}) {
        Matrix in(random, num_rows, parts * width), out(random, num_rows, parts * width);
        in.fill(random, 5.0f);
        Buffer<float> weight(width), bias(width);
        for (int i = 0; i < width; i++) weight[i] = random.value(), bias[i] = random.value();
        LayerNormArgs norm = {counted, parts, width, in.get(), in.stride(), width,
                              random.below(3) ? weight.get() : nullptr, random.below(3) ? bias.get() : nullptr,
                              1e-5f, 0, out.get(), out.stride()};
        run("layer_norm", OP(layer_norm, norm), out);
    }

    Buffer<float> parameters(width);
    for (int i = 0; i < width; i++) parameters[i] = random.value();
    for (int kind : {0, 1, 2}) {
        GateArgs gate = {counted,   width, kind, x.get(), x.stride(), kind == 2 ? nullptr : parameters.get(),
                         0.25f, 4.0f, y.get(), y.stride()};
        run("gate", OP(gate, gate), y);
    }

    int heads = 1 + random.below(3), half = random.below(2) ? width / 2 : width / 3, positions = 7 + num_rows;
    Matrix in(random, num_rows, heads * width), out(random, num_rows, heads * width);
    in.fill(random);
    Buffer<float> cosines(int64_t(positions) * half), sines(int64_t(positions) * half);
    for (int64_t i = 0; i < sines.count(); i++) cosines[i] = random.value(), sines[i] = random.value();
    RopeArgs rope = {counted,  heads,       width,         half,        0,           in.get(),
                     in.stride(), cosines.get(), sines.get(), out.get(), out.stride()};
    run("rope", OP(rope, rope), out);
    bool is_shared = random.below(2);  // one factor for all rows
    Matrix factors(random, is_shared ? 1 : num_rows, heads), sum(random, num_rows, heads * width);
    factors.fill(random), sum.fill(random);
    ScaleHeadsArgs scale = {counted,       heads,
                            width,         in.get(),
                            in.stride(),   factors.get(),
                            is_shared ? 0 : factors.stride(), random.below(2) ? sum.get() : nullptr,
                            sum.stride(),  out.get(),
                            out.stride()};
    run("scale_heads", OP(scale_heads, scale), out);
}

}  // namespace

void drive_pointwise(const Runner& runner) {
    Random random(2);
    for (int rows : {1, 2, 3, 5, 8, 17, 65})
        for (int width : {1, 8, 15, 16, 20, 33, 64, 100}) drive(runner, random, rows, width);
}

}  // namespace driver
