// Rotary embeddings, in fp32.
#include "rows.h"

using namespace rows;

namespace {

// Pairs (i, i + half) of every head are rotated by the angles of the row's position.
struct RopeArgs {
    Rows rows;
    int32_t heads;
    int32_t width;
    int32_t half;
    int32_t unused;
    const float* x;  // [rows, heads, width]
    int64_t x_stride;
    const float* cos;  // [positions, half]
    const float* sin;
    float* y;  // [rows, heads, width]
    int64_t y_stride;
};

int64_t chunks(const RopeArgs& a, const Step& step) { return row_chunks(a.rows, step); }

void run(const RopeArgs& a, const Step& step, int64_t first, int64_t last) {
    each_row(a, step, first, last, [&](int64_t r) {
        const float* cosines = a.cos + int64_t(step.positions[r]) * a.half;
        const float* sines = a.sin + int64_t(step.positions[r]) * a.half;
        for (int h = 0; h < a.heads; h++) {
            const float* x = a.x + r * a.x_stride + int64_t(h) * a.width;
            float* y = a.y + r * a.y_stride + int64_t(h) * a.width;
            over(a.half, [&](int i, int n) {
                F32 c = read(cosines + i, n), s = read(sines + i, n);
                F32 u = read(x + i, n), v = read(x + a.half + i, n);
                write(y + i, sub(mul(u, c), mul(v, s)), n);
                write(y + a.half + i, add(mul(v, c), mul(u, s)), n);
            });
            for (int i = 2 * a.half; i < a.width; i++) y[i] = x[i];
        }
    });
}

}  // namespace

STRETTO_OP(rope, RopeArgs, rows, heads, width, half, unused, x, x_stride, cos, sin, y, y_stride)
