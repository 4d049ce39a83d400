// What every kernel looks like.
//
// An operation is a pair of C functions over one plain argument struct: `<name>_chunks` says into how many independent
// pieces the work of this step falls, `<name>_run` does pieces [first, last). Pieces write disjoint memory and may run
// on any thread, in any order. Shapes that change from step to step are read from `Step`, so a recorded list of
// operations serves every number of rows up to the capacity of its buffers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fields.h"

extern "C" {

// The pages of one group of states: every sequence has a list of keys, those that the cache holds before the rows of this
// step. Key i lies on page block_table[b, i / PAGE_TOKENS]; page 0 stands for pages that no row sees any more.
struct PageGroup {
    const int64_t* slot_mapping;  // [T] where a row's keys and values go: page * PAGE_TOKENS + offset
    const int32_t* block_table;   // [B, block_width] pages of every sequence
    int64_t block_width;
    int32_t* num_keys;             // [B] that the cache holds
    const int32_t* key_positions;  // [B, block_width * PAGE_TOKENS] of what it holds; null: a key's index
    const int32_t* num_shared;     // [B] first keys that lie on the pages of the sequence before; null: not known

    const int32_t* table(int64_t b) const { return block_table + b * block_width; }
};

// The rows of one step. Arrays live in buffers that the caller refills before every run.
struct Step {
    int32_t num_rows;       // T: rows of activations
    int32_t num_out;        // R: rows that the head needs
    int32_t num_seqs;       // B
    int32_t num_step_seqs;  // leading sequences in step form
    const int64_t* tokens;  // [T]
    const int32_t* out_rows;   // [R]
    const int32_t* positions;  // [T] absolute: context + depth
    const int32_t* seq_ids;    // [T]
    const int32_t* starts;     // [B + 1] first row of every sequence
    const int32_t* contexts;   // [B] tokens that the caches already hold
    const int32_t* num_definite;   // [B] rows that are certainly kept
    const int32_t* parents;        // [T] row inside the sequence whose successor a row is, -1 = the context
    PageGroup* groups;  // [num_groups]
    int64_t num_groups;
    const int32_t* state_source;       // [B] slot of the entry state
    const int32_t* state_destination;  // [B] slot of the state after the definite rows; no other sequence reads it
    const int32_t* loras;              // [T] number of the adapter of every row, 0 = none; null: no row has one
};

typedef int64_t (*ChunksFn)(const void* args, const Step* step);
typedef void (*RunFn)(const void* args, const Step* step, int64_t first, int64_t last);

struct Span {
    const void* start;
    int64_t bytes;
};
typedef Span (*ReadsFn)(const void* args, const Step* step, int64_t first, int64_t last);

struct Op {
    ChunksFn chunks;
    RunFn run;
    const void* args;
    ReadsFn reads = nullptr;  // what pieces [first, last) read that no cache holds: idle threads ask for it
};

}  // extern "C"

// A leading dimension that is known when a step runs: T, R, or a constant.
STRETTO_ENUM(RowKind, CONSTANT_ROWS, ALL_ROWS, OUT_ROWS)

struct Rows {
    int32_t kind;  // else `count`
    int32_t count;

    int32_t of(const Step* step) const {
        return kind == ALL_ROWS ? step->num_rows : kind == OUT_ROWS ? step->num_out : count;
    }
};

STRETTO_NAME(Rows)
STRETTO_NAME(PageGroup)
STRETTO_NAME(Step)

// Registers `name_chunks` and `name_run` for the argument struct `Args`, whose fields follow (see fields.h).
#define STRETTO_OP(name, Args, ...)                                                                             \
    extern "C" int64_t name##_chunks(const void* args, const Step* step) {                                      \
        return chunks(*static_cast<const Args*>(args), *step);                                                  \
    }                                                                                                           \
    extern "C" void name##_run(const void* args, const Step* step, int64_t first, int64_t last) {               \
        run(*static_cast<const Args*>(args), *step, first, last);                                               \
    }                                                                                                           \
    STRETTO_FIELDS(name, Args, __VA_ARGS__)

// Registers `name_reads` too.
#define STRETTO_READS(name, Args)                                                                               \
    extern "C" Span name##_reads(const void* args, const Step* step, int64_t first, int64_t last) {             \
        return reads(*static_cast<const Args*>(args), *step, first, last);                                      \
    }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
