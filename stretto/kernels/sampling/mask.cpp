// A grammar's mask over a row of logits: the numbers of tokens that it does not allow become -inf.
#include <algorithm>
#include <cmath>

#include "op.h"

namespace {

// Bit t % 8 of byte t / 8 belongs to token t; tokens beyond the last byte are not allowed.
struct MaskArgs {
    float* x;  // [width]
    const uint8_t* allowed;
    int32_t width;
    int32_t num_bytes;
};

int64_t chunks(const MaskArgs&, const Step&) { return 1; }

void run(const MaskArgs& a, const Step&, int64_t, int64_t) {
    for (int32_t first = 0; first < a.width; first += 8) {
        uint32_t bits = first / 8 < a.num_bytes ? a.allowed[first / 8] : 0;
        if (bits == 0xFF) continue;
        int32_t some = std::min(8, a.width - first);
        for (int32_t i = 0; i < some; i++) a.x[first + i] = bits >> i & 1 ? a.x[first + i] : -INFINITY;
    }
}

}  // namespace

STRETTO_OP(mask, MaskArgs, x, allowed, width, num_bytes)
