// Token rows that change their place on pages: accepted rows of a draft tree go where rows of a chain lie.
#include <cstring>
#include <vector>

#include "op.h"

namespace {

// Of one state in all layers, [layers, pages, PAGE_TOKENS, numbers] or, by lanes, [layers, pages, numbers, PAGE_TOKENS].
struct MoveArgs {
    uint8_t* pages;
    int64_t layer_bytes;
    int32_t num_layers;
    int32_t numbers;
    int32_t item_bytes;
    int32_t by_lanes;
    int64_t num_rows;
    const int64_t* source;  // [num_rows] page * PAGE_TOKENS + offset
    const int64_t* destination;
};

struct Token {
    uint8_t* first;  // its numbers lie `stride` bytes apart
    int64_t stride;

    Token(const MoveArgs& a, int64_t layer, int64_t slot) {
        int64_t page = slot / PAGE_TOKENS, offset = slot % PAGE_TOKENS;
        stride = a.by_lanes ? PAGE_TOKENS * a.item_bytes : a.item_bytes;
        first = a.pages + layer * a.layer_bytes + page * PAGE_TOKENS * a.numbers * a.item_bytes +
                offset * (a.by_lanes ? a.item_bytes : int64_t(a.numbers) * a.item_bytes);
    }
};

int64_t chunks(const MoveArgs& a, const Step&) { return a.num_layers; }

void run(const MoveArgs& a, const Step&, int64_t first, int64_t last) {
    int64_t row_bytes = int64_t(a.numbers) * a.item_bytes;
    std::vector<uint8_t> held(size_t(a.num_rows * row_bytes));
    for (int64_t layer = first; layer < last; layer++) {
        uint8_t* out = held.data();
        for (int64_t r = 0; r < a.num_rows; r++) {
            Token from(a, layer, a.source[r]);
            for (int64_t i = 0; i < a.numbers; i++, out += a.item_bytes)
                std::memcpy(out, from.first + i * from.stride, size_t(a.item_bytes));
        }
        const uint8_t* in = held.data();
        for (int64_t r = 0; r < a.num_rows; r++) {
            Token to(a, layer, a.destination[r]);
            for (int64_t i = 0; i < a.numbers; i++, in += a.item_bytes)
                std::memcpy(to.first + i * to.stride, in, size_t(a.item_bytes));
        }
    }
}

}  // namespace

STRETTO_OP(move_tokens, MoveArgs, pages, layer_bytes, num_layers, numbers, item_bytes, by_lanes, num_rows, source,
           destination)
