// Functions of vectors, made of the operations of vec.h: the same bits on every level.
#pragma once

#include "fields.h"
#include "vec.h"

namespace vec {

// e^x, within 2 ulp for -87 < x < 88; 0 below. A polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2].
INLINE F32 exp(F32 x) {
    F32 tiny = set1(-87.0f);
    F32 y = min(set1(88.0f), max(tiny, x));  // in this order NaN stays NaN
    F32 n = round_even(mul(y, set1(1.44269504088896341f)));
    F32 r = fma(n, set1(-0.693359375f), y);
    r = fma(n, set1(2.12194440e-4f), r);
    F32 p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = add(fma(mul(r, r), p, r), set1(1.0f));
    I32 scale = shl<23>(add(to_int(n), set1i(127)));
    return select_less(x, tiny, set1(0.0f), mul(p, bits(scale)));
}

// ln(2^n (1 + f)) = n ln 2 + f - f^2 / 2 + f^3 p(f), with p of degree 7 on [1 / sqrt 2 - 1, sqrt 2 - 1].
INLINE F32 log_of(I32 n, F32 f) {
    F32 square = mul(f, f), p = set1(-0.07634586f);
    p = fma(p, f, set1(0.12761599f));
    p = fma(p, f, set1(-0.13160156f));
    p = fma(p, f, set1(0.14201753f));
    p = fma(p, f, set1(-0.1662336f));
    p = fma(p, f, set1(0.20001227f));
    p = fma(p, f, set1(-0.2500082f));
    p = fma(p, f, set1(0.3333333f));
    F32 y = fma(set1(-0.5f), square, mul(mul(square, f), p)), exponent = to_float(n);
    y = add(f, fma(exponent, set1(-2.12194440e-4f), y));
    return fma(exponent, set1(0.693359375f), y);
}

// log(1 + x), within 1.5 ulp for 0 <= x < 2^126. The sum 1 + x is 2^n m with m near 1, and what it lost goes into m - 1.
INLINE F32 log1p(F32 x) {
    F32 one = set1(1.0f), u = add(x, one);
    F32 lost = select_less(x, one, sub(x, sub(u, one)), sub(one, sub(u, x)));
    I32 n = shr<23>(sub(bits(u), set1i(0x3f3504f3)));  // sqrt 1/2
    F32 m = bits(sub(bits(u), shl<23>(n))), scale = bits(shl<23>(sub(set1i(127), n)));
    return log_of(n, fma(lost, scale, sub(m, one)));
}

INLINE F32 sigmoid(F32 x) { return div(set1(1.0f), add(set1(1.0f), exp(sub(set1(0.0f), x)))); }
INLINE F32 silu(F32 x) { return div(x, add(set1(1.0f), exp(sub(set1(0.0f), x)))); }

// tanh x = x - x^3 / 3 + ... near 0, where 1 - e^-2x would lose its digits, else (1 - e) / (1 + e), e = e^-2|x|.
INLINE F32 tanh(F32 x) {
    F32 one = set1(1.0f), a = abs(x), square = mul(x, x);
    F32 p = set1(-5.70498872745e-3f);
    p = fma(p, square, set1(2.06390887954e-2f));
    p = fma(p, square, set1(-5.37397155531e-2f));
    p = fma(p, square, set1(1.33314422036e-1f));
    p = fma(p, square, set1(-3.33332819422e-1f));
    F32 near = fma(mul(p, square), x, x), e = exp(mul(set1(-2.0f), a));
    F32 far = div(sub(one, e), add(one, e));
    far = select_less(x, set1(0.0f), sub(set1(0.0f), far), far);
    return select_less(a, set1(0.625f), near, far);
}

INLINE F32 gelu(F32 x) {  // x / (1 + exp(-2 z)), z = sqrt(2 / pi) (x + 0.044715 x^3)
    F32 z = mul(mul(set1(-1.5957691216057308f), x), fma(mul(set1(0.044715f), x), x, set1(1.0f)));
    return div(x, add(set1(1.0f), exp(z)));
}

STRETTO_ENUM(Activation, SILU, GELU_TANH)

INLINE F32 activation(int32_t act, F32 x) { return act == SILU ? silu(x) : gelu(x); }

// log(1 + e^x), within 2 ulp for -87 < x; the identity from where nothing is left to add.
INLINE F32 softplus(F32 x) {
    F32 far = set1(40.0f);
    return select_less(far, x, x, log1p(exp(min(far, x))));  // in this order NaN stays NaN
}

}  // namespace vec
