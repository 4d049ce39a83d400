"""The attention layer with sinks, soft-capping and windows beside the layers of transformers that have them."""

import torch
from torch import Tensor, nn
from transformers import Gemma2Config, GptOssConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2RotaryEmbedding
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, GptOssRotaryEmbedding

from stretto.core.seqs import Seqs
from stretto.core.state import TensorCache
from stretto.kernels.rope import Rope
from stretto.mixers.attention import Attention

ROWS, WINDOW = 21, 6
COMMON = {
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": WINDOW,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "vocab_size": 8,
    "attention_bias": False,
}


def mask(window: int | None) -> Tensor:
    ago = torch.arange(ROWS)[:, None] - torch.arange(ROWS)
    seen = (ago >= 0) & (ago < (window or ROWS))
    return torch.zeros(ROWS, ROWS, dtype=torch.float64).masked_fill(~seen, -torch.inf)[None, None]


def agree(theirs: nn.Module, tables: nn.Module, window: int | None, config: Attention.Config) -> None:
    """Random weights for both, and 21 rows: whole, and token by token."""
    theirs, ours = theirs.double().eval(), config.build().double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
        state = dict(theirs.named_parameters())
        ours.qkv.weight.copy_(torch.cat([state[f"{name}_proj.weight"] for name in "qkv"]))
        ours.out.weight.copy_(state["o_proj.weight"])
        if "sinks" in state:
            ours.sinks.copy_(state["sinks"])
        x = torch.randn(ROWS, 24, dtype=torch.float64)
        turns = tables.double()(x[None], torch.arange(ROWS)[None])
        want = theirs(x[None], position_embeddings=turns, attention_mask=mask(window))[0][0]
        torch.testing.assert_close(ours(x, Seqs.of([ROWS])), want, rtol=0, atol=1e-6)  # rotary tables are fp32
        cache = TensorCache(ours.state_specs, 1, torch.float64)
        for t in range(ROWS):
            y = ours(x[t : t + 1], Seqs.of([1], [t], num_step=1), cache)
            torch.testing.assert_close(y[0], want[t], rtol=0, atol=1e-6)


def test_gpt_oss_has_sinks_in_both_kinds_of_layers() -> None:
    config = GptOssConfig(**COMMON, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    config._attn_implementation = "eager"
    for index, window in enumerate((WINDOW, None)):
        ours = Attention.Config(
            d_model=24, num_heads=4, num_kv_heads=2, head_dim=8, rope=Rope(dim=8), window=window, sinks=True
        )
        agree(GptOssAttention(config, index), GptOssRotaryEmbedding(config), window, ours)


def test_gemma_2_soft_caps_scores() -> None:
    config = Gemma2Config(**COMMON, query_pre_attn_scalar=11, attn_logit_softcapping=1.5)
    config._attn_implementation = "eager"
    for index, window in enumerate((WINDOW, None)):
        ours = Attention.Config(
            d_model=24, num_heads=4, num_kv_heads=2, head_dim=8, rope=Rope(dim=8), window=window, softcap=1.5,
            scale=11**-0.5,
        )  # fmt: skip
        agree(Gemma2Attention(config, index), Gemma2RotaryEmbedding(config), window, ours)
