// What the products of kernels/linear/linear.cpp are compared with: other arithmetic over the same tiles, and the instructions of
// this CPU by themselves. Compiled by cpu_arithmetic.py with the flags and the headers of the shipped kernels.
#include "linear/formats.h"
#include "op.h"

using namespace vec;
using namespace formats;

namespace {

// -- forms of arithmetic -----------------------------------------------------------------------------------------------
//
// A form says how it holds 32 activations and how it multiplies them with codes:
//     PARTS                vectors that one word of eight nibbles per lane becomes, each against four bytes of a row
//     widen(word, part)    one of them; codes are whole numbers below 16, which every form holds exactly
//     dot(sum, w, x)       sum + the products of one vector with four bytes of a row in all lanes
//     CHAINS               sums that take turns, where one dot product would wait for the one before it
//     prepare(x, to)       32 activations, rounded as the form wants; returns their scale and their sum
// Scale and minimum of the weights follow group after group in fp32, as in the shipped product.

// The n-th nibble of every lane comes to the low end. An immediate, once the loop around it is unrolled.
INLINE I32 down(I32 a, int n) {
    switch (n) {
        case 1: return shr<4>(a);
        case 2: return shr<8>(a);
        case 3: return shr<12>(a);
        case 4: return shr<16>(a);
        case 5: return shr<20>(a);
        case 6: return shr<24>(a);
        case 7: return shr<28>(a);
        default: return a;
    }
}

struct Factors {
    float scale, sum;
};

// Activations and codes in fp32.
struct Fp32 {
    using Sum = F32;
    static constexpr int PARTS = 8, CHAINS = 2;
    static INLINE Sum zero() { return set1(0.0f); }
    static INLINE I32 widen(I32 word, int part) {  // low nibbles hold the first four codes of a word, high ones the rest
        return bits(to_float(band(down(word, part % 4 * 2 + part / 4), set1i(15))));
    }
    static INLINE Sum dot(Sum sum, I32 w, I32 x) { return fma(bits(w), bits(x), sum); }
    static INLINE F32 value(Sum sum) { return sum; }
    static INLINE Factors prepare(const float* x, uint8_t* to) {
        std::memcpy(to, x, 4 * GROUP);
        return {1.0f, sum(add(load(x), load(x + 16)))};
    }
};

#if defined(__AVX512BF16__)

// Activations and codes in bf16. Sixteen codes are sixteen bf16 numbers, so a table widens them, two to a lane: of the
// eight codes of a word it takes 0 and 2, 4 and 6, 1 and 3, 5 and 7, and activations are held in that order.
struct Bf16 {
    using Sum = F32;
    static constexpr int PARTS = 4, CHAINS = 2;
    alignas(64) static constexpr uint16_t TABLE[32] = {
        0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0x4100, 0x4110, 0x4120,
        0x4130, 0x4140, 0x4150, 0x4160, 0x4170,  // 0 to 15, and again: the permutation reads five bits of an index
        0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0x4100, 0x4110, 0x4120,
        0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
    alignas(64) static constexpr uint16_t ORDER[32] = {0,  2,  4,  6,  1,  3,  5,  7,  8,  10, 12, 14, 9,  11, 13, 15,
                                                       16, 18, 20, 22, 17, 19, 21, 23, 24, 26, 28, 30, 25, 27, 29, 31};
    static INLINE Sum zero() { return set1(0.0f); }
    static INLINE I32 widen(I32 word, int part) {
        return {_mm512_permutexvar_epi16(down(word, part).v, loadi(TABLE).v)};
    }
    static INLINE Sum dot(Sum sum, I32 w, I32 x) { return {_mm512_dpbf16_ps(sum.v, (__m512bh)w.v, (__m512bh)x.v)}; }
    static INLINE F32 value(Sum sum) { return sum; }
    static INLINE Factors prepare(const float* x, uint8_t* to) {
        I32 rounded = {(__m512i)_mm512_cvtne2ps_pbh(load(x + 16).v, load(x).v)};
        storei(to, {_mm512_permutexvar_epi16(loadi(ORDER).v, rounded.v)});
        const uint16_t* held = (const uint16_t*)to;
        return {1.0f, sum(add(load_bf16(held), load_bf16(held + 16)))};
    }
};

#endif

// -- what all forms share ----------------------------------------------------------------------------------------------

constexpr int WORDS = 4;  // of codes, per lane and group
constexpr int RECORD = Q4_1::RECORD, MOST_ROWS = 64;
constexpr int64_t CHUNK_BYTES = 64 << 10, PREFETCH = 4096;  // as in kernels/linear/linear.cpp

// x [rows, d_in] -> values [rows, groups, 16 * PARTS bytes], factors [rows, groups]; then y [rows, d_out] = x W^T.
// d_out is whole tiles, rows at most 64.
struct FormArgs {
    int32_t rows;
    int32_t d_in;
    int32_t d_out;
    int32_t unused;
    const float* x;
    uint8_t* values;
    Factors* factors;
    const uint8_t* tiles;
    float* y;
};

template <class Form>
struct Prepare : FormArgs {};

template <class Form>
int64_t chunks(const Prepare<Form>& a, const Step&) {
    return ceil_div(a.rows, 4);
}

template <class Form>
void run(const Prepare<Form>& a, const Step&, int64_t first, int64_t last) {
    int64_t groups = a.d_in / GROUP, to = 4 * last < a.rows ? 4 * last : a.rows;
    for (int64_t i = 4 * first * groups; i < to * groups; i++)
        a.factors[i] = Form::prepare(a.x + i * GROUP, a.values + i * 16 * Form::PARTS);
}

// Some groups of a tile, for rows that are side by side.
struct Part {
    const uint8_t* records;
    const uint8_t* wide;  // the same codes, widened
    const uint8_t* values;
    const Factors* factors;
    int64_t value_stride, factor_stride;  // from row to row
    int groups;
    float (*sums)[TILE];
};

INLINE void fetch(const uint8_t* records) {
    for (int i = 0; i < 2 * RECORD; i += 64) __builtin_prefetch(records + PREFETCH + i);
}

// R rows of a part. Codes come widened from the nearest cache or, WIDE = false, from the tile: once for these rows.
template <class Form, bool WIDE, int R>
__attribute__((noinline)) void some_rows(const Part& p, int64_t row) {
    const uint8_t *records = p.records, *wide = p.wide, *values = p.values + row * p.value_stride;
    const Factors* factors = p.factors + row * p.factor_stride;
    float(*sums)[TILE] = p.sums + row;
    F32 y[2][R];
    UNROLL for (int t = 0; t < 2; t++)
        UNROLL for (int r = 0; r < R; r++) y[t][r] = load(sums[r] + HALF * t);
    for (int g = 0; g < p.groups; g++, records += 2 * RECORD, factors++) {
        if (!WIDE) fetch(records);
        typename Form::Sum acc[Form::CHAINS][2][R];
        UNROLL for (int c = 0; c < Form::CHAINS; c++)
            UNROLL for (int t = 0; t < 2; t++)
                UNROLL for (int r = 0; r < R; r++) acc[c][t][r] = Form::zero();
        for (int word = 0; word < WORDS; word++, wide += 128 * Form::PARTS, values += 4 * Form::PARTS)
            UNROLL for (int part = 0; part < Form::PARTS; part++) {
                I32 w[2];
                UNROLL for (int t = 0; t < 2; t++)
                    w[t] = WIDE ? loadi(wide + 64 * (2 * part + t))
                                : Form::widen(loadi(records + t * RECORD + 64 * word), part);
                UNROLL for (int r = 0; r < R; r++) {
                    int32_t four;
                    std::memcpy(&four, values + r * p.value_stride + 4 * part, 4);
                    UNROLL for (int t = 0; t < 2; t++) {
                        auto& sum = acc[part % Form::CHAINS][t][r];
                        sum = Form::dot(sum, w[t], set1i(four));
                    }
                }
            }
        UNROLL for (int t = 0; t < 2; t++) {
            F32 scale = Q4_1::scale(records + t * RECORD, 0, 0), minimum = Q4_1::minimum(records + t * RECORD, 0);
            UNROLL for (int r = 0; r < R; r++) {
                const Factors& f = factors[r * p.factor_stride];
                F32 total = Form::value(acc[0][t][r]);
                if (Form::CHAINS == 2) total = add(total, Form::value(acc[Form::CHAINS - 1][t][r]));
                y[t][r] = fma(total, mul(scale, set1(f.scale)), y[t][r]);
                y[t][r] = fma(minimum, set1(f.sum), y[t][r]);
            }
        }
    }
    UNROLL for (int t = 0; t < 2; t++)
        UNROLL for (int r = 0; r < R; r++) store(sums[r] + HALF * t, y[t][r]);
}

template <class Form, bool WIDE>
void all_rows(const Part& p, int64_t rows) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) some_rows<Form, WIDE, 4>(p, r);
    if (r + 2 <= rows) some_rows<Form, WIDE, 2>(p, r), r += 2;
    if (r < rows) some_rows<Form, WIDE, 1>(p, r);
}

template <class Form>
void widen(const uint8_t* records, int groups, uint8_t* to) {
    for (int g = 0; g < groups; g++, records += 2 * RECORD) {
        fetch(records);
        for (int word = 0; word < WORDS; word++)
            UNROLL for (int part = 0; part < Form::PARTS; part++)
                UNROLL for (int t = 0; t < 2; t++, to += 64)
                    storei(to, Form::widen(loadi(records + t * RECORD + 64 * word), part));
    }
}

template <class Form>
struct Product : FormArgs {};

template <class Form>
void multiply_tile(const FormArgs& a, int64_t tile) {
    // Widened codes and the activations they meet take 36 KB at 64 rows: both stay in the nearest cache.
    constexpr int DEPTH = 24 / Form::PARTS;
    alignas(64) uint8_t wide[DEPTH * WORDS * Form::PARTS * 128];
    alignas(64) float sums[MOST_ROWS][TILE];
    int groups = a.d_in / GROUP;
    std::memset(sums, 0, size_t(a.rows) * sizeof sums[0]);
    for (int g = 0; g < groups; g += DEPTH) {
        const uint8_t* records = a.tiles + (tile * groups + g) * 2 * RECORD;
        int n = groups - g < DEPTH ? groups - g : DEPTH, bytes = 16 * Form::PARTS;
        Part part = {records, wide, a.values + g * bytes, a.factors + g, int64_t(groups) * bytes, groups, n, sums};
        if (a.rows <= 4) {
            all_rows<Form, false>(part, a.rows);
        } else {
            widen<Form>(records, n, wide);
            all_rows<Form, true>(part, a.rows);
        }
    }
    for (int64_t r = 0; r < a.rows; r++) std::memcpy(a.y + r * a.d_out + tile * TILE, sums[r], sizeof sums[r]);
}

int64_t tiles_per_chunk(const FormArgs& a) { return ceil_div(CHUNK_BYTES, int64_t(a.d_in / GROUP) * 2 * RECORD); }

template <class Form>
int64_t chunks(const Product<Form>& a, const Step&) {
    if (a.rows > MOST_ROWS) __builtin_trap();
    return ceil_div(a.d_out / TILE, tiles_per_chunk(a));
}

template <class Form>
void run(const Product<Form>& a, const Step&, int64_t first, int64_t last) {
    int64_t per = tiles_per_chunk(a), tiles = a.d_out / TILE;
    for (int64_t t = first * per; t < last * per && t < tiles; t++) multiply_tile<Form>(a, t);
}

}  // namespace

STRETTO_OP(prepare_fp32, Prepare<Fp32>, rows, d_in, d_out, unused, x, values, factors, tiles, y)
STRETTO_OP(multiply_fp32, Product<Fp32>, rows, d_in, d_out, unused, x, values, factors, tiles, y)
#if defined(__AVX512BF16__)
STRETTO_OP(prepare_bf16, Prepare<Bf16>, rows, d_in, d_out, unused, x, values, factors, tiles, y)
STRETTO_OP(multiply_bf16, Product<Bf16>, rows, d_in, d_out, unused, x, values, factors, tiles, y)
#endif

// -- instructions by themselves ----------------------------------------------------------------------------------------

#if defined(VEC_512)

// A chain in which every addition waits for the one before it: one core cycle each, whatever the clock is. Of two
// registers, because some CPUs add small constants without executing anything.
extern "C" void spin_add(int64_t times) {
    int64_t x = 0, one = 1;
    for (; times; times--)
        UNROLL for (int i = 0; i < 16; i++) asm volatile("add %1, %0" : "+r"(x) : "r"(one));
}

// `spin_name(n)` executes an instruction 16 n times, on `count` sums in turn: with sixteen none waits for the one before
// it, with a single one every one does. Operands: %0 the sum, %1 and %2 registers, %3 memory in the nearest cache.
#define SPIN(name, count, instruction)                                                                        \
    extern "C" void spin_##name(int64_t times) {                                                              \
        __m512i a = _mm512_set1_epi32(0x3F803F80), b = a, memory[16], sums[count];                            \
        UNROLL for (int i = 0; i < 16; i++) memory[i] = sums[i % count] = a;                                  \
        for (; times; times--)                                                                                \
            UNROLL for (int i = 0; i < 16; i++)                                                               \
                asm volatile(instruction : "+v"(sums[i % count]) : "v"(a), "v"(b), "m"(memory[i]));           \
    }

SPIN(dot, 16, "vpdpbusd %2, %1, %0")
SPIN(dot_chain, 1, "vpdpbusd %2, %1, %0")
SPIN(dot_memory, 16, "vpdpbusd %3%{1to16%}, %1, %0")
SPIN(fma, 16, "vfmadd231ps %2, %1, %0")
SPIN(fma_chain, 1, "vfmadd231ps %2, %1, %0")
SPIN(load, 16, "vmovdqu64 %3, %0")
#if defined(__AVX512BF16__)
SPIN(bf16_dot, 16, "vdpbf16ps %2, %1, %0")
SPIN(bf16_dot_chain, 1, "vdpbf16ps %2, %1, %0")
#endif

extern "C" uint64_t time_stamp() { return __builtin_ia32_rdtsc(); }

#endif
