// What operations that go row by row share: vectors of a row, and chunks of a few rows.
#pragma once

#include "functions.h"
#include "op.h"

namespace rows {

using namespace vec;

constexpr int ROWS = 8;  // of a chunk

// Vectors of a row, then what is left: `body(offset, lanes)` for each.
template <class Body>
INLINE void over(int width, Body body) {
    for (int i = 0; i < width; i += LANES) body(i, width - i < LANES ? width - i : LANES);
}

INLINE F32 read(const float* p, int n) { return n == LANES ? load(p) : load_n(p, n); }
INLINE void write(float* p, F32 a, int n) {
    if (n == LANES) store(p, a);
    else store_n(p, a, n);
}

INLINE int64_t row_chunks(const Rows& rows, const Step& step) { return ceil_div(rows.of(&step), ROWS); }

template <class Args, class Body>
INLINE void each_row(const Args& a, const Step& step, int64_t first, int64_t last, Body body) {
    int64_t rows = a.rows.of(&step), end = last * ROWS < rows ? last * ROWS : rows;
    for (int64_t r = first * ROWS; r < end; r++) body(r);
}

}  // namespace rows
