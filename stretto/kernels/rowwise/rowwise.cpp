// Activations, residual sums, copies of rows. All in fp32, one row at a time, in one order; chunks are blocks of rows, so a
// decode step runs each of them inline.
#include "rows.h"

using namespace rows;

namespace {

// y = act(gate) * up
struct GluArgs {
    Rows rows;
    int32_t width;
    int32_t act;
    const float* gate;
    int64_t gate_stride;
    const float* up;
    int64_t up_stride;
    float* y;
    int64_t y_stride;
};

int64_t chunks(const GluArgs& a, const Step& step) { return row_chunks(a.rows, step); }

void run(const GluArgs& a, const Step& step, int64_t first, int64_t last) {
    each_row(a, step, first, last, [&](int64_t r) {
        const float *gate = a.gate + r * a.gate_stride, *up = a.up + r * a.up_stride;
        float* y = a.y + r * a.y_stride;
        over(a.width, [&](int i, int n) {
            F32 g = read(gate + i, n);
            write(y + i, mul(activation(a.act, g), read(up + i, n)), n);
        });
    });
}

// y = x + scale * branch
struct ResidualArgs {
    Rows rows;
    int32_t width;
    float scale;
    const float* x;
    int64_t x_stride;
    const float* branch;
    int64_t branch_stride;
    float* y;
    int64_t y_stride;
};

int64_t chunks(const ResidualArgs& a, const Step& step) { return row_chunks(a.rows, step); }

void run(const ResidualArgs& a, const Step& step, int64_t first, int64_t last) {
    each_row(a, step, first, last, [&](int64_t r) {
        const float *x = a.x + r * a.x_stride, *branch = a.branch + r * a.branch_stride;
        float* y = a.y + r * a.y_stride;
        over(a.width, [&](int i, int n) {
            write(y + i, fma(set1(a.scale), read(branch + i, n), read(x + i, n)), n);
        });
    });
}

// y[i] = x[out_rows[i]]
struct TakeArgs {
    int32_t width;
    int32_t unused;
    const float* x;
    int64_t x_stride;
    float* y;
    int64_t y_stride;
};

int64_t chunks(const TakeArgs&, const Step& step) { return step.num_out > 0; }

void run(const TakeArgs& a, const Step& step, int64_t, int64_t) {
    for (int64_t i = 0; i < step.num_out; i++)
        std::memcpy(a.y + i * a.y_stride, a.x + int64_t(step.out_rows[i]) * a.x_stride, size_t(a.width) * 4);
}

// values[r] = the largest of x[r], ids[r] = the lowest index that has it. One NaN makes the value NaN.
struct BestArgs {
    Rows rows;
    int32_t width;
    int32_t unused;
    const float* x;
    int64_t x_stride;
    float* values;
    int32_t* ids;
};

int64_t chunks(const BestArgs& a, const Step& step) { return a.rows.of(&step); }

void run(const BestArgs& a, const Step&, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) {
        const float* x = a.x + r * a.x_stride;
        // The largest value first, then where it is: both passes are plain, and the second ends early.
        F32 top = set1(-INFINITY), zeros = set1(0.0f);
        int i = 0;
        for (; i + LANES <= a.width; i += LANES) {
            F32 v = load(x + i);
            top = max(top, v);
            zeros = fma(v, set1(0.0f), zeros);  // becomes NaN with NaN, but also with infinities
        }
        float best = highest(top), suspect = sum(zeros);
        for (int j = i; j < a.width; j++) {
            if (x[j] > best) best = x[j];
            suspect += x[j] * 0.0f;
        }
        if (suspect != 0.0f)
            for (int j = 0; j < a.width; j++)
                if (x[j] != x[j] || x[j] > best) best = x[j];
        a.values[r] = best;
        a.ids[r] = 0;
        for (int j = 0; j < a.width; j++)
            if (x[j] == best) {
                a.ids[r] = j;
                break;
            }
    }
}

}  // namespace

STRETTO_OP(glu, GluArgs, rows, width, act, gate, gate_stride, up, up_stride, y, y_stride)
STRETTO_OP(residual, ResidualArgs, rows, width, scale, x, x_stride, branch, branch_stride, y, y_stride)
STRETTO_OP(take, TakeArgs, width, unused, x, x_stride, y, y_stride)
STRETTO_OP(best, BestArgs, rows, width, unused, x, x_stride, values, ids)
