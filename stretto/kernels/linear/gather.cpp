// Rows of a stored matrix in another order, on their way from a file to tiles.
#include <cstring>

#include "op.h"

namespace {

// out[i] = source[order[i]]
struct GatherArgs {
    const uint8_t* source;
    int64_t row_bytes;
    int64_t num_rows;      // of `order` and `out`
    const int32_t* order;  // [num_rows]
    uint8_t* out;
};

constexpr int64_t GATHER_ROWS = 32;

int64_t chunks(const GatherArgs& a, const Step&) { return ceil_div(a.num_rows, GATHER_ROWS); }

void run(const GatherArgs& a, const Step&, int64_t first, int64_t last) {
    int64_t end = last * GATHER_ROWS < a.num_rows ? last * GATHER_ROWS : a.num_rows;
    for (int64_t i = first * GATHER_ROWS; i < end; i++)
        std::memcpy(a.out + i * a.row_bytes, a.source + a.order[i] * a.row_bytes, size_t(a.row_bytes));
}

}  // namespace

STRETTO_OP(gather_rows, GatherArgs, source, row_bytes, num_rows, order, out)
