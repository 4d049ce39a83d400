// Log-probabilities of rows of logits, before any processing: of one token, and of the likeliest ones.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "op.h"

namespace {

// A row [width] of finite numbers or -inf, not all of them -inf. Sums are in double precision, in the order of the ids.
struct LogprobsArgs {
    const float* x;
    int32_t width;
    int32_t chosen;
    int32_t num_top;  // at most `width`
    int32_t unused;
    float* logprob;   // [1] of `chosen`
    int32_t* ids;     // [num_top] likeliest first, the lower id of equals
    float* logprobs;  // [num_top] theirs
};

int64_t chunks(const LogprobsArgs&, const Step&) { return 1; }

void run(const LogprobsArgs& a, const Step&, int64_t, int64_t) {
    double top = *std::max_element(a.x, a.x + a.width), sum = 0.0;
    for (int32_t i = 0; i < a.width; i++) sum += std::exp(double(a.x[i]) - top);
    double log_total = top + std::log(sum);
    auto logprob = [&](int32_t i) { return float(double(a.x[i]) - log_total); };
    *a.logprob = logprob(a.chosen);
    if (a.num_top == 0) return;
    std::vector<int32_t> order(size_t(a.width));
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + a.num_top, order.end(), [&](int32_t i, int32_t j) {
        return a.x[i] > a.x[j] || (a.x[i] == a.x[j] && i < j);
    });
    for (int32_t i = 0; i < a.num_top; i++) {
        a.ids[i] = order[size_t(i)];
        a.logprobs[i] = logprob(order[size_t(i)]);
    }
}

}  // namespace

STRETTO_OP(row_logprobs, LogprobsArgs, x, width, chosen, num_top, unused, logprob, ids, logprobs)
