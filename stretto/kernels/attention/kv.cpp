// Storing keys and values where the step says: keys lane by lane, values token by token.
#include "op.h"
#include "vec.h"

using namespace vec;

namespace {

// Rows k [T, G K] and v [T, G V] go to the locations of the step.
struct AppendArgs {
    int32_t key_size;  // of a row: all heads
    int32_t value_size;
    int32_t is_bf16;
    int32_t group;  // whose pages
    const float* k;
    int64_t k_stride;
    const float* v;
    int64_t v_stride;
    void* k_pages;  // [P, G K, PAGE_TOKENS]
    void* v_pages;  // [P, PAGE_TOKENS, G V]
};

constexpr int APPEND_ROWS = 16;

// To nearest even; NaN stays NaN.
INLINE I32 rounded(F32 x) {
    I32 u = bits(x);
    I32 up = add(u, add(set1i(0x7FFF), band(shr<16>(u), set1i(1))));
    return shr<16>(bits(select_less(abs(x), set1(INFINITY), bits(up), x)));
}

template <class Item>
void store_vector(Item* out, const float* x, int n) {
    if constexpr (sizeof(Item) == 4) {
        std::memcpy(out, x, size_t(n) * 4);
    } else if (n == LANES) {
        store_u16(out, rounded(load(x)));
    } else {
        uint16_t rest[LANES];
        store_u16(rest, rounded(load_n(x, n)));
        std::memcpy(out, rest, size_t(n) * 2);
    }
}

// Elements lie PAGE_TOKENS items apart: beside each are those of the page's other keys.
template <class Item>
void append_key(const float* x, int size, Item* pages, int64_t location) {
    Item items[LANES], *out = pages + location / PAGE_TOKENS * size * PAGE_TOKENS + location % PAGE_TOKENS;
    for (int d = 0; d < size; d += LANES) {
        int n = size - d < LANES ? size - d : LANES;
        store_vector(items, x + d, n);
        for (int i = 0; i < n; i++) out[(d + i) * PAGE_TOKENS] = items[i];
    }
}

template <class Item>
void append_value(const float* x, int size, Item* pages, int64_t location) {
    for (int d = 0; d < size; d += LANES)
        store_vector(pages + location * size + d, x + d, size - d < LANES ? size - d : LANES);
}

template <class Item>
void append(const AppendArgs& a, int64_t row, int64_t location) {
    append_key(a.k + row * a.k_stride, a.key_size, static_cast<Item*>(a.k_pages), location);
    append_value(a.v + row * a.v_stride, a.value_size, static_cast<Item*>(a.v_pages), location);
}

int64_t chunks(const AppendArgs&, const Step& step) { return ceil_div(step.num_rows, APPEND_ROWS); }

void run(const AppendArgs& a, const Step& step, int64_t first, int64_t last) {
    const int64_t* slots = step.groups[a.group].slot_mapping;
    for (int64_t r = first * APPEND_ROWS; r < last * APPEND_ROWS && r < step.num_rows; r++) {
        if (a.is_bf16) append<uint16_t>(a, r, slots[r]);
        else append<float>(a, r, slots[r]);
    }
}

}  // namespace

STRETTO_OP(kv_append, AppendArgs, key_size, value_size, is_bf16, group, k, k_stride, v, v_stride, k_pages, v_pages)
