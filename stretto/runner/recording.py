"""Recording a model: its forward pass once, as a program, when a runner is made.

A mixer or channel that computes something without a native kernel is one operation of the host in it. Program and
memory are those of `replay.py`, which runs it here as in any later process.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stretto.cache.layout import PoolLayout
from stretto.cache.placement import Placement
from stretto.cache.pools import Pools
from stretto.core.plan import StepPlan
from stretto.kernels.linear import Linear
from stretto.kernels.linear.native import NativeWeight, Tiles
from stretto.kernels.native.guard import StepSeqs
from stretto.kernels.native.library import Team
from stretto.kernels.native.program import Given, Program, Regions, addresses_of, load
from stretto.kernels.native.tape import Tape, as_program
from stretto.kernels.rowwise.native import best
from stretto.models.lm import LM
from stretto.runner.replay import ARGMAX, HIDDEN, LOGITS, TOP, Head, Replay

LORAS = "loras"
"""The buffer of a program that holds the table of its adapters."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What `record` found: the program, what it needs to run elsewhere, and how it runs here.

    layout: of the pools. tiles: the weights of the program, `tiles.0` and so on. max_rows, context: what it has room
    for.
    """

    program: Program
    head: Head
    layout: PoolLayout
    tiles: tuple[Tiles, ...]
    max_rows: int
    context: int
    replay: Replay


def record(
    lm: LM,
    pools: Pools,
    threads: Team,
    *,
    max_rows: int,
    context: int,
    vocab_size: int,
    taps: Sequence[int] = (),
    coarse_prompts: bool = False,
) -> Recorded:
    """`LM.forward` as a program over `pools`, and the hidden states [T, D] after the layers `taps`.

    threads: who runs it. max_rows: most rows of a step; context: most positions of a sequence, provisional rows too;
    vocab_size: ids from here on do not count. coarse_prompts: see `Tape`.
    """
    sizes = {"max_rows": max_rows, "max_out": max_rows, "context": context}
    tape = Tape(threads, **sizes, coarse_prompts=coarse_prompts, live=pools.tensors)
    room = StepSeqs((tape.room,), (0,), (0,), (None,))
    with tape.outside():
        plan = StepPlan((), room, (), pools.refs(Placement()))
        assert len(plan.tokens) == len(plan.out_rows) == 0
    with tape.recording():
        h_RD, features = lm.features(plan, taps)
        logits = lm.logits(h_RD, len(h_RD))
        top, argmax = best(logits, vocab_size)
    tape.emit_between("choose")
    tape.emit_between("advance")
    tiles = weights_of(lm)
    regions = Regions()
    for number, own in enumerate(tiles):
        regions.add(own.data.data_ptr(), Given(f"tiles.{number}", own.data.nbytes))
    for number, one in enumerate(pools.layout.arrays):
        for layer in range(one.layers if one.unit_bytes else 0):
            regions.add(pools.address(number, layer), Given(f"pool.{number}.{layer}", one.unit_bytes))
    if lm.loras is not None and lm.loras.memory is not None:
        regions.add(lm.loras.memory.data_ptr(), Given(LORAS, lm.loras.memory.nbytes))
    program = as_program(tape, regions, {LOGITS: logits, TOP: top, ARGMAX: argmax, HIDDEN: h_RD})
    hosts = [call.host for call in tape.calls if call.host is not None]
    operations = load(program, threads, regions.addresses, hosts)
    head = Head(len(logits), logits.stride(0), vocab_size, h_RD.shape[1], h_RD.stride(0))
    replay = Replay(
        operations,
        addresses_of(program, regions.addresses),
        head,
        features=lambda rows: tuple(h[:rows] for h in features),
        scope=torch.inference_mode,
        memory=(tape, lm, pools),
    )
    return Recorded(program, head, pools.layout, tiles, max_rows, context, replay)


def weights_of(lm: LM) -> tuple[Tiles, ...]:
    """Every matrix of a model that lies in native tiles, each once."""
    found: dict[int, Tiles] = {}
    for module in lm.modules():
        if isinstance(module, Linear) and isinstance(module.layout, NativeWeight):
            found |= {part.data.data_ptr(): part for part in module.layout.parts}
    return tuple(found.values())
