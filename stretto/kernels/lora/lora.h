// The adapters of an engine, in a table that is written between two steps: one entry for each adapter and each segment of
// each matrix.
#pragma once

#include "op.h"

// The low-rank term of one segment: y[first + i] += scale * sum_k b[k, i] sum_j a[k, j] x[j].
struct LoraFactors {
    const float* a;  // [rank, d_in]
    const float* b;  // [rank, d_out]: transposed
    int32_t rank;    // 0: the adapter leaves this segment as it is
    int32_t first;   // row of the matrix that is the segment's first
    int32_t d_out;
    float scale;
};

STRETTO_NAME(LoraFactors)
