// Layer norms, in fp32, one row at a time, in one order.
#include "rows.h"

using namespace rows;

namespace {

// Every part of `width` entries is normalised by itself: y = (x - mean) / sqrt(variance + eps) * weight + bias.
struct LayerNormArgs {
    Rows rows;
    int32_t parts;
    int32_t width;
    const float* x;
    int64_t x_stride;
    int64_t x_part_stride;
    const float* weight;  // [width], or null
    const float* bias;    // [width], or null
    float eps;
    int32_t unused;
    float* y;  // [rows, parts * width]
    int64_t y_stride;
};

int64_t chunks(const LayerNormArgs& a, const Step& step) { return row_chunks(a.rows, step); }

void run(const LayerNormArgs& a, const Step& step, int64_t first, int64_t last) {
    each_row(a, step, first, last, [&](int64_t r) {
        for (int p = 0; p < a.parts; p++) {
            const float* x = a.x + r * a.x_stride + p * a.x_part_stride;
            float* y = a.y + r * a.y_stride + int64_t(p) * a.width;
            F32 total = set1(0.0f), squares = set1(0.0f);
            over(a.width, [&](int i, int n) { total = add(total, read(x + i, n)); });
            F32 mean = set1(sum(total) / float(a.width));
            over(a.width, [&](int i, int n) {
                write(y + i, sub(read(x + i, n), mean), n);
                F32 v = read(y + i, n);  // beyond the row it is 0, and not the negative mean
                squares = fma(v, v, squares);
            });
            F32 scale = set1(1.0f / std::sqrt(sum(squares) / float(a.width) + a.eps));
            over(a.width, [&](int i, int n) {
                F32 v = mul(read(y + i, n), scale);
                if (a.weight) v = mul(v, read(a.weight + i, n));
                if (a.bias) v = add(v, read(a.bias + i, n));
                write(y + i, v, n);
            });
        }
    });
}

}  // namespace

STRETTO_OP(layer_norm, LayerNormArgs, rows, parts, width, x, x_stride, x_part_stride, weight, bias, eps, unused, y,
           y_stride)
