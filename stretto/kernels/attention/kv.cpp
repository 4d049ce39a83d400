// Storing keys and values where the step says: keys lane by lane, values token by token.
#include "op.h"
#include "pages.h"

using namespace pages;

namespace {

// Rows k [T, G K] and v [T, G V] go to the locations of the step.
struct AppendArgs {
    int32_t key_size;  // of a row: all heads
    int32_t value_size;
    int32_t num_heads;
    int32_t format;  // of pages
    int32_t group;   // whose pages
    int32_t unused;
    const float* k;
    int64_t k_stride;
    const float* v;
    int64_t v_stride;
    void* k_pages;  // [P, G K, PAGE_TOKENS]
    void* v_pages;  // [P, PAGE_TOKENS, G V]
    float* k_scales;  // of formats that have some: [P, G, PAGE_TOKENS]
    float* v_scales;  // [P, PAGE_TOKENS, G]
};

constexpr int APPEND_ROWS = 16;

// Elements lie PAGE_TOKENS items apart: beside each are those of the page's other keys.
template <class P>
void append_key(const float* x, int size, typename P::Element* out, float scale) {
    typename P::Element items[LANES];
    for (int d = 0; d < size; d += LANES) {
        int n = size - d < LANES ? size - d : LANES;
        P::store_some(items, n == LANES ? load(x + d) : load_n(x + d, n), n, scale);
        for (int i = 0; i < n; i++) out[(d + i) * PAGE_TOKENS] = items[i];
    }
}

template <class P>
void append_value(const float* x, int size, typename P::Element* out, float scale) {
    for (int d = 0; d < size; d += LANES) {
        int n = size - d < LANES ? size - d : LANES;
        P::store_some(out + d, n == LANES ? load(x + d) : load_n(x + d, n), n, scale);
    }
}

template <class P>
void append(const AppendArgs& a, int64_t row, int64_t location) {
    const float *k = a.k + row * a.k_stride, *v = a.v + row * a.v_stride;
    auto keys = static_cast<typename P::Element*>(a.k_pages), values = static_cast<typename P::Element*>(a.v_pages);
    int64_t page = location / PAGE_TOKENS, offset = location % PAGE_TOKENS;
    keys += page * a.key_size * PAGE_TOKENS + offset, values += location * a.value_size;
    if constexpr (P::has_scales) {
        int k_size = a.key_size / a.num_heads, v_size = a.value_size / a.num_heads;
        for (int64_t h = 0; h < a.num_heads; h++, k += k_size, v += v_size) {
            if (k_size) {
                float scale = a.k_scales[(page * a.num_heads + h) * PAGE_TOKENS + offset] = P::scale_of(k, k_size);
                append_key<P>(k, k_size, keys + h * k_size * PAGE_TOKENS, scale);
            }
            float scale = a.v_scales[location * a.num_heads + h] = P::scale_of(v, v_size);
            append_value<P>(v, v_size, values + h * v_size, scale);
        }
    } else {
        append_key<P>(k, a.key_size, keys, 1.0f);
        append_value<P>(v, a.value_size, values, 1.0f);
    }
}

int64_t chunks(const AppendArgs&, const Step& step) { return ceil_div(step.num_rows, APPEND_ROWS); }

void run(const AppendArgs& a, const Step& step, int64_t first, int64_t last) {
    const int64_t* slots = step.groups[a.group].slot_mapping;
    auto one = with_format(a.format, [](auto format) { return append<decltype(format)>; });
    for (int64_t r = first * APPEND_ROWS; r < last * APPEND_ROWS && r < step.num_rows; r++) one(a, r, slots[r]);
}

}  // namespace

STRETTO_OP(kv_append, AppendArgs, key_size, value_size, num_heads, format, group, unused, k, k_stride, v,
           v_stride, k_pages, v_pages, k_scales, v_scales)
