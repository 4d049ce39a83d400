// The rows that a recurrent layer follows: those of one sequence, its provisional ones, the accepted ones.
#pragma once

#include "commit.h"

// The rows of one sequence: consecutive ones, or those of a list.
struct Path {
    const int32_t* list;
    int64_t start;
    int count;

    int64_t at(int i) const { return start + (list ? list[i] : i); }
};

inline Path rows_of(const Step& step, int64_t b) {
    return {nullptr, step.starts[b], step.starts[b + 1] - step.starts[b]};
}

// The provisional rows of sequence b, and where their inputs are noted: those of all sequences lie side by side.
struct Noted {
    Path rows;
    int64_t to;
};

inline Noted noted_of(const Step& step, int64_t b, int64_t room) {
    Noted noted = {rows_of(step, b), 0};
    noted.rows.start += step.num_definite[b];
    noted.rows.count -= step.num_definite[b];
    if (noted.rows.count == 0) return noted;
    for (int64_t i = 0; i < b; i++) noted.to += rows_of(step, i).count - step.num_definite[i];
    if (noted.to + noted.rows.count > room) __builtin_trap();
    return noted;
}

// The accepted rows of sequence b, where they are noted.
inline Path accepted_of(const Step& step, int64_t b, int64_t room) {
    const Commit& commit = commit_of(step);
    Path path = {commit.accepted_rows + b * MAX_TREE_ROWS, 0, commit.num_accepted[b]};
    if (path.count == 0) return path;
    Noted noted = noted_of(step, b, room);
    path.start = noted.to - noted.rows.start;
    return path;
}

// Whether a row of the sequence continues another than the one before it.
inline bool branches(const int32_t* parents, int definite, int rows) {
    for (int i = definite; i < rows; i++)
        if (parents[i] != i - 1) return true;
    return false;
}
