"""The laws of wirings (stretto/models/block.py), over all ways to wire a toy: values, gradients, names, work."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from laws import close
from torch import Tensor, nn
from toy import TOKENS, VOCAB, WIRINGS, lively_model, tiny, toy_config, toy_lm, wired

from stretto.core.card import CHANNELS, MIXERS
from stretto.core.errors import UserError
from stretto.core.plan import StepPlan
from stretto.core.seqs import Seqs
from stretto.kernels.linear import Linear
from stretto.kernels.linear.torch_ import STEP_ROWS
from stretto.mixers.parallel import Branch
from stretto.models.adapter import Adapter
from stretto.models.block import Block, Norm, Wiring
from stretto.models.lm import LM, Layer

over_wirings = pytest.mark.parametrize("name", WIRINGS)


# -- values ------------------------------------------------------------------------------------------------------------


def normed(norm: Norm, kind: str, eps: float, h: Tensor) -> Tensor:
    """The formulas, a row at a time."""
    rows = []
    for row in h:
        if kind.startswith("layer"):
            row = row - row.sum() / len(row)
        weight = norm.weight + 1 if kind == "rms_plus_one" else norm.weight
        row = row / ((row * row).sum() / len(row) + eps) ** 0.5 * weight
        rows.append(row + norm.bias if norm.bias is not None else row)
    return torch.stack(rows)


def merged(part: nn.Module, config: Any, adapter: Adapter | None, use: int) -> nn.Module:
    """A part of its own whose matrices hold what the adapters of one use add."""
    own: nn.Module = config.build().double()
    state = {name: tensor for name, tensor in part.state_dict().items() if ".adapters." not in name}
    for name, linear in part.named_modules():
        if isinstance(linear, Linear) and linear.adapters is not None and adapter is not None:
            term: Any = linear.adapters[use]
            state[f"{name}.weight"] = linear.weight + adapter.scale * term.up.weight @ term.down.weight
    own.load_state_dict(state)
    return own


def by_formula(lm: LM, tokens: list[int]) -> Tensor:
    """The model in plain steps: what every wiring says, written out."""
    c, seqs, uses = lm.config, Seqs.of([len(tokens)]), Counter[str]()
    h = torch.stack([lm.embed.weight[token] for token in tokens])
    for layer, block in zip(c.layers, lm.blocks, strict=True):
        assert isinstance(block, Block)
        use = uses[layer.shared or ""]
        uses[layer.shared or ""] += 1
        w, s = layer.wiring, c.residual_multiplier
        mixer = merged(block.mixer, layer.mixer, layer.adapter, use) if block.mixer is not None else None
        channel = merged(block.channel, layer.channel, layer.adapter, use) if block.channel is not None else None

        def norm(name: str, h: Tensor, block: Block = block) -> Tensor:
            return normed(getattr(block, name), c.norm, c.norm_eps, h)

        if w.parallel is not None:
            second = "mixer_norm" if w.parallel == "one_norm" else "channel_norm"
            mixed, thought = mixer(norm("mixer_norm", h), seqs), channel(norm(second, h), seqs)
            h = h + s * w.mixer_scale * mixed + s * w.channel_scale * thought
            continue
        for part, name, scale in ((mixer, "mixer", w.mixer_scale), (channel, "channel", w.channel_scale)):
            if part is None:
                continue
            if w.norms == "pre":
                h = h + s * scale * part(norm(f"{name}_norm", h), seqs)
            elif w.norms == "post":
                h = norm(f"{name}_post_norm", h + s * scale * part(h, seqs))
            elif w.norms == "output":
                h = h + s * scale * norm(f"{name}_post_norm", part(h, seqs))
            else:
                inner = part(norm(f"{name}_norm", h), seqs)
                h = h + s * scale * norm(f"{name}_post_norm", inner)
    head = lm.head or lm.embed
    return normed(lm.norm, c.norm, c.norm_eps, h) @ head.weight.T


@over_wirings
def test_a_wiring_is_its_formula(name: str) -> None:
    lm = lively_model(WIRINGS[name])
    found = lm(StepPlan.of([TOKENS]))
    close(found, by_formula(lm, TOKENS))
    few = StepPlan(TOKENS, Seqs.of([len(TOKENS)]), [2, 7])
    close(lm(few), found[[2, 7]])


@over_wirings
def test_calls_in_pieces_equal_one(name: str) -> None:
    """Through caches, with rows that are not wanted, states of parts side by side."""
    lm = lively_model(WIRINGS[name])
    whole, caches, at = lm(StepPlan.of([TOKENS])), lm.tensor_caches(num_seqs=1), 0
    for size, wanted in ((3, [1]), (1, [0]), (1, []), (2, [0, 1]), (1, [0])):
        seqs = Seqs.of([size], [at], num_step=int(size == 1))
        found = lm(StepPlan(TOKENS[at : at + size], seqs, wanted, caches))
        close(found, whole[[at + row for row in wanted]])
        at += size


@over_wirings
def test_gradients_equal_finite_differences(name: str) -> None:
    lm = lively_model(WIRINGS[name]).requires_grad_()
    plan = StepPlan.of([TOKENS[:4], TOKENS[4:6]])
    names, values = zip(*lm.named_parameters(), strict=True)

    def forward(*values: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(lm, dict(zip(names, values, strict=True)), (plan,))
        return found

    assert torch.autograd.gradcheck(forward, values, fast_mode=True)


# -- names and states --------------------------------------------------------------------------------------------------


@over_wirings
def test_every_tensor_is_named_once(name: str) -> None:
    lm = lively_model(WIRINGS[name])
    targets = list(lm.targets())
    assert len({target for target, _, _ in targets}) == len(targets)
    sizes = [
        module.segments[leaf] * (1 if target.endswith(".bias") else module.d_in)
        if isinstance(module, Linear)
        else module.get_parameter(leaf).numel()
        for target, module, leaf in targets
    ]
    assert sum(sizes) == sum(parameter.numel() for parameter in lm.parameters())


def test_layers_share_weights_and_keep_states_and_adapters_of_their_own() -> None:
    lm = lively_model(WIRINGS["a shared block with adapters"])
    assert lm.blocks[0] is lm.blocks[2] is lm.blocks[4] and lm.blocks[1] is not lm.blocks[3]
    assert not any(target.startswith(("blocks.2", "blocks.4")) for target, _, _ in lm.targets())
    assert [len(specs) for specs in lm.state_specs] == [2, 2, 2, 3, 2]
    block = lm.blocks[0]
    assert isinstance(block, Block) and block.mixer is not None
    adapters = block.mixer.get_submodule("qkv.adapters")
    assert isinstance(adapters, nn.ModuleList) and len(adapters) == 3
    before = lm(StepPlan.of([TOKENS]))
    for use in range(3):
        change = adapters[use].get_submodule("up").get_parameter("weight")
        change.data.neg_()
        assert not torch.allclose(lm(StepPlan.of([TOKENS])), before), "every use has its own"
        change.data.neg_()


def test_a_fresh_adapter_adds_nothing() -> None:
    layer = Layer(mixer=tiny(MIXERS, "attention"), channel=tiny(CHANNELS, "dense"))
    adapter = Adapter(rank=2, matrices=("mixer.qkv", "channel.gate_up", "channel.down"))
    plain, adapted = (toy_config([one]).build() for one in (layer, replace(layer, adapter=adapter)))
    missing = adapted.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(".adapters." in key for key in missing)
    close(adapted(StepPlan.of([TOKENS])), plain(StepPlan.of([TOKENS])), atol=1e-6)


def test_states_of_a_layer_do_not_clash() -> None:
    def branch(name: str) -> Branch:
        return Branch(name=name, mixer=tiny(MIXERS, "attention"))

    both = tiny(MIXERS, "parallel", branches=(branch("left"), branch("right")))
    lm = toy_config([Layer(mixer=both, channel=tiny(CHANNELS, "rwkv_cmix"))]).build()
    (specs,) = lm.state_specs
    assert [spec.name for spec in specs] == ["left.k", "left.v", "right.k", "right.v", "channel.shift"]
    assert [(layer, type(part).__name__) for layer, part in lm.parts] == [(0, "Parallel"), (0, "RWKVCmix")]


REFUSED = {
    "a layer without a part": lambda: Layer(),
    "and only one of them": lambda: Layer(mixer=tiny(MIXERS, "attention"), wiring=Wiring(parallel="one_norm")),
    "sandwich norms": lambda: Wiring(parallel="one_norm", norms="sandwich"),
    "no matrix 'channel.up'": lambda: toy_config(
        [Layer(channel=tiny(CHANNELS, "dense"), adapter=Adapter(rank=1, matrices=("channel.up",)))]
    ).build(),
    "layer 1 differs": lambda: toy_config(
        [Layer(mixer=tiny(MIXERS, name), shared="one") for name in ("attention", "mamba2")]
    ).build(),
    "branches ": lambda: tiny(MIXERS, "parallel", branches=()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_wired_is_refused(what: str) -> None:
    with pytest.raises(UserError, match=what):
        REFUSED[what]()


# -- work --------------------------------------------------------------------------------------------------------------


@contextmanager
def products() -> Iterator[list[tuple[Tensor, int]]]:
    """The matrices that are multiplied, and by how many rows."""
    found, plain = list[tuple[Tensor, int]](), F.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found.append((weight, len(x)))
        return plain(x, weight, bias)

    with patch.object(F, "linear", linear):
        yield found


@pytest.mark.parametrize("tied", [False, True])
def test_a_training_step_multiplies_every_matrix_once(tied: bool) -> None:
    """4,096 rows, all wanted; every product has all of them."""
    lm = replace(wired(Wiring(), mixers=["attention", "gated_delta"]), tie_embeddings=tied).build()
    with products() as found:
        lm(StepPlan.of([[t % VOCAB for t in range(64)]] * 64)).logsumexp(1).sum().backward()
    matrices = {id(module.weight) for module in lm.modules() if isinstance(module, Linear)}
    if not tied:
        matrices.remove(id(lm.embed.weight))  # looked up, and not multiplied
    assert Counter((id(weight), rows) for weight, rows in found) == {(matrix, 4096): 1 for matrix in matrices}


def test_rows_of_a_served_step_keep_their_bits() -> None:
    lm = toy_lm().cast(torch.float32)
    h = torch.randn(40, lm.config.d_model)
    alone = torch.cat([lm.logits(row[None], num_step_rows=1) for row in h])
    assert torch.equal(lm.logits(h, num_step_rows=40), alone)
    assert torch.equal(lm.logits(h, num_step_rows=17)[:17], alone[:17])
    assert lm.head is not None
    with products() as found:
        lm(StepPlan.of([TOKENS], lm.tensor_caches(num_seqs=1)))
    assert [rows for weight, rows in found if weight is lm.head.weight] == [STEP_ROWS], "all rows of a served prompt"
