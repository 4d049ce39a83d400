// Integer dot products of Q4 codes with 16-bit (and with 8-bit) integers on AVX2, which has no instruction that sums
// products of bytes in 32 bits: the forms that avx2_products.py times. Four rows, one half of a tile (16 rows of weights,
// lane by lane as in kernels/linear/formats.h, but codes alone: 256 bytes for 32 inputs).
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

namespace {

using V = __m256i;
constexpr int R = 4, RECORD = 256, ROW = 64;  // rows; bytes of a group of weights; of a row's integers

INLINE V load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const V*>(p)); }
INLINE V four(const uint8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
}
// Codes 4 i .. 4 i + 3 of lanes 8 t .. 8 t + 7, one per byte.
INLINE V codes(const uint8_t* w, int i, int t) {
    V word = load(w + 64 * (i / 2) + 32 * t);
    return _mm256_and_si256(i % 2 ? _mm256_srli_epi16(word, 4) : word, _mm256_set1_epi8(15));
}

struct Intrinsics {
    INLINE V pairs(V acc, V a, V b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
    INLINE V bytes(V acc, V u, V s) { return _mm256_add_epi16(acc, _mm256_maddubs_epi16(u, s)); }
};
// The compiler cannot move what is written so, and keeps the sums where they are.
struct Assembly {
    INLINE V pairs(V acc, V a, V b) {
        V product;
        asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(product) : "x"(a), "x"(b));
        return acc;
    }
    INLINE V bytes(V acc, V u, V s) {
        V product;
        asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(acc), "=&x"(product) : "x"(u), "x"(s));
        return acc;
    }
};

// Signed high bytes and low bytes of the integers, each multiplied as halves: what vpdpbusd does, emulated.
struct Emulated {
    static constexpr bool IS_COARSE = false;
    INLINE V dot4(V acc, V u, V s) {
        V low = _mm256_set1_epi16(0xFF);
        V even = _mm256_madd_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
        V odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
        return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
    }
    INLINE void group(const uint8_t* w, const uint8_t* x, V (&acc)[2][R]) {
        V low[2][R];
        UNROLL for (int t = 0; t < 2; t++)
            UNROLL for (int r = 0; r < R; r++) low[t][r] = _mm256_setzero_si256();
        UNROLL for (int i = 0; i < 8; i++) {
            V u[2] = {codes(w, i, 0), codes(w, i, 1)};
            UNROLL for (int r = 0; r < R; r++) {
                V high = four(x + ROW * r + 4 * i), rest = four(x + ROW * r + 32 + 4 * i);
                UNROLL for (int t = 0; t < 2; t++)
                    acc[t][r] = dot4(acc[t][r], u[t], high), low[t][r] = dot4(low[t][r], u[t], rest);
            }
        }
        UNROLL for (int t = 0; t < 2; t++)
            UNROLL for (int r = 0; r < R; r++)
                acc[t][r] = _mm256_add_epi32(_mm256_slli_epi32(acc[t][r], 8), low[t][r]);
    }
};

// The 16-bit integers themselves, two to a lane.
template <class Dot>
struct Pairs {
    static constexpr bool IS_COARSE = false;
    INLINE void group(const uint8_t* w, const uint8_t* x, V (&acc)[2][R]) {
        UNROLL for (int i = 0; i < 8; i++) {
            V u[2] = {codes(w, i, 0), codes(w, i, 1)};
            UNROLL for (int odd = 0; odd < 2; odd++) {
                V p[2];
                UNROLL for (int t = 0; t < 2; t++)
                    p[t] = odd ? _mm256_srli_epi16(u[t], 8) : _mm256_and_si256(u[t], _mm256_set1_epi16(0xFF));
                UNROLL for (int r = 0; r < R; r++) {
                    V pair = four(x + ROW * r + 8 * i + 4 * odd);
                    UNROLL for (int t = 0; t < 2; t++) acc[t][r] = Dot::pairs(acc[t][r], p[t], pair);
                }
            }
        }
    }
};

// High bytes, then low bytes: eight sums of two products of a nibble and a byte stay below 32,768.
template <class Dot>
struct Planes {
    static constexpr bool IS_COARSE = false;
    INLINE void group(const uint8_t* w, const uint8_t* x, V (&acc)[2][R]) {
        UNROLL for (int plane = 0; plane < 2; plane++) {
            V narrow[2][R];
            UNROLL for (int t = 0; t < 2; t++)
                UNROLL for (int r = 0; r < R; r++) narrow[t][r] = _mm256_setzero_si256();
            UNROLL for (int i = 0; i < 8; i++) {
                V u[2] = {codes(w, i, 0), codes(w, i, 1)};
                UNROLL for (int r = 0; r < R; r++) {
                    V s = four(x + ROW * r + 32 * plane + 4 * i);
                    UNROLL for (int t = 0; t < 2; t++) narrow[t][r] = Dot::bytes(narrow[t][r], u[t], s);
                }
            }
            V unit = _mm256_set1_epi16(plane ? 1 : 256);
            UNROLL for (int t = 0; t < 2; t++)
                UNROLL for (int r = 0; r < R; r++)
                    acc[t][r] = _mm256_add_epi32(acc[t][r], _mm256_madd_epi16(narrow[t][r], unit));
        }
    }
};

// One plane: 8-bit integers.
template <class Dot>
struct Coarse {
    static constexpr bool IS_COARSE = true;
    INLINE void group(const uint8_t* w, const uint8_t* x, V (&acc)[2][R]) {
        UNROLL for (int i = 0; i < 8; i++) {
            V u[2] = {codes(w, i, 0), codes(w, i, 1)};
            UNROLL for (int r = 0; r < R; r++) {
                V s = four(x + ROW * r + 4 * i);
                UNROLL for (int t = 0; t < 2; t++) acc[t][r] = Dot::bytes(acc[t][r], u[t], s);
            }
        }
        UNROLL for (int t = 0; t < 2; t++)
            UNROLL for (int r = 0; r < R; r++) acc[t][r] = _mm256_madd_epi16(acc[t][r], _mm256_set1_epi16(1));
    }
};

// What a product does with the sums of a group: a scale per row of weights, one per row of activations.
template <class Form>
void run(const uint8_t* weights, const float* scales, const uint8_t* x, const float* steps, int groups, float* out) {
    for (int i = 0; i < 16 * R; i++) out[i] = 0;
    for (int g = 0; g < groups; g++) {
        V acc[2][R];
        UNROLL for (int t = 0; t < 2; t++)
            UNROLL for (int r = 0; r < R; r++) acc[t][r] = _mm256_setzero_si256();
        Form::group(weights + g * RECORD, x + g * R * ROW, acc);
        UNROLL for (int t = 0; t < 2; t++) {
            __m256 scale = _mm256_loadu_ps(scales + 16 * g + 8 * t);
            UNROLL for (int r = 0; r < R; r++) {
                __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(steps[R * g + r]));
                float* y = out + 16 * r + 8 * t;
                _mm256_storeu_ps(y, _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[t][r]), factor, _mm256_loadu_ps(y)));
            }
        }
    }
}

}  // namespace

#define FORM(NAME, ...)                                                                                                \
    extern "C" void NAME(const uint8_t* weights, const float* scales, const uint8_t* x, const float* steps, int groups, \
                         float* out, int repeat) {                                                                     \
        for (int i = 0; i < repeat; i++) run<__VA_ARGS__>(weights, scales, x, steps, groups, out);                     \
    }

FORM(emulated, Emulated)
FORM(pairs, Pairs<Intrinsics>)
FORM(pairs_assembly, Pairs<Assembly>)
FORM(planes, Planes<Intrinsics>)
FORM(planes_assembly, Planes<Assembly>)
FORM(coarse, Coarse<Intrinsics>)
FORM(coarse_assembly, Coarse<Assembly>)
