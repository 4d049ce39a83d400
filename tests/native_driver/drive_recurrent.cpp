#include "glr/glr.cpp"
#include "recurrent_cases.h"
#include "short_conv/short_conv.cpp"

namespace driver {
namespace {

void drive_glr(
    const Runner& runner, Random& random, const std::vector<Seq>& seqs, int heads, int groups, int K, int V
) {
    StepRows rows(random, seqs);
    Accepted accepted(random, rows, seqs);
    int64_t n = rows.step.num_rows, width = groups * K + heads * V + 2 * heads;
    Matrix q(random, n, groups * K), k(random, n, groups * K), v(random, n, heads * V), g(random, n, heads);
    Matrix beta(random, n, heads), o(random, n, heads * V);
    float small = 1.0f / float(K);
    q.fill(random), k.fill(random, small), v.fill(random), g.fill(random, 0.2f), beta.fill(random);
    Buffer<float> states(2 * int64_t(seqs.size()) * heads * K * V), notes(accepted.num_provisional * width);
    bool is_delta = random.below(2);
    GlrArgs args = {};
    args.heads = heads, args.groups = groups, args.num_k = K, args.num_v = V, args.scale = 0.5f;
    args.q = q.get(), args.q_stride = q.stride(), args.k = k.get(), args.k_stride = k.stride();
    args.v = v.get(), args.v_stride = v.stride(), args.g = g.get(), args.g_stride = g.stride();
    args.o = o.get(), args.o_stride = o.stride();
    if (is_delta) args.beta = beta.get(), args.beta_stride = beta.stride();
    auto read = [&](Outputs& out) { o.read(out); };
    runner.run("glr", {OP(glr, args)}, rows.step, [&] { o.poison(); }, read);

    args.states = states.get(), args.notes = notes.get(), args.room = accepted.num_provisional;
    GlrReplayArgs replay = {args};
    replay.k = notes.get(), replay.v = replay.k + groups * K, replay.g = replay.v + heads * V;
    replay.beta = is_delta ? replay.g + heads : nullptr;
    replay.k_stride = replay.v_stride = replay.g_stride = replay.beta_stride = width;
    replay.q = nullptr, replay.o = nullptr;
    runner.run("glr glr_replay", {OP(glr, args), OP(glr_replay, replay)}, accepted.commit.step,
               [&] { o.poison(), notes.poison(), reset(states, 11); },
               [&](Outputs& out) { read(out), read_states(states, out); });
}

void drive_conv(const Runner& runner, Random& random, const std::vector<Seq>& seqs, int channels, int width) {
    StepRows rows(random, seqs);
    Accepted accepted(random, rows, seqs);
    int64_t n = rows.step.num_rows, padded = ceil_div(channels, LANES) * LANES;
    Matrix x(random, n, channels), y(random, n, channels);
    x.fill(random);
    Buffer<float> taps(width * padded), bias(padded), zeros(channels), notes(accepted.num_provisional * channels);
    Buffer<float> states(2 * int64_t(seqs.size()) * (width - 1) * channels);
    for (auto* buffer : {&taps, &bias, &zeros})
        for (int64_t i = 0; i < buffer->count(); i++)
            (*buffer)[i] = buffer != &zeros && i % padded < channels ? random.value() : 0.0f;
    ShortConvArgs args = {};
    args.channels = channels, args.width = width, args.silu = random.below(2);
    args.x = x.get(), args.x_stride = x.stride(), args.y = y.get(), args.y_stride = y.stride();
    args.taps = taps.get(), args.bias = random.below(2) ? bias.get() : nullptr, args.zeros = zeros.get();
    auto read = [&](Outputs& out) { y.read(out); };
    runner.run("short_conv", {OP(short_conv, args)}, rows.step, [&] { y.poison(); }, read);

    args.states = states.get(), args.notes = notes.get(), args.room = accepted.num_provisional;
    ShortConvReplayArgs replay = {args};
    replay.x = notes.get(), replay.x_stride = channels;
    runner.run("short_conv short_conv_replay", {OP(short_conv, args), OP(short_conv_replay, replay)},
               accepted.commit.step, [&] { y.poison(), notes.poison(), reset(states, 12); },
               [&](Outputs& out) { read(out), read_states(states, out); });
}

}  // namespace

void drive_recurrent(const Runner& runner) {
    Random random(4);
    for (const auto& seqs : recurrent_cases(random)) {
        drive_glr(runner, random, seqs, 4, 2, 8, 20);
        drive_glr(runner, random, seqs, 3, 1, 37, 70);
        drive_glr(runner, random, seqs, 3, 3, 1, 1);
        drive_glr(runner, random, seqs, 6, 1, 64, 33);
        drive_glr(runner, random, seqs, 2, 2, 256, 16);
        for (int channels : {1, 16, 20, 130, 331, 1000})
            for (int width : {1, 2, 4, 16}) drive_conv(runner, random, seqs, channels, width);
    }
}

}  // namespace driver
