// Root-mean-square norms, in fp32, one row at a time, in one order.
#include "rows.h"

using namespace rows;

namespace {

// Every part of `width` entries is normalised by itself: y = x / sqrt(sum(x^2) / divisor + eps) * weight. A gate
// multiplies x before (mode 1) or y after (mode 2) by silu(gate).
struct NormArgs {
    Rows rows;
    int32_t parts;
    int32_t width;
    const float* x;
    int64_t x_stride;
    int64_t x_part_stride;
    const float* weight;  // or null
    int64_t weight_stride;  // from part to part: 0 if they share one
    const float* gate;      // laid out as x, with its own row stride, or null
    int64_t gate_stride;
    int32_t gate_mode;
    float eps;
    float divisor;  // width, or 1 for unit length
    int32_t unused;
    float* y;  // [rows, parts * width]
    int64_t y_stride;
};

int64_t chunks(const NormArgs& a, const Step& step) { return row_chunks(a.rows, step); }

void run(const NormArgs& a, const Step& step, int64_t first, int64_t last) {
    each_row(a, step, first, last, [&](int64_t r) {
        for (int p = 0; p < a.parts; p++) {
            const float* x = a.x + r * a.x_stride + p * a.x_part_stride;
            const float* gate = a.gate ? a.gate + r * a.gate_stride + p * a.x_part_stride : nullptr;
            const float* weight = a.weight ? a.weight + p * a.weight_stride : nullptr;
            float* y = a.y + r * a.y_stride + int64_t(p) * a.width;
            F32 squares = set1(0.0f);
            over(a.width, [&](int i, int n) {
                F32 v = read(x + i, n);
                if (gate && a.gate_mode == 1) v = mul(v, silu(read(gate + i, n)));
                write(y + i, v, n);
                if (n < LANES) v = read(y + i, n);  // silu(0) is 0, but 0 * NaN is not: only what was written counts
                squares = fma(v, v, squares);
            });
            F32 scale = set1(1.0f / std::sqrt(sum(squares) / a.divisor + a.eps));
            over(a.width, [&](int i, int n) {
                F32 v = mul(read(y + i, n), scale);
                if (weight) v = mul(v, read(weight + i, n));
                if (gate && a.gate_mode == 2) v = mul(v, silu(read(gate + i, n)));
                write(y + i, v, n);
            });
        }
    });
}

}  // namespace

STRETTO_OP(norm, NormArgs, rows, parts, width, x, x_stride, x_part_stride, weight, weight_stride, gate, gate_stride,
           gate_mode, eps, divisor, unused, y, y_stride)
