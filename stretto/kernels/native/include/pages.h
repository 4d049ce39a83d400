// How pages store numbers (PageFormat of core/page_format.py): an element for every number, and for some formats a scale
// for every token and head. Kernels are templates over these; bf16 and fp32 leave nothing of scales in them.
#pragma once

#include "vec.h"

namespace page_format {
STRETTO_ENUM(PageFormat, F32, BF16, INT8)
}

namespace pages {

using namespace vec;

// To nearest even; NaN stays NaN.
INLINE I32 rounded_to_bf16(F32 x) {
    I32 u = bits(x);
    I32 up = add(u, add(set1i(0x7FFF), band(shr<16>(u), set1i(1))));
    return shr<16>(bits(select_less(abs(x), set1(INFINITY), bits(up), x)));
}

struct Fp32 {
    using Element = float;
    static constexpr bool has_scales = false;
    static INLINE F32 lanes(const float* p) { return load(p); }
    static INLINE F32 some_lanes(const float* p, int n) { return load_n(p, n); }
    static INLINE void store_some(float* out, F32 x, int n, float) { store_n(out, x, n); }
};

struct Bf16 {
    using Element = uint16_t;
    static constexpr bool has_scales = false;
    static INLINE F32 lanes(const uint16_t* p) { return load_bf16(p); }
    static INLINE F32 some_lanes(const uint16_t* p, int n) {
        uint16_t t[LANES] = {};
        std::memcpy(t, p, size_t(n) * 2);
        return load_bf16(t);
    }
    static INLINE void store_some(uint16_t* out, F32 x, int n, float) {
        uint16_t t[LANES];
        store_u16(n == LANES ? out : t, rounded_to_bf16(x));
        if (n < LANES) std::memcpy(out, t, size_t(n) * 2);
    }
};

// number = scale * element, scale = largest magnitude / 127.
struct Int8 {
    using Element = int8_t;
    static constexpr bool has_scales = true;
    static INLINE F32 lanes(const int8_t* p) { return to_float(load_s8(p)); }
    static INLINE F32 some_lanes(const int8_t* p, int n) {
        int8_t t[LANES] = {};
        std::memcpy(t, p, size_t(n));
        return lanes(t);
    }
    // Of a head; not finite if one of its numbers is not.
    static float scale_of(const float* x, int size) {
        I32 top = set1i(0);
        for (int d = 0; d < size; d += LANES) top = max(top, size_of(size - d < LANES ? load_n(x + d, size - d) : load(x + d)));
        float scale;
        int32_t found = highest(top);
        std::memcpy(&scale, &found, 4);
        return scale / 127.0f;
    }
    static INLINE void store_some(int8_t* out, F32 x, int n, float scale) {
        F32 limit = set1(127.0f), y = max(sub(set1(0.0f), limit), min(limit, div(x, set1(scale))));
        uint8_t t[LANES];
        store_u8(t, scale > 0.0f && scale < INFINITY ? band(to_int(y), set1i(0xFF)) : set1i(0));
        std::memcpy(out, t, size_t(n));
    }
};

// Calls f with the format as a type.
template <class Function>
INLINE auto with_format(int32_t format, Function f) {
    return format == page_format::BF16 ? f(Bf16()) : format == page_format::INT8 ? f(Int8()) : f(Fp32());
}

}  // namespace pages
