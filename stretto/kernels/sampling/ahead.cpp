// Plain steps one after another, with nobody asked in between: the tokens that one step chose are the rows of the next.
#include <cmath>

#include "op.h"
#include "sampling/sample.h"

namespace {

// The last operation of a step with one row per sequence: describes the next step in place.
struct AdvanceArgs {
    Step* step;                  // the one that runs
    sampling::Row* rows;         // [B] what it chose
    const float* tops;           // [B] its largest logits
    int64_t* tokens;             // [1 + steps, B]: the first row from the caller, then what every step chose
    float* all_tops;             // [steps, B]
    int32_t* positions;          // [B] arrays of `step` from here on
    int32_t* contexts;           // [B]
    int32_t* state_source;       // [B]
    const int64_t* stops;        // tokens that end a sequence, sequence after sequence
    const int32_t* stop_starts;  // [B + 1]
    int64_t* done;               // steps that have run
    int64_t* left;               // steps to come; none as soon as a sequence ends or a logit is not finite
};

bool is_stop(const AdvanceArgs& a, int b, int64_t token) {
    for (int i = a.stop_starts[b]; i < a.stop_starts[b + 1]; i++)
        if (a.stops[i] == token) return true;
    return false;
}

int64_t chunks(const AdvanceArgs&, const Step&) { return 1; }

void run(const AdvanceArgs& a, const Step& step, int64_t, int64_t) {
    int n = step.num_rows;
    int64_t *chosen = a.tokens + (*a.done + 1) * n, left = *a.left - 1;
    for (int b = 0; b < n; b++) {
        chosen[b] = a.rows[b].token;
        a.all_tops[*a.done * n + b] = a.tops[b];
        if (is_stop(a, b, chosen[b]) || !std::isfinite(a.tops[b])) left = 0;
    }
    *a.done += 1;
    *a.left = left;
    if (left == 0) return;  // the description stays that of a step that has run
    a.step->tokens = chosen;
    for (PageGroup* group = a.step->groups; group < a.step->groups + a.step->num_groups; group++) {
        group->slot_mapping += n;  // slots lie step after step
        for (int b = 0; b < n; b++) group->num_keys[b]++;
    }
    for (int b = 0; b < n; b++) {
        a.rows[b].position++, a.positions[b]++, a.contexts[b]++;
        a.state_source[b] = step.state_destination[b];
    }
}

}  // namespace

STRETTO_OP(advance, AdvanceArgs, step, rows, tops, tokens, all_tops, positions, contexts, state_source, stops,
           stop_starts, done, left)
