"""Wirings beside models of transformers: Gemma 2 (sandwich norms), Cohere (parallel), Falcon-H1 (two mixers)."""

import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedConfig,
)
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1ForCausalLM, FalconH1RotaryEmbedding

from stretto.channels.dense import Dense
from stretto.core.plan import StepPlan
from stretto.core.seqs import Seqs
from stretto.kernels.linear import Linear
from stretto.kernels.rope import Rope
from stretto.mixers.attention import Attention
from stretto.mixers.mamba2 import Mamba2
from stretto.mixers.parallel import Branch, Parallel
from stretto.models.block import Block, Norm, Wiring
from stretto.models.lm import LM, Layer, LMConfig

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
D, HEADS, GROUPS, HEAD, HIDDEN, LAYERS = 32, 4, 2, 8, 48, 2
BASE = {
    "hidden_size": D,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "vocab_size": 64,
    "attn_implementation": "eager",
}


def shaken(module: nn.Module) -> nn.Module:
    """All of its parameters changed: norms are no ones any more."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def rope_base(config: PreTrainedConfig) -> float:
    """The base of the rotary angles."""
    return float(config.rope_parameters["rope_theta"])


def fill(linear: Linear, **segments: Tensor) -> None:
    for name, values in segments.items():
        linear.weight.data[linear.rows(name)] = values


def fill_block(block: nn.Module, theirs: nn.Module, order: Tensor | slice = slice(None)) -> None:
    """Attention and gated MLP by their usual names. order: of the rows of a head of q and k."""
    assert isinstance(block, Block) and isinstance(block.mixer, Attention) and isinstance(block.channel, Dense)
    attention, mlp = theirs.get_submodule("self_attn"), theirs.get_submodule("mlp")

    def weight(module: nn.Module, name: str) -> Tensor:
        return module.get_submodule(name).get_parameter("weight").detach()

    def turned(name: str) -> Tensor:
        return weight(attention, name).unflatten(0, (-1, HEAD))[:, order].flatten(0, 1)

    fill(block.mixer.qkv, q=turned("q_proj"), k=turned("k_proj"), v=weight(attention, "v_proj"))
    fill(block.mixer.out, o=weight(attention, "o_proj"))
    fill(block.channel.gate_up, gate=weight(mlp, "gate_proj"), up=weight(mlp, "up_proj"))
    fill(block.channel.down, down=weight(mlp, "down_proj"))


def fill_norms(ours: nn.Module, theirs: nn.Module, **names: str) -> None:
    for name, other in names.items():
        norm = ours.get_submodule(name)
        assert isinstance(norm, Norm)
        norm.weight.data.copy_(theirs.get_submodule(other).get_parameter("weight"))


def agree(lm: LM, theirs: nn.Module) -> None:
    with torch.no_grad():
        want = theirs(torch.tensor([IDS])).logits[0]
        found = lm(StepPlan.of([IDS]))
    torch.testing.assert_close(found, want, rtol=0, atol=2e-5)


def test_sandwich_norms_of_gemma2() -> None:
    options = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": 5}
    theirs = shaken(Gemma2ForCausalLM(Gemma2Config(**BASE, **options)))
    mixer = Attention.Config(
        d_model=D, num_heads=HEADS, num_kv_heads=GROUPS, head_dim=HEAD, rope=Rope(dim=HEAD), scale=5**-0.5
    )
    channel = Dense.Config(d_model=D, d_hidden=HIDDEN, activation="gelu_tanh")
    lm = LMConfig(
        family="gemma2", d_model=D, vocab_size=64, layers=(Layer(
            mixer=mixer, channel=channel, wiring=Wiring(norms="sandwich")),) * LAYERS, norm_eps=1e-6, context=64,
        tie_embeddings=True, embedding_multiplier=D**0.5, norm="rms_plus_one",
    ).build()  # fmt: skip
    fill(lm.embed, embed=theirs.get_submodule("model.embed_tokens").get_parameter("weight"))
    fill_norms(lm, theirs, norm="model.norm")
    for i, block in enumerate(lm.blocks):
        layer = theirs.get_submodule(f"model.layers.{i}")
        fill_block(block, layer)
        fill_norms(
            block,
            layer,
            mixer_norm="input_layernorm",
            mixer_post_norm="post_attention_layernorm",
            channel_norm="pre_feedforward_layernorm",
            channel_post_norm="post_feedforward_layernorm",
        )
    agree(lm, theirs)


def test_parallel_parts_of_cohere() -> None:
    config = CohereConfig(**BASE, logit_scale=0.25, layer_norm_eps=1e-3, eos_token_id=None)
    theirs, rope = shaken(CohereForCausalLM(config)), Rope(dim=HEAD, base=rope_base(config))
    mixer = Attention.Config(d_model=D, num_heads=HEADS, num_kv_heads=GROUPS, head_dim=HEAD, rope=rope)
    wiring = Wiring(parallel="one_norm")
    layer = Layer(mixer=mixer, channel=Dense.Config(d_model=D, d_hidden=HIDDEN), wiring=wiring)
    lm = LMConfig(
        family="cohere", d_model=D, vocab_size=64, layers=(layer,) * LAYERS, norm_eps=1e-3, context=64,
        tie_embeddings=True, logits_divider=4.0, norm="layer_no_bias",
    ).build()  # fmt: skip
    fill(lm.embed, embed=theirs.get_submodule("model.embed_tokens").get_parameter("weight"))
    fill_norms(lm, theirs, norm="model.norm")
    halves = torch.arange(HEAD).view(-1, 2).T.flatten()  # their rotary pairs lie side by side
    for i, block in enumerate(lm.blocks):
        fill_block(block, theirs.get_submodule(f"model.layers.{i}"), halves)
        fill_norms(block, theirs.get_submodule(f"model.layers.{i}"), mixer_norm="input_layernorm")
    agree(lm, theirs)


def test_two_mixers_of_falcon_h1() -> None:
    config = FalconH1Config(
        **BASE, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=6, mamba_n_groups=2, mamba_chunk_size=4,
        attention_in_multiplier=0.8, attention_out_multiplier=1.3, ssm_out_multiplier=0.7, mamba_rms_norm=False,
        mlp_multipliers=[1.0, 0.0],
    )  # fmt: skip
    theirs = shaken(FalconH1ForCausalLM(config)).get_submodule("model.layers.0")
    attention = Attention.Config(
        d_model=D, num_heads=HEADS, num_kv_heads=GROUPS, head_dim=HEAD, rope=Rope(dim=HEAD, base=rope_base(config))
    )
    ssm = Mamba2.Config(d_model=D, num_heads=4, head_dim=8, num_groups=2, d_state=6, norm=False)
    ours = Parallel.Config(
        d_model=D,
        branches=(
            Branch(name="attention", mixer=attention, in_scale=0.8, out_scale=1.3),
            Branch(name="ssm", mixer=ssm, out_scale=0.7),
        ),
    ).build()
    left, right = ours.branches["attention"], ours.branches["ssm"]
    assert isinstance(left, Attention) and isinstance(right, Mamba2)
    state = {name: p.detach() for name, p in theirs.named_parameters()}
    fill(left.qkv, **{s: state[f"self_attn.{s}_proj.weight"] for s in "qkv"})
    fill(left.out, o=state["self_attn.o_proj.weight"])
    right.in_proj.weight.data.copy_(state["mamba.in_proj.weight"])
    right.conv_weight.data.copy_(state["mamba.conv1d.weight"][:, 0])
    right.conv_bias.data.copy_(state["mamba.conv1d.bias"])  # type: ignore[union-attr]
    for name in ("A_log", "D", "dt_bias"):
        getattr(right, name).data.copy_(state[f"mamba.{name}"])
    right.out_proj.weight.data.copy_(state["mamba.out_proj.weight"])
    h = torch.randn(1, len(IDS), D)
    positions = torch.arange(len(IDS))[None]
    tables = FalconH1RotaryEmbedding(config)(h, positions)
    mask = torch.full((len(IDS), len(IDS)), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        want = theirs(h, attention_mask=mask, position_ids=positions, position_embeddings=tables)[0]
        found = h[0] + ours(theirs.get_submodule("input_layernorm")(h)[0], Seqs.of([len(IDS)]))
    torch.testing.assert_close(found, want[0] if want.dim() == 3 else want, rtol=0, atol=2e-5)
