// What is known once a step is over: which of its provisional rows are kept.
//
// Operations that advance states over those rows are a list of their own. The team hands them the `Step` at the start
// of a `Commit`, whose rows are still in the buffers of the step.
#pragma once

#include "op.h"

extern "C" {

struct Commit {
    Step step;                     // as it ran
    const int32_t* num_accepted;   // [B] rows that are kept besides the definite ones
    const int32_t* accepted_rows;  // [B, MAX_TREE_ROWS] their numbers among the T rows, along the path
};

}  // extern "C"

inline const Commit& commit_of(const Step& step) { return reinterpret_cast<const Commit&>(step); }
