// A row of logits, how a token is chosen from it, and the token.
#pragma once

#include <cstdint>

namespace sampling {

struct Row {
    const float* x;         // [width]
    const int32_t* argmax;  // the lowest id of the largest logit
    int32_t width;
    float temperature;  // 0: the argmax
    float top_p;        // 1: everything
    float log_min_p;    // -inf: everything
    int32_t top_k;      // 0: everything
    uint32_t key[2];
    uint32_t position;
    uint32_t purpose;
    int32_t token;  // the answer

    float top() const { return x[*argmax]; }
};

}  // namespace sampling
