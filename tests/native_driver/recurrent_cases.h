// Steps with states that outlive them: what is accepted afterwards, and the sequences that are tried.
#pragma once

#include "driver.h"

namespace driver {

// What a step leaves behind, and the rows of it that are kept: a path through the provisional rows.
class Accepted {
  public:
    Accepted(Random& random, StepRows& rows, const std::vector<Seq>& seqs) {
        std::vector<int32_t> counts, kept(seqs.size() * MAX_TREE_ROWS, INT32_MAX);
        for (size_t b = 0; b < seqs.size(); b++) {
            const Seq& seq = seqs[b];
            std::vector<int> path;
            int provisional = seq.rows() - seq.definite;
            if (provisional > 0 && random.below(4))
                for (int at = seq.definite + random.below(provisional); at >= seq.definite;
                     at = seq.parents[size_t(at)])
                    path.insert(path.begin(), at);
            for (size_t i = 0; i < path.size(); i++)
                kept[b * MAX_TREE_ROWS + i] = rows.step.starts[b] + path[i];
            counts.push_back(int32_t(path.size()));
            num_provisional += provisional;
        }
        commit = {rows.step, rows.keep(counts), rows.keep(kept)};
    }

    Commit commit = {};
    int num_provisional = 0;
};

// States of twice as many slots as there are sequences.
inline void reset(const Buffer<float>& states, uint64_t seed) {
    Random random(seed);
    for (int64_t i = 0; i < states.count(); i++) states[i] = random.value();
}

inline void read_states(const Buffer<float>& states, Outputs& out) {
    for (int64_t i = 0; i < states.count(); i++) {
        if (!(states[i] - states[i] == 0.0f)) fail("a state is not finite");
        out.push_back(states[i]);
    }
}

inline std::vector<std::vector<Seq>> recurrent_cases(Random& random) {
    return {
        {Seq::chain(0, 1, 1)},
        {Seq::chain(5, 1, 1), Seq::chain(0, 2, 2), Seq::chain(9, 0, 0)},
        {Seq::chain(3, 5, 1), Seq::chain(0, 8, 0), Seq::tree(random, 2, 9, 1), Seq::tree(random, 0, 17, 0)},
        {Seq::comb(4, 1), Seq::chain(1, 65, 65), Seq::tree(random, 7, 64, 3)},
    };
}

}  // namespace driver
