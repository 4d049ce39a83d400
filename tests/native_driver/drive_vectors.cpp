// The vectors of this level against plain C++, number by number: also infinities, NaN, subnormal numbers and what no
// integer can hold. Prints nothing; where bits differ the program fails. A NaN is any NaN.
#include "driver.h"
#include "lanes.h"

#include <cfloat>

namespace driver {
namespace {

using namespace vec;

const float FLOATS[] = {0.0f,         -0.0f,        1.0f,     -1.0f,    0.5f,      -0.5f,    1.5f,      2.5f,
                        -2.5f,        0x1p31f,      -0x1p31f, 0x1p32f,  -0x1p32f,  0x1p24f,  INFINITY,  -INFINITY,
                        NAN,          -NAN,         0x1p-149f, -0x1p-149f, 0x1p-127f, 0x1.8p-126f, FLT_MIN, FLT_MAX,
                        -FLT_MAX,     2147483520.0f, -2147483904.0f, 0x1.fffffep22f, 8388607.5f, 1e-30f, 3.1415927f, 1e10f};
const int32_t INTS[] = {0, 1, -1, 2, 127, 128, 255, 256, 32767, 32768, 65535, -32768, INT32_MAX, INT32_MIN, 0x01020304, -12345678};
constexpr int MANY = 4000;

float random_float(Random& random) {
    if (random.below(2)) return FLOATS[random.below(int(std::size(FLOATS)))];
    uint32_t bits = random.word();
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
int32_t random_int(Random& random) {
    return random.below(2) ? INTS[random.below(int(std::size(INTS)))] : int32_t(random.word());
}

struct Floats {
    float v[LANES];

    explicit Floats(Random& random) {
        for (float& x : v) x = random_float(random);
    }
    explicit Floats(F32 x) { store(v, x); }
    F32 get() const { return load(v); }
};
struct Ints {
    int32_t v[LANES];

    explicit Ints(Random& random) {
        for (int32_t& x : v) x = random_int(random);
    }
    explicit Ints(I32 x) { storei(v, x); }
    I32 get() const { return loadi(v); }
};

bool same(float a, float b) { return a != a ? b != b : std::memcmp(&a, &b, 4) == 0; }

template <class Scalar>
void want(const char* what, F32 found, Scalar scalar) {
    Floats f(found);
    for (int i = 0; i < LANES; i++)
        if (!same(f.v[i], scalar(i))) fail(what);
}
template <class Scalar>
void want(const char* what, I32 found, Scalar scalar) {
    Ints f(found);
    for (int i = 0; i < LANES; i++)
        if (f.v[i] != int32_t(scalar(i))) fail(what);
}

int32_t rounded(float x) { return x >= -0x1p31f && x < 0x1p31f ? int32_t(std::nearbyint(x)) : INT32_MIN; }
int32_t wrapped(int64_t x) { return int32_t(uint32_t(uint64_t(x))); }
int byte(int32_t x, int b) { return int(uint32_t(x) >> 8 * b & 255); }
int half(int32_t x, int h) { return int16_t(uint16_t(uint32_t(x) >> 16 * h)); }

void numbers(Random& random) {
    Floats a(random), b(random), c(random), d(random);
    F32 x = a.get(), y = b.get(), z = c.get();
    want("add", add(x, y), [&](int i) { return a.v[i] + b.v[i]; });
    want("sub", sub(x, y), [&](int i) { return a.v[i] - b.v[i]; });
    want("mul", mul(x, y), [&](int i) { return a.v[i] * b.v[i]; });
    want("div", div(x, y), [&](int i) { return a.v[i] / b.v[i]; });
    want("max", max(x, y), [&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    want("min", min(x, y), [&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    want("abs", abs(x), [&](int i) { return std::fabs(a.v[i]); });
    want("fma", fma(x, y, z), [&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
    want("round_even", round_even(x), [&](int i) { return std::nearbyint(a.v[i]); });
    want("to_int", to_int(x), [&](int i) { return rounded(a.v[i]); });
    want("select_less", select_less(x, y, z, d.get()), [&](int i) { return a.v[i] < b.v[i] ? c.v[i] : d.v[i]; });
    want("held", held(x), [&](int i) { return a.v[i]; });
    uint32_t less = lanes_less(x, y);
    for (int i = 0; i < LANES; i++)
        if ((less >> i & 1) != uint32_t(a.v[i] < b.v[i])) fail("lanes_less");
    if (less >> LANES) fail("lanes_less has no more lanes");
    int n = 1 + random.below(LANES);
    std::vector<float> some(a.v, a.v + n);
    want("load_n", load_n(some.data(), n), [&](int i) { return i < n ? a.v[i] : 0.0f; });
    store_n(b.v, z, n);
    want("store_n", b.get(), [&](int i) { return i < n ? c.v[i] : Floats(y).v[i]; });
}

void integers(Random& random) {
    Ints a(random), b(random), c(random);
    I32 x = a.get(), y = b.get(), z = c.get();
    want("to_float", to_float(x), [&](int i) { return float(a.v[i]); });
    want("bits", bits(bits(x)), [&](int i) { return a.v[i]; });
    want("integer add", add(x, y), [&](int i) { return wrapped(int64_t(a.v[i]) + b.v[i]); });
    want("integer sub", sub(x, y), [&](int i) { return wrapped(int64_t(a.v[i]) - b.v[i]); });
    want("integer max", max(x, y), [&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    want("band", band(x, y), [&](int i) { return a.v[i] & b.v[i]; });
    want("bor", bor(x, y), [&](int i) { return a.v[i] | b.v[i]; });
    want("bxor", bxor(x, y), [&](int i) { return a.v[i] ^ b.v[i]; });
    uint32_t factor = random.word();
    Wide wide = wide_mul(x, factor);
    auto product = [&](int i) { return uint64_t(uint32_t(a.v[i])) * factor; };
    want("wide_mul high", wide.high, [&](int i) { return uint32_t(product(i) >> 32); });
    want("wide_mul low", wide.low, [&](int i) { return uint32_t(product(i)); });
    want("shl", shl<0>(x), [&](int i) { return a.v[i]; });
    want("shl", shl<8>(x), [&](int i) { return uint32_t(a.v[i]) << 8; });
    want("shl", shl<23>(x), [&](int i) { return uint32_t(a.v[i]) << 23; });
    want("shr", shr<1>(x), [&](int i) { return uint32_t(a.v[i]) >> 1; });
    want("shr", shr<16>(x), [&](int i) { return uint32_t(a.v[i]) >> 16; });
    want("dot4", dot4(set1i(c.v[0] / 2), x, y), [&](int i) {  // sums of products that kernels make fit into 32 bits
        int32_t total = c.v[0] / 2;
        for (int k = 0; k < 4; k++) total += byte(a.v[i], k) * int8_t(byte(b.v[i], k));
        return total;
    });
    want("dot2", dot2(z, x, y), [&](int i) {
        return wrapped(int64_t(c.v[i]) + int64_t(half(a.v[i], 0)) * half(b.v[i], 0) + int64_t(half(a.v[i], 1)) * half(b.v[i], 1));
    });
    int32_t total = 0, top = INT32_MIN;
    for (int32_t v : a.v) total += v / 16, top = v > top ? v : top;
    Ints parts(x);
    for (int32_t& v : parts.v) v /= 16;
    if (sum(parts.get()) != total) fail("integer sum");
    if (highest(x) != top) fail("integer highest");

    uint8_t table[16], bytes[16];
    for (int i = 0; i < 16; i++) table[i] = uint8_t(random.word());
    Ints found(lookup(table, band(x, set1i(0x0F0F0F0F))));
    for (int i = 0; i < LANES; i++)
        for (int k = 0; k < 4; k++)
            if (byte(found.v[i], k) != table[byte(a.v[i], k) & 15]) fail("lookup");
    store_u8(bytes, x);
    want("store_u8, load_u8", load_u8(bytes), [&](int i) { return a.v[i] & 255; });
    want("load_s8", load_s8(reinterpret_cast<int8_t*>(bytes)), [&](int i) { return int8_t(byte(a.v[i], 0)); });
    uint16_t halves[16];
    store_u16(halves, band(x, set1i(0xFFFF)));
    want("store_u16, load_u16", load_u16(halves), [&](int i) { return a.v[i] & 0xFFFF; });
}

// Every number of sixteen bits, and of bfloat16.
void sixteen_bits() {
    for (int first = 0; first < 1 << 16; first += LANES) {
        uint16_t h[LANES];
        for (int i = 0; i < LANES; i++) h[i] = uint16_t(first + i);
        want("load_f16", load_f16(h), [&](int i) {
            int exponent = h[i] >> 10 & 31, fraction = h[i] & 1023;
            double size = exponent == 31 ? (fraction ? double(NAN) : double(INFINITY))
                          : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                         : std::ldexp(fraction, -24);
            return float(h[i] >> 15 ? -size : size);
        });
        want("load_bf16", load_bf16(h), [&](int i) {
            uint32_t bits = uint32_t(h[i]) << 16;
            float x;
            std::memcpy(&x, &bits, 4);
            return x;
        });
    }
}

void many_vectors(Random& random) {
    I32 x[LANES];
    int32_t from[LANES][LANES];
    for (int i = 0; i < LANES; i++) {
        Ints row(random);
        std::memcpy(from[i], row.v, sizeof row.v), x[i] = row.get();
    }
    transpose(x);
    for (int i = 0; i < LANES; i++) want("transpose", x[i], [&](int j) { return from[j][i]; });
    alignas(64) Vectors rows;
    float sums[LANES];
    for (int i = 0; i < LANES; i++) {
        for (float& value : rows[i]) value = random.value();
        sums[i] = sum(load(rows[i]));
    }
    want("reduce", reduce(rows, plus), [&](int i) { return sums[i]; });
}

}  // namespace

void drive_vectors(const Runner&) {
    Random random(11);
    for (int i = 0; i < MANY; i++) numbers(random), integers(random);
    sixteen_bits();
    for (int i = 0; i < 16; i++) many_vectors(random);
}

}  // namespace driver
