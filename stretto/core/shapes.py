"""The legend of shape suffixes, one for the whole project (`x_TD` is a tensor of shape [T, D]).

    B  sequences              T  tokens (rows) of this call     L  tokens in the cache after this call
    C  chunk length           H  query heads                    G  key-value heads
    K  key size per head      V  value size per head            D  model width (`d_model`)
    F  channel width          E  experts                        W  vocabulary
    S  SSM state              R  rows that need logits; rank    P  pages
    X  draft length           N  slots; nodes of a draft tree

Activations are packed rows: the sequences of a call lie one after the other along T, and `Seqs` says where each one
starts. There is no padded batch dimension; `B` appears in states, oracles and tests.
"""
