#include "recurrent_cases.h"
#include "dscan/dscan.cpp"

namespace driver {
namespace {

void drive(const Runner& runner, Random& random, const std::vector<Seq>& seqs, int channels, int num_states) {
    StepRows rows(random, seqs);
    Accepted accepted(random, rows, seqs);
    int64_t n = rows.step.num_rows, padded = ceil_div(channels, LANES) * LANES, width = 2 * channels + num_states;
    Matrix x(random, n, channels), dt(random, n, channels), B(random, n, num_states), C(random, n, num_states);
    Matrix y(random, n, channels);
    x.fill(random), dt.fill(random, 0.3f), B.fill(random), C.fill(random);
    Buffer<float> A(num_states * padded), D(padded);
    for (auto* buffer : {&A, &D})
        for (int64_t i = 0; i < buffer->count(); i++) (*buffer)[i] = i % padded < channels ? -0.5f : 0.0f;
    Buffer<float> states(2 * int64_t(seqs.size()) * num_states * channels), notes(accepted.num_provisional * width);
    ScanArgs args = {};
    args.channels = channels, args.num_states = num_states, args.x = x.get(), args.x_stride = x.stride();
    args.dt = dt.get(), args.dt_stride = dt.stride(), args.B = B.get(), args.B_stride = B.stride();
    args.C = C.get(), args.C_stride = C.stride(), args.A = A.get(), args.D = D.get();
    args.y = y.get(), args.y_stride = y.stride();
    auto read = [&](Outputs& out) { y.read(out); };
    runner.run("scan", {OP(scan, args)}, rows.step, [&] { y.poison(); }, read);

    args.states = states.get(), args.notes = notes.get(), args.room = accepted.num_provisional;
    ScanReplayArgs replay = {args};
    replay.x = notes.get(), replay.dt = notes.get() + channels, replay.B = notes.get() + 2 * channels;
    replay.x_stride = replay.dt_stride = replay.B_stride = width;
    replay.C = nullptr, replay.y = nullptr;
    runner.run("scan scan_replay", {OP(scan, args), OP(scan_replay, replay)}, accepted.commit.step,
               [&] { y.poison(), notes.poison(), reset(states, 13); },
               [&](Outputs& out) { read(out), read_states(states, out); });
}

}  // namespace

void drive_scan(const Runner& runner) {
    Random random(6);
    for (const auto& seqs : recurrent_cases(random))
        for (int channels : {1, 16, 20, 331})
            for (int num_states : {1, 6, 16, 64}) drive(runner, random, seqs, channels, num_states);
}

}  // namespace driver
