// Storing keys and values where the step says.
#include "op.h"
#include "vec.h"

using namespace vec;

namespace {

// Rows k [T, G K] and v [T, G V] go to the slots of the step.
struct AppendArgs {
    int32_t key_size;  // of a row: all heads
    int32_t value_size;
    int32_t is_bf16;
    int32_t unused;
    const float* k;
    int64_t k_stride;
    const float* v;
    int64_t v_stride;
    uint8_t* k_pages;
    uint8_t* v_pages;
};

constexpr int APPEND_ROWS = 16;

// To nearest even; NaN stays NaN.
INLINE I32 rounded(F32 x) {
    I32 u = bits(x);
    I32 up = add(u, add(set1i(0x7FFF), band(shr<16>(u), set1i(1))));
    return shr<16>(bits(select_less(abs(x), set1(INFINITY), bits(up), x)));
}

void append(const float* x, int size, uint8_t* pages, int64_t slot, bool is_bf16) {
    if (!is_bf16) {
        std::memcpy(pages + slot * size * 4, x, size_t(size) * 4);
        return;
    }
    auto* out = reinterpret_cast<uint16_t*>(pages) + slot * size;
    int d = 0;
    for (; d + LANES <= size; d += LANES) store_u16(out + d, rounded(load(x + d)));
    if (d == size) return;
    uint16_t rest[LANES];
    store_u16(rest, rounded(load_n(x + d, size - d)));
    std::memcpy(out + d, rest, size_t(size - d) * 2);
}

int64_t chunks(const AppendArgs&, const Step& step) { return ceil_div(step.num_rows, APPEND_ROWS); }

void run(const AppendArgs& a, const Step& step, int64_t first, int64_t last) {
    for (int64_t r = first * APPEND_ROWS; r < last * APPEND_ROWS && r < step.num_rows; r++) {
        append(a.k + r * a.k_stride, a.key_size, a.k_pages, step.slot_mapping[r], a.is_bf16);
        append(a.v + r * a.v_stride, a.value_size, a.v_pages, step.slot_mapping[r], a.is_bf16);
    }
}

}  // namespace

STRETTO_OP(kv_append, AppendArgs)
