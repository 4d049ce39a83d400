// Gates of recurrent layers, in fp32.
#include "rows.h"

using namespace rows;

namespace {

// TIME_STEP: y = clamp(softplus(x + parameters), low, high); DECAY: y = x * parameters; SIGMOID: y = low * sigmoid(x)
STRETTO_ENUM(GateKind, TIME_STEP, DECAY, SIGMOID)

struct GateArgs {
    Rows rows;
    int32_t width;
    int32_t kind;
    const float* x;
    int64_t x_stride;
    const float* parameters;  // [width], or null
    float low;
    float high;
    float* y;
    int64_t y_stride;
};

INLINE F32 gate(const GateArgs& a, F32 x, int i, int n) {
    if (a.kind == SIGMOID) return mul(set1(a.low), sigmoid(x));
    F32 p = read(a.parameters + i, n);
    if (a.kind == DECAY) return mul(x, p);
    return min(set1(a.high), max(set1(a.low), softplus(add(x, p))));  // in this order NaN stays NaN
}

int64_t chunks(const GateArgs& a, const Step& step) { return row_chunks(a.rows, step); }

void run(const GateArgs& a, const Step& step, int64_t first, int64_t last) {
    each_row(a, step, first, last, [&](int64_t r) {
        const float* x = a.x + r * a.x_stride;
        float* y = a.y + r * a.y_stride;
        over(a.width, [&](int i, int n) { write(y + i, gate(a, read(x + i, n), i, n), n); });
    });
}

// y = s x (+ add), one s per head
struct ScaleHeadsArgs {
    Rows rows;
    int32_t heads;
    int32_t width;
    const float* x;  // [rows, heads, width]
    int64_t x_stride;
    const float* s;    // [rows, heads]
    int64_t s_stride;  // 0: the same for every row
    const float* add;  // [rows, heads, width], or null
    int64_t add_stride;
    float* y;  // [rows, heads, width]
    int64_t y_stride;
};

int64_t chunks(const ScaleHeadsArgs& a, const Step& step) { return row_chunks(a.rows, step); }

void run(const ScaleHeadsArgs& a, const Step& step, int64_t first, int64_t last) {
    each_row(a, step, first, last, [&](int64_t r) {
        for (int h = 0; h < a.heads; h++) {
            int64_t head = int64_t(h) * a.width;
            const float *x = a.x + r * a.x_stride + head, *add = a.add ? a.add + r * a.add_stride + head : nullptr;
            F32 s = set1(a.s[r * a.s_stride + h]);
            float* y = a.y + r * a.y_stride + head;
            over(a.width, [&](int i, int n) {
                F32 v = read(x + i, n);
                write(y + i, add ? fma(s, v, read(add + i, n)) : mul(s, v), n);
            });
        }
    });
}

}  // namespace

STRETTO_OP(gate, GateArgs, rows, width, kind, x, x_stride, parameters, low, high, y, y_stride)
STRETTO_OP(scale_heads, ScaleHeadsArgs, rows, heads, width, x, x_stride, s, s_stride, add, add_stride, y, y_stride)
STRETTO_EXPORT_ENUM(GateKind)
