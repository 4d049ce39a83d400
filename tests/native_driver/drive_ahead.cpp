#include "driver.h"
#include "sampling/ahead.cpp"

namespace driver {
namespace {

// `steps` steps of n sequences in which nothing is computed: every sequence says its own token, one of them a stop.
void drive(const Runner& runner, Random& random, int n, int steps, bool ends) {
    Buffer<sampling::Row> rows(n);
    Buffer<float> tops(n), all_tops(int64_t(steps) * n);
    Buffer<int64_t> tokens(int64_t(steps + 1) * n), slots(int64_t(steps) * n), stops(2 * n), done(1), left(1);
    Buffer<int32_t> positions(n), contexts(n), source(n), destination(n), starts(n + 1);
    Buffer<int32_t> num_keys(2 * n);
    PageGroup groups[2];
    Step step;
    AdvanceArgs args = {&step, rows.get(), tops.get(), tokens.get(), all_tops.get(), positions.get(), contexts.get(),
                        source.get(), stops.get(), starts.get(), done.get(), left.get()};
    int stopping = random.below(n);
    auto reset = [&] {
        step = {};
        step.num_rows = step.num_seqs = n;
        step.tokens = tokens.get(), step.state_destination = destination.get();
        for (int g : {0, 1}) groups[g] = {slots.get() + g, nullptr, 0, num_keys.get() + g * n, nullptr, nullptr};
        step.groups = groups, step.num_groups = 2;
        step.positions = positions.get(), step.contexts = contexts.get(), step.state_source = source.get();
        for (int b = 0; b < n; b++) {
            rows[b] = {}, rows[b].token = 100 + b, rows[b].position = 7, tops[b] = float(b), tokens[b] = b;
            positions[b] = 2 * b, contexts[b] = 3 * b, num_keys[b] = 4 * b, num_keys[n + b] = 5 * b, source[b] = -1, destination[b] = b;
            stops[2 * b] = 5, stops[2 * b + 1] = ends && b == stopping ? 100 + b : 6, starts[b] = 2 * b;
        }
        starts[n] = 2 * n, done[0] = 0, left[0] = steps;
    };
    runner.run("advance", {OP(advance, args)}, step, reset, [&](Outputs& out) {
        int ran = ends ? 1 : steps;
        if (done[0] != ran || left[0] != 0) fail("a wrong number of steps");
        int went = ran - 1;  // from the first step to the last
        if (step.tokens != tokens.get() + went * n) fail("lost in a step");
        for (int g : {0, 1})
            if (groups[g].slot_mapping != slots.get() + g + went * n) fail("a wrong slot");
        for (int b = 0; b < n; b++) {
            if (positions[b] != 2 * b + went || contexts[b] != 3 * b + went || num_keys[b] != 4 * b + went ||
                num_keys[n + b] != 5 * b + went || rows[b].position != 7u + uint32_t(went))
                fail("a wrong position");
            if (source[b] != (went ? b : -1)) fail("a state of the past");
            for (int k = 0; k < ran; k++)
                out.push_back(float(tokens[(k + 1) * n + b])), out.push_back(all_tops[k * n + b]);
        }
    }, left.get());
}

}  // namespace

void drive_ahead(const Runner& runner) {
    Random random(8);
    for (int n : {1, 2, 17})
        for (int steps : {1, 2, 16}) drive(runner, random, n, steps, false), drive(runner, random, n, steps, true);
}

}  // namespace driver
