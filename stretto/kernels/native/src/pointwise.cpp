// What stands between products and attention: norms, rotations, activations, residual sums. All in fp32, one row at a
// time, in one order; chunks are blocks of rows, so a decode step runs each of them inline.
#include "functions.h"
#include "op.h"

using namespace vec;

namespace {

constexpr int ROWS = 8;  // of a chunk

// Vectors of a row, then what is left: `body(offset, lanes)` for each.
template <class Body>
INLINE void over(int width, Body body) {
    for (int i = 0; i < width; i += LANES) body(i, width - i < LANES ? width - i : LANES);
}

INLINE F32 read(const float* p, int n) { return n == LANES ? load(p) : load_n(p, n); }
INLINE void write(float* p, F32 a, int n) {
    if (n == LANES) store(p, a);
    else store_n(p, a, n);
}

INLINE int64_t row_chunks(const Rows& rows, const Step& step) { return ceil_div(rows.of(&step), ROWS); }

template <class Args, class Body>
INLINE void each_row(const Args& a, const Step& step, int64_t first, int64_t last, Body body) {
    int64_t rows = a.rows.of(&step), end = last * ROWS < rows ? last * ROWS : rows;
    for (int64_t r = first * ROWS; r < end; r++) body(r);
}

// -- root-mean-square norm -----------------------------------------------------------------------------------------------

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

// -- rotary embedding ----------------------------------------------------------------------------------------------------

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

// -- gated activation ----------------------------------------------------------------------------------------------------

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

// -- gates of recurrent layers -------------------------------------------------------------------------------------------

// kind 0: y = clamp(softplus(x + parameters), low, high), 1: y = x * parameters, 2: y = low * sigmoid(x)
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
    if (a.kind == 2) return mul(set1(a.low), sigmoid(x));
    F32 p = read(a.parameters + i, n);
    if (a.kind == 1) return mul(x, p);
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

// -- sums and copies -----------------------------------------------------------------------------------------------------

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

// y = x / divisor
struct DivideArgs {
    Rows rows;
    int32_t width;
    float divisor;
    const float* x;
    int64_t x_stride;
    float* y;
    int64_t y_stride;
};

int64_t chunks(const DivideArgs& a, const Step& step) { return row_chunks(a.rows, step); }

void run(const DivideArgs& a, const Step& step, int64_t first, int64_t last) {
    each_row(a, step, first, last, [&](int64_t r) {
        const float* x = a.x + r * a.x_stride;
        float* y = a.y + r * a.y_stride;
        over(a.width, [&](int i, int n) { write(y + i, div(read(x + i, n), set1(a.divisor)), n); });
    });
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

STRETTO_OP(norm, NormArgs)
STRETTO_OP(rope, RopeArgs)
STRETTO_OP(glu, GluArgs)
STRETTO_OP(gate, GateArgs)
STRETTO_OP(scale_heads, ScaleHeadsArgs)
STRETTO_OP(residual, ResidualArgs)
STRETTO_OP(take, TakeArgs)
STRETTO_OP(divide, DivideArgs)
STRETTO_OP(best, BestArgs)
