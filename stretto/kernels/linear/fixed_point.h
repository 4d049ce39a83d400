// Activations in 16-bit block fixed point: 32 values share a power of two, x = 2^e n. Coarse: n has 8 bits, and the scale
// is no power of two.
#pragma once

#include "linear/formats.h"
#include "lanes.h"
#include "op.h"

namespace fixed_point {

using namespace vec;
using formats::GROUP;
using formats::HALF;

// The quantized form of up to eight rows and one group of 32 inputs. Blocks lie as [rows / 8, groups].
struct Block {
    uint8_t integers[8][64];  // as `put_integers` lays them
    float scales[8];          // the power of two
    float sums[8];            // of the 32 values
    int32_t isums[8][2];      // of the integers of each half
};

// The integers of inputs 16 half .. 16 half + 15. Coarse ones are bytes. Others are what the products of the level take:
// halves in the order of `store_s16_pairs`, or signed bytes, 32 high ones and 32 low ones, n = 256 high + low.
template <bool COARSE>
INLINE void put_integers(uint8_t* to, int half, I32 n) {
    if constexpr (COARSE) {
        store_u8(to + HALF * half, n);
    } else {
#if defined(VEC_PAIRS)
        store_s16_pairs(to + 2 * HALF * half, n);
#else
        store_u8(to + HALF * half, shr<8>(add(n, set1i(128))));  // the low byte is signed
        store_u8(to + 32 + HALF * half, n);
#endif
    }
}

// Number j of what `put_integers` has laid down.
inline int integer(const uint8_t* from, int j, bool is_coarse) {
    if (is_coarse) return int8_t(from[j]);
#if defined(VEC_PAIRS)
    constexpr int PLACE[4] = {0, 2, 1, 3};
    int16_t n;
    std::memcpy(&n, from + 2 * (j / 4 * 4 + PLACE[j % 4]), 2);
    return n;
#else
    return 256 * int8_t(from[j]) + int8_t(from[32 + j]);
#endif
}

// The first row in coarse form: prompts may be.
inline int64_t first_coarse(Rows rows, int32_t coarse_prompts, const Step& step) {
    return coarse_prompts && rows.kind == ALL_ROWS ? step.starts[step.num_step_seqs] : rows.of(&step);
}

// Where one group of a row comes from and goes to.
struct Group {
    const float* x;
    Block* out;
    int r;  // of the block
};

INLINE I32 sizes(const float* x) { return max(size_of(load(x)), size_of(load(x + HALF))); }

// Of groups with these largest values: NaN for a group that is not finite.
template <bool COARSE>
INLINE F32 scales_of(F32 amax) {
    F32 scale = mul(amax, set1(1.0f / 127.0f));
    if constexpr (!COARSE) {  // the largest power of two that keeps |x| / scale at 127 * 256 + 127 or below
        I32 u = bits(mul(amax, set1(1.0f / 32639.0f)));
        scale = bits(band(add(u, set1i(0x7FFFFF)), set1i(0x7F800000)));  // up to the next power of two
        F32 smallest = set1(0x1p-126f);
        scale = select_less(scale, smallest, select_less(set1(0.0f), amax, smallest, set1(1.0f)), scale);
    }
    return select_less(amax, set1(INFINITY), scale, set1(NAN));
}

// The integers of one group. Those of one that is not finite are 0; its scale says what it is.
template <bool COARSE>
INLINE void round_group(const Group& group, float scale, float inverse, I32 (&q)[2]) {
    for (int half = 0; half < 2; half++) {
        q[half] = scale == scale ? to_int(mul(load(group.x + HALF * half), set1(inverse))) : set1i(0);
        put_integers<COARSE>(group.out->integers[group.r], half, q[half]);
    }
    group.out->scales[group.r] = scale;
}

template <bool COARSE>
void quantize_one(const Group& group) {
    float scale[LANES], inverses[LANES];
    F32 scales = scales_of<COARSE>(bits(set1i(highest(sizes(group.x)))));
    store(scale, scales), store(inverses, inverse(scales));
    I32 q[2];
    round_group<COARSE>(group, scale[0], inverses[0], q);
    int32_t *isums = group.out->isums[group.r], total = (isums[0] = sum(q[0])) + (isums[1] = sum(q[1]));
    group.out->sums[group.r] = scale[0] * float(total);
}

// Sixteen groups, which share what is computed once per group.
template <bool COARSE>
void quantize_many(const Group* groups) {
    alignas(64) Vectors tops, sums[2];
    alignas(64) float scale[LANES], inverses[LANES], total[LANES];
    alignas(64) int32_t isums[2][LANES];
    for (int i = 0; i < LANES; i++) storei(tops[i], sizes(groups[i].x));
    F32 scales = scales_of<COARSE>(reduce(tops, greatest_bits));
    store(scale, scales), store(inverses, inverse(scales));
    for (int i = 0; i < LANES; i++) {
        I32 q[2];
        round_group<COARSE>(groups[i], scale[i], inverses[i], q);
        storei(sums[0][i], q[0]), storei(sums[1][i], q[1]);
    }
    I32 low = bits(reduce(sums[0], plus_bits)), high = bits(reduce(sums[1], plus_bits));
    storei(isums[0], low), storei(isums[1], high), store(total, mul(scales, to_float(add(low, high))));
    for (int i = 0; i < LANES; i++) {
        Block& block = *groups[i].out;
        int r = groups[i].r;
        block.sums[r] = total[i], block.isums[r][0] = isums[0][i], block.isums[r][1] = isums[1][i];
    }
}

// Groups, sixteen at a time; the last ones when it goes out of scope.
template <bool COARSE>
class Quantizer {
  public:
    ~Quantizer() {
        for (int i = 0; i < count_; i++) quantize_one<COARSE>(groups_[i]);
    }
    void add(const float* x, Block* out, int r) {
        groups_[count_++] = {x, out, r};
        if (count_ == LANES) quantize_many<COARSE>(groups_), count_ = 0;
    }

  private:
    Group groups_[LANES];
    int count_ = 0;
};

}  // namespace fixed_point
