// What Python reads about the library itself: shared structs, enums and the level it was compiled for.
#include "commit.h"
#include "functions.h"
#include "linear/formats.h"
#include "lora/lora.h"
#include "sampling/sample.h"

using namespace vec;

STRETTO_STRUCT(Rows, kind, count)
STRETTO_STRUCT(PageGroup, slot_mapping, block_table, block_width, num_keys, key_positions, num_shared)
STRETTO_STRUCT(Step, num_rows, num_out, num_seqs, num_step_seqs, tokens, out_rows, positions, seq_ids, starts, contexts,
               num_definite, parents, groups, num_groups, state_source, state_destination, loras)
STRETTO_STRUCT(Commit, step, num_accepted, accepted_rows)
STRETTO_STRUCT(LoraFactors, a, b, rank, first, d_out, scale)
STRETTO_FIELDS(Row, sampling::Row, x, argmax, width, temperature, top_p, log_min_p, top_k, key, position, purpose, token)

STRETTO_EXPORT_ENUM(RowKind)
STRETTO_EXPORT_ENUM(Activation)

extern "C" const char* Format_names() {
    static const std::string all = formats::names(std::make_integer_sequence<int, formats::NUM_FORMATS>());
    return all.c_str();
}
extern "C" const char* level() { return LEVEL; }
