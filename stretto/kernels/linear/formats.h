// Weight layouts: tiles of 32 output rows, lane by lane.
//
// A tile is a stream of records, one for every 32 inputs (256 for K-quants), first of rows 0-15, then of rows 16-31, then
// of the next inputs. In the words of a record, lane o belongs to output row o, so a dot product needs no sum over lanes,
// and the stream is read once, front to back. Codes are the file's own integers, shifted by the zero point of the format
// so that they are unsigned bytes; scales and minima are the file's own numbers. What belongs to whole rows of the file
// (ROW_BYTES at the head of each: int8's fp32 scale) lies at the end of the tile.
//
// Vector i (0..7) of a group holds codes 4i..4i+3 of every row, one per byte.
#pragma once

#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>

#include "vec.h"

namespace formats {

using namespace vec;

constexpr int HALF = 16, TILE = 32, GROUP = 32;

// -- the list of layouts -------------------------------------------------------------------------------------------------

// Begins the struct of a layout and enters it into the list. NAME is that of the codec whose bytes it holds; the number
// that stands for a layout is its place among these structs. Nothing else names them.
//
//     STRETTO_FORMAT(q4_0) : Simple<Nibbles, 3, false> { ... };
#define STRETTO_FORMAT(NAME)                                                                                          \
    struct NAME;                                                                                                      \
    template <>                                                                                                       \
    struct Entry<__COUNTER__ - FIRST> {                                                                               \
        using Format = NAME;                                                                                          \
        static constexpr const char* name = #NAME;                                                                    \
    };                                                                                                                \
    struct NAME

constexpr int FIRST = __COUNTER__ + 1;

template <int N>
struct Entry;

// -- codes: four, five, six and eight bits ----------------------------------------------------------------------------

// Left by n bits, -3 <= n <= 4 (right where negative). Immediates, once the loop around it is unrolled.
INLINE I32 shift(I32 a, int n) {
    switch (n) {
        case 4: return shl<4>(a);
        case 3: return shl<3>(a);
        case 2: return shl<2>(a);
        case 1: return shl<1>(a);
        case -1: return shr<1>(a);
        case -2: return shr<2>(a);
        case -3: return shr<3>(a);
        default: return a;
    }
}

// Four bytes at a time: packing looks at every weight when a model starts.
INLINE uint32_t read_word(const uint8_t* p) {
    uint32_t x;
    std::memcpy(&x, p, 4);
    return x;
}
INLINE void write_word(uint8_t* p, uint32_t x) { std::memcpy(p, &x, 4); }

struct Nibbles {
    static constexpr int BYTES = 256, MAX = 15;  // MAX: the largest code
    static INLINE I32 at(const uint8_t* p, int i) {
        I32 word = loadi(p + 64 * (i / 2));
        return band(i % 2 ? shr<4>(word) : word, set1i(0x0F0F0F0F));
    }
    static void pack(uint8_t* p, const uint8_t (*codes)[GROUP]) {
        for (int lane = 0; lane < HALF; lane++)
            for (int j = 0; j < 4; j++) {
                uint32_t low = read_word(codes[lane] + 8 * j), high = read_word(codes[lane] + 8 * j + 4);
                write_word(p + 64 * j + 4 * lane, (low & 0x0F0F0F0F) | (high & 0x0F0F0F0F) << 4);
            }
    }
};

// Nibbles that stand for the entries of a table.
template <const uint8_t (&TABLE)[16]>
struct Looked : Nibbles {
    static constexpr int MAX = *std::max_element(TABLE, TABLE + 16);
    static INLINE I32 at(const uint8_t* p, int i) { return lookup(TABLE, Nibbles::at(p, i)); }
};

// Nibbles, then bit i of every byte of one word: the fifth bit of vector i.
struct Fives {
    static constexpr int BYTES = 320, MAX = 31;
    static INLINE I32 at(const uint8_t* p, int i) {
        return bor(Nibbles::at(p, i), band(shift(loadi(p + 256), 4 - i), set1i(0x10101010)));
    }
    static void pack(uint8_t* p, const uint8_t (*codes)[GROUP]) {
        Nibbles::pack(p, codes);
        for (int lane = 0; lane < HALF; lane++) {
            uint32_t fifth = 0;
            for (int i = 0; i < 8; i++) fifth |= (read_word(codes[lane] + 4 * i) >> 4 & 0x01010101) << i;
            write_word(p + 256 + 4 * lane, fifth);
        }
    }
};

// Nibbles, then two words: bits 2j, 2j + 1 of every byte of word h are the high bits of vector 4h + j.
struct Sixes {
    static constexpr int BYTES = 384, MAX = 63;
    static INLINE I32 at(const uint8_t* p, int i) {
        I32 high = shift(loadi(p + 256 + 64 * (i / 4)), 4 - 2 * (i % 4));
        return bor(Nibbles::at(p, i), band(high, set1i(0x30303030)));
    }
    static void pack(uint8_t* p, const uint8_t (*codes)[GROUP]) {
        Nibbles::pack(p, codes);
        for (int h = 0; h < 2; h++)
            for (int lane = 0; lane < HALF; lane++) {
                uint32_t high = 0;
                for (int j = 0; j < 4; j++)
                    high |= (read_word(codes[lane] + 16 * h + 4 * j) >> 4 & 0x03030303) << 2 * j;
                write_word(p + 256 + 64 * h + 4 * lane, high);
            }
    }
};

struct Bytes {
    static constexpr int BYTES = 512, MAX = 255;
    static INLINE I32 at(const uint8_t* p, int i) { return loadi(p + 64 * i); }
    static void pack(uint8_t* p, const uint8_t (*codes)[GROUP]) {
        for (int i = 0; i < 8; i++)
            for (int lane = 0; lane < HALF; lane++) std::memcpy(p + 64 * i + 4 * lane, codes[lane] + 4 * i, 4);
    }
};

// -- how the file stores a block: codes of one group of 32, and the scales ---------------------------------------------

INLINE uint16_t read_u16(const uint8_t* p) {
    uint16_t x;
    std::memcpy(&x, p, 2);
    return x;
}

// 4 N bytes of two codes each: the low halves, and the high ones.
template <int N>
inline void file_halves(const uint8_t* q, uint8_t* low, uint8_t* high) {
    for (int j = 0; j < 4 * N; j += 4) {
        uint32_t word = read_word(q + j);
        write_word(low + j, word & 0x0F0F0F0F), write_word(high + j, word >> 4 & 0x0F0F0F0F);
    }
}

inline void file_nibbles(const uint8_t* q, uint8_t* codes) { file_halves<4>(q, codes, codes + 16); }

inline void file_fifth_bits(const uint8_t* qh, uint8_t* codes) {
    for (int j = 0; j < 32; j += 4) {  // bits j .. j + 3, one to a byte
        uint32_t bits = uint32_t(qh[j / 8] >> j % 8 & 15) * 0x00204081 & 0x01010101;
        write_word(codes + j, read_word(codes + j) | bits << 4);
    }
}

// Blocks of 32 with an fp16 scale and perhaps an fp16 minimum.
template <class Codes_, int LOG_ZERO_, bool MINIMUM_>
struct Simple {
    using Codes = Codes_;
    static constexpr int ROW_BYTES = 0;
    static constexpr int GROUPS = 1, PARTS = 1, LOG_ZERO = LOG_ZERO_;  // LOG_ZERO < 0: no zero point
    static constexpr bool MINIMUM = MINIMUM_;
    static constexpr int RECORD = Codes::BYTES + 32 * (1 + MINIMUM);
    static INLINE const uint8_t* codes(const uint8_t* record, int) { return record; }
    static INLINE F32 scale(const uint8_t* record, int, int) { return load_f16((const uint16_t*)(record + Codes::BYTES)); }
    static INLINE F32 minimum(const uint8_t* record, int) {
        return MINIMUM ? load_f16((const uint16_t*)(record + Codes::BYTES + 32)) : set1(0.0f);
    }
    static void put(uint8_t* record, int lane, uint16_t d, uint16_t m) {
        std::memcpy(record + Codes::BYTES + 2 * lane, &d, 2);
        if (MINIMUM) std::memcpy(record + Codes::BYTES + 32 + 2 * lane, &m, 2);
    }
};

STRETTO_FORMAT(q4_0) : Simple<Nibbles, 3, false> {
    static constexpr int BLOCK_BYTES = 18;
    static void block(const uint8_t* p, uint8_t* record, int lane, uint8_t (*codes)[HALF][GROUP]) {
        file_nibbles(p + 2, codes[0][lane]);
        put(record, lane, read_u16(p), 0);
    }
};

STRETTO_FORMAT(q4_1) : Simple<Nibbles, -1, true> {
    static constexpr int BLOCK_BYTES = 20;
    static void block(const uint8_t* p, uint8_t* record, int lane, uint8_t (*codes)[HALF][GROUP]) {
        file_nibbles(p + 4, codes[0][lane]);
        put(record, lane, read_u16(p), read_u16(p + 2));
    }
};

STRETTO_FORMAT(q5_0) : Simple<Fives, 4, false> {
    static constexpr int BLOCK_BYTES = 22;
    static void block(const uint8_t* p, uint8_t* record, int lane, uint8_t (*codes)[HALF][GROUP]) {
        file_nibbles(p + 6, codes[0][lane]);
        file_fifth_bits(p + 2, codes[0][lane]);
        put(record, lane, read_u16(p), 0);
    }
};

STRETTO_FORMAT(q5_1) : Simple<Fives, -1, true> {
    static constexpr int BLOCK_BYTES = 24;
    static void block(const uint8_t* p, uint8_t* record, int lane, uint8_t (*codes)[HALF][GROUP]) {
        file_nibbles(p + 8, codes[0][lane]);
        file_fifth_bits(p + 4, codes[0][lane]);
        put(record, lane, read_u16(p), read_u16(p + 2));
    }
};

STRETTO_FORMAT(q8_0) : Simple<Bytes, 7, false> {
    static constexpr int BLOCK_BYTES = 34;
    static void block(const uint8_t* p, uint8_t* record, int lane, uint8_t (*codes)[HALF][GROUP]) {
        for (int j = 0; j < GROUP; j += 4) write_word(codes[0][lane] + j, read_word(p + 2 + j) ^ 0x80808080);
        put(record, lane, read_u16(p), 0);
    }
};

// Q4_K and Q5_K: eight groups share fp16 d and dmin; each has a six-bit scale and a six-bit minimum.
//     record: codes of 8 groups | d [16] | dmin [16] | scales [8][16] bytes | minima [8][16] bytes
template <class Codes_>
struct Super {
    using Codes = Codes_;
    static constexpr int ROW_BYTES = 0;
    static constexpr int GROUPS = 8, PARTS = 1, LOG_ZERO = -1;
    static constexpr bool MINIMUM = true;
    static constexpr int HEAD = 8 * Codes::BYTES, RECORD = HEAD + 64 + 256;
    static INLINE const uint8_t* codes(const uint8_t* record, int g) { return record + g * Codes::BYTES; }
    static INLINE F32 scale(const uint8_t* record, int g, int) {
        return mul(load_f16((const uint16_t*)(record + HEAD)), to_float(load_u8(record + HEAD + 64 + 16 * g)));
    }
    static INLINE F32 minimum(const uint8_t* record, int g) {  // x = d s q - dmin m
        F32 m = mul(load_f16((const uint16_t*)(record + HEAD + 32)), to_float(load_u8(record + HEAD + 192 + 16 * g)));
        return sub(set1(0.0f), m);
    }
    static void put(uint8_t* record, int lane, const uint8_t* block) {
        std::memcpy(record + HEAD + 2 * lane, block, 2);
        std::memcpy(record + HEAD + 32 + 2 * lane, block + 2, 2);
        const uint8_t* b = block + 4;
        for (int i = 0; i < 8; i++) {
            int s = i < 4 ? b[i] & 63 : (b[i + 4] & 15) | (b[i - 4] >> 6) << 4;
            int m = i < 4 ? b[i + 4] & 63 : b[i + 4] >> 4 | (b[i] >> 6) << 4;
            record[HEAD + 64 + 16 * i + lane] = uint8_t(s);
            record[HEAD + 192 + 16 * i + lane] = uint8_t(m);
        }
    }
    // 64 values take 32 bytes: the low halves are one group, the high halves the next.
    static void halves(const uint8_t* q, int lane, uint8_t (*codes)[HALF][GROUP]) {
        for (int c = 0; c < 4; c++) file_halves<8>(q + 32 * c, codes[2 * c][lane], codes[2 * c + 1][lane]);
    }
};

STRETTO_FORMAT(q4_k) : Super<Nibbles> {
    static constexpr int BLOCK_BYTES = 144;
    static void block(const uint8_t* p, uint8_t* record, int lane, uint8_t (*codes)[HALF][GROUP]) {
        halves(p + 16, lane, codes);
        put(record, lane, p);
    }
};

STRETTO_FORMAT(q5_k) : Super<Fives> {
    static constexpr int BLOCK_BYTES = 176;
    static void block(const uint8_t* p, uint8_t* record, int lane, uint8_t (*codes)[HALF][GROUP]) {
        halves(p + 48, lane, codes);
        for (int g = 0; g < 8; g++)
            for (int j = 0; j < 32; j += 4) {
                uint8_t* to = codes[g][lane] + j;
                write_word(to, read_word(to) | (read_word(p + 16 + j) >> g & 0x01010101) << 4);
            }
        put(record, lane, p);
    }
};

// Q6_K: sixteen sub-blocks of 16 share an fp16 d, each with a signed byte.
//     record: codes of 8 groups | d [16] | scales [16][16] signed bytes
STRETTO_FORMAT(q6_k) {
    using Codes = Sixes;
    static constexpr int ROW_BYTES = 0;
    static constexpr int GROUPS = 8, PARTS = 2, LOG_ZERO = 5, BLOCK_BYTES = 210;
    static constexpr bool MINIMUM = false;
    static constexpr int HEAD = 8 * Codes::BYTES, RECORD = HEAD + 32 + 256;
    static INLINE const uint8_t* codes(const uint8_t* record, int g) { return record + g * Codes::BYTES; }
    static INLINE F32 scale(const uint8_t* record, int g, int part) {
        F32 s = to_float(load_s8((const int8_t*)record + HEAD + 32 + 16 * (2 * g + part)));
        return mul(load_f16((const uint16_t*)(record + HEAD)), s);
    }
    static INLINE F32 minimum(const uint8_t*, int) { return set1(0.0f); }
    static void block(const uint8_t* p, uint8_t* record, int lane, uint8_t (*codes)[HALF][GROUP]) {
        for (int half = 0; half < 2; half++)
            for (int k = 0; k < 4; k++)
                for (int l = 0; l < 32; l += 4) {
                    uint32_t low = read_word(p + 64 * half + 32 * (k % 2) + l) >> 4 * (k / 2) & 0x0F0F0F0F;
                    uint32_t high = read_word(p + 128 + 32 * half + l) >> 2 * k & 0x03030303;
                    write_word(codes[4 * half + k][lane] + l, low | high << 4);
                }
        std::memcpy(record + HEAD + 2 * lane, p + 208, 2);
        for (int s = 0; s < 16; s++) record[HEAD + 32 + 16 * s + lane] = p[192 + s];
    }
};

// Blocks of 32 E2M1 numbers with a power of two, 2^(e - 127), held as e. Codes are twice the numbers, plus 16.
inline constexpr uint8_t E2M1[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

STRETTO_FORMAT(mxfp4) {
    using Codes = Looked<E2M1>;
    static constexpr int GROUPS = 1, PARTS = 1, LOG_ZERO = 4, BLOCK_BYTES = 17, RECORD = Codes::BYTES + HALF, ROW_BYTES = 0;
    static constexpr bool MINIMUM = false;
    static INLINE const uint8_t* codes(const uint8_t* record, int) { return record; }
    static INLINE F32 scale(const uint8_t* record, int, int) {  // half the power of two: e = 0 makes it subnormal
        I32 exponent = shl<23>(load_u8(record + Codes::BYTES));
        return mul(bits(max(exponent, set1i(0x00400000))), set1(0.5f));
    }
    static INLINE F32 minimum(const uint8_t*, int) { return set1(0.0f); }
    static void block(const uint8_t* p, uint8_t* record, int lane, uint8_t (*codes)[HALF][GROUP]) {
        file_nibbles(p + 1, codes[0][lane]);
        record[Codes::BYTES + lane] = p[0];
    }
};

// A scale for all of a row, which multiplies its sum: records are nothing but codes, and their scale is 1.
STRETTO_FORMAT(int8) {
    using Codes = Bytes;
    static constexpr int GROUPS = 1, PARTS = 1, LOG_ZERO = 7, BLOCK_BYTES = 32, RECORD = Codes::BYTES, ROW_BYTES = 4;
    static constexpr bool MINIMUM = false;
    static INLINE const uint8_t* codes(const uint8_t* record, int) { return record; }
    static INLINE F32 scale(const uint8_t*, int, int) { return set1(1.0f); }
    static INLINE F32 minimum(const uint8_t*, int) { return set1(0.0f); }
    static void block(const uint8_t* p, uint8_t*, int lane, uint8_t (*codes)[HALF][GROUP]) {
        for (int j = 0; j < GROUP; j += 4) write_word(codes[0][lane] + j, read_word(p + j) ^ 0x80808080);
    }
};

// Plain numbers: the values of input k for 16 rows, then for the other 16, then of input k + 1.
STRETTO_FORMAT(f32) {
    static constexpr int ITEM = 4;
    static INLINE F32 lanes(const uint8_t* p) { return load((const float*)p); }
};
STRETTO_FORMAT(f16) {
    static constexpr int ITEM = 2;
    static INLINE F32 lanes(const uint8_t* p) { return load_f16((const uint16_t*)p); }
};
STRETTO_FORMAT(bf16) {
    static constexpr int ITEM = 2;
    static INLINE F32 lanes(const uint8_t* p) { return load_bf16((const uint16_t*)p); }
};

// -- by number ---------------------------------------------------------------------------------------------------------

constexpr int NUM_FORMATS = __COUNTER__ - FIRST;

// Their names, in order.
template <int... N>
std::string names(std::integer_sequence<int, N...>) {
    std::string all;
    ((all += (N == 0 ? "" : ",") + std::string(Entry<N>::name)), ...);
    return all;
}

// Whether a layout holds plain numbers: those have no codes and no scales.
template <class F, class = void>
constexpr bool IS_PLAIN = true;
template <class F>
constexpr bool IS_PLAIN<F, std::void_t<typename F::Codes>> = false;

// Calls `use(layout)` with the layout of this number: quantized ones and plain ones have different members.
template <int N = 0, class Quantized, class Plain>
INLINE auto dispatch(int32_t format, Quantized quantized, Plain plain) {
    using F = typename Entry<N>::Format;
    if constexpr (N + 1 < NUM_FORMATS)
        if (format != N) return dispatch<N + 1>(format, quantized, plain);
    if constexpr (IS_PLAIN<F>) return plain(F());
    else return quantized(F());
}

// Of the records of one tile.
template <class F>
INLINE int64_t record_bytes(int32_t d_in) {
    return int64_t(d_in / (GROUP * F::GROUPS)) * 2 * F::RECORD;
}

// Of one tile.
inline int64_t tile_bytes(int32_t format, int32_t d_in) {
    return dispatch(
        format, [&](auto f) { return record_bytes<decltype(f)>(d_in) + TILE * f.ROW_BYTES; },
        [&](auto f) { return int64_t(d_in) * TILE * f.ITEM; });
}

}  // namespace formats
