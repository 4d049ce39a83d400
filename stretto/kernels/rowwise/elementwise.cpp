// Elementwise operations by which a mixer written in plain torch stays on the tape: y = f(x) and y = f(x, z), fp32 rows.
// An operand may be the same for every row (stride 0), and one of its numbers may serve several elements of a row.
#include "rows.h"

using namespace rows;

namespace {

STRETTO_ENUM(Unary, IDENTITY, NEG, ABS, EXP, LOG, LOG1P, SQRT, RSQRT, RECIPROCAL, SIGMOID, TANH, SOFTPLUS, ELU, SILU, GELU,
             GELU_TANH, RELU, SQUARE)
STRETTO_ENUM(Binary, ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM)

// ln x: x = 2^n m with m near 1. Subnormal numbers are taken 2^24 times as large.
INLINE F32 log(F32 x) {
    F32 zero = set1(0.0f), infinite = set1(INFINITY), normal = set1(1.17549435e-38f);
    F32 up = select_less(x, normal, mul(x, set1(16777216.0f)), x);
    I32 n = sub(shr<23>(add(sub(bits(up), set1i(0x3f3504f3)), set1i(127 << 23))), set1i(127));  // sqrt 1/2
    F32 m = bits(sub(bits(up), shl<23>(n)));
    F32 y = log_of(n, sub(m, set1(1.0f)));
    y = select_less(x, normal, sub(y, set1(16.635532333f)), y);  // 24 ln 2
    y = select_less(x, infinite, y, x);
    return select_less(zero, x, y, select_less(x, zero, set1(NAN), sub(x, infinite)));  // NaN stays NaN
}

// ln (1 + x): the logarithm of the rounded u = 1 + x, times x / (u - 1), which undoes the rounding.
INLINE F32 log1p_of_any(F32 x) {
    F32 one = set1(1.0f), u = add(one, x), rounded = sub(u, one);
    F32 y = mul(log(u), div(x, rounded));
    y = select_less(abs(rounded), set1(1e-30f), x, y);
    return select_less(x, set1(INFINITY), y, add(x, x));  // infinity and NaN stay
}

// erf, within 1.5e-7: Abramowitz and Stegun 7.1.26.
INLINE F32 erf(F32 x) {
    F32 one = set1(1.0f), a = abs(x), t = div(one, fma(set1(0.3275911f), a, one));
    F32 p = set1(1.061405429f);
    p = fma(p, t, set1(-1.453152027f));
    p = fma(p, t, set1(1.421413741f));
    p = fma(p, t, set1(-0.284496736f));
    p = fma(p, t, set1(0.254829592f));
    F32 y = sub(one, mul(mul(p, t), exp(sub(set1(0.0f), mul(a, a)))));
    return select_less(x, set1(0.0f), sub(set1(0.0f), y), y);
}

INLINE F32 softplus_of_any(F32 x) {  // `softplus` takes what a time step can be; far below, e^x is all that is left
    return select_less(x, set1(-80.0f), exp(x), softplus(x));
}

INLINE F32 unary(int32_t op, F32 x) {
    F32 zero = set1(0.0f), one = set1(1.0f);
    switch (op) {
        case NEG: return sub(zero, x);
        case ABS: return abs(x);
        case EXP: return exp(x);
        case LOG: return log(x);
        case LOG1P: return log1p_of_any(x);
        case SIGMOID: return sigmoid(x);
        case TANH: return tanh(x);
        case SOFTPLUS: return softplus_of_any(x);
        case ELU: return select_less(zero, x, x, sub(exp(min(zero, x)), one));
        case SILU: return silu(x);
        case GELU: return mul(mul(set1(0.5f), x), add(one, erf(mul(x, set1(0.70710678118654752f)))));
        case GELU_TANH: return gelu(x);
        case RELU: return max(zero, x);
        case SQUARE: return mul(x, x);
        case RECIPROCAL: return div(one, x);
        default: return x;
    }
}

INLINE F32 binary(int32_t op, F32 x, F32 z) {
    switch (op) {
        case ADD: return add(x, z);
        case SUB: return sub(x, z);
        case MUL: return mul(x, z);
        case DIV: return div(x, z);
        case MAXIMUM: return max(x, z);
        default: return min(x, z);
    }
}

struct UnaryArgs {
    Rows rows;
    int32_t width;
    int32_t op;
    const float* x;
    int64_t x_stride;
    float* y;
    int64_t y_stride;
};

int64_t chunks(const UnaryArgs& a, const Step& step) { return row_chunks(a.rows, step); }

void run(const UnaryArgs& a, const Step& step, int64_t first, int64_t last) {
    each_row(a, step, first, last, [&](int64_t r) {
        const float* x = a.x + r * a.x_stride;
        float* y = a.y + r * a.y_stride;
        if (a.op == SQRT || a.op == RSQRT) {
            for (int i = 0; i < a.width; i++) y[i] = a.op == SQRT ? std::sqrt(x[i]) : 1.0f / std::sqrt(x[i]);
        } else {
            over(a.width, [&](int i, int n) { write(y + i, unary(a.op, read(x + i, n)), n); });
        }
    });
}

// Element i of a row reads number i / x_every of x and number i / z_every of z.
struct BinaryArgs {
    Rows rows;
    int32_t width;
    int32_t op;
    const float* x;
    int64_t x_stride;
    const float* z;
    int64_t z_stride;
    int32_t x_every;
    int32_t z_every;
    float* y;
    int64_t y_stride;
};

int64_t chunks(const BinaryArgs& a, const Step& step) { return row_chunks(a.rows, step); }

void run(const BinaryArgs& a, const Step& step, int64_t first, int64_t last) {
    // Parts of a row in which each operand is either one number or as long as the part.
    int part = a.x_every > 1 ? a.x_every : a.z_every > 1 ? a.z_every : a.width;
    each_row(a, step, first, last, [&](int64_t r) {
        const float *x = a.x + r * a.x_stride, *z = a.z + r * a.z_stride;
        float* y = a.y + r * a.y_stride;
        for (int from = 0; from < a.width; from += part) {
            over(part, [&](int i, int n) {
                F32 u = a.x_every > 1 ? set1(x[from / a.x_every]) : read(x + from + i, n);
                F32 v = a.z_every > 1 ? set1(z[from / a.z_every]) : read(z + from + i, n);
                write(y + from + i, binary(a.op, u, v), n);
            });
        }
    });
}

}  // namespace

STRETTO_OP(unary, UnaryArgs, rows, width, op, x, x_stride, y, y_stride)
STRETTO_OP(binary, BinaryArgs, rows, width, op, x, x_stride, z, z_stride, x_every, z_every, y, y_stride)

STRETTO_EXPORT_ENUM(Unary)
STRETTO_EXPORT_ENUM(Binary)
