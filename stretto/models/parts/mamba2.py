"""The table of Mamba-2. GGUF files hold A itself in place of its logarithm, and other shapes of vectors."""

import math
from collections.abc import Iterator
from typing import Any

from stretto.mixers.mamba2 import Mamba2
from stretto.models.reader import Reader
from stretto.models.table import Key, Known, Part, Row, Source, Way, linear, refuse_to_write, row
from stretto.models.ways import count, divisor, fixed, flag, held, known_as, log_of_minus, minus_exp


def tensors(c: Mamba2.Config) -> Iterator[Row]:
    """The first projection is fused in both formats."""
    yield from linear("out_proj.out", Source(name="out_proj"), Source(name="ssm_out"))
    first = 0
    for s, rows in (("z", c.d_inner), ("xBC", c.d_conv), ("dt", c.num_heads)):
        held = (first, rows)
        yield from linear(f"in_proj.{s}", Source(name="in_proj", rows=held), Source(name="ssm_in", rows=held))
        first += rows
    column, groups = (c.num_heads, 1), (c.num_groups, c.d_inner // c.num_groups)
    conv = Source(name="conv1d.weight", shape=(c.d_conv, 1, c.conv_width))
    yield Row("conv_weight", conv, Source(name="ssm_conv1d.weight"))
    yield row("conv_bias", "conv1d.bias", "ssm_conv1d.bias")
    yield Row("A_log", Source(name="A_log"), Source(name="ssm_a", shape=column, load=log_of_minus, save=minus_exp))
    yield Row("D", Source(name="D"), Source(name="ssm_d", shape=column))
    yield row("dt_bias", "dt_bias", "ssm_dt.bias")
    yield Row("norm_weight", Source(name="norm.weight"), Source(name="ssm_norm.weight", shape=groups))


def _fill_expanded(read: Reader, known: Known) -> int:
    """Heads fill expand * hidden_size."""
    width = read.count("head_dim")
    if read.number("expand", 2) * known["d_model"] != known["num_heads"] * width:
        read.refuse("head_dim", width, f"{known['num_heads']} heads must fill expand * hidden_size")
    return width


def _write_head_dim(value: int, config: Mamba2.Config) -> dict[str, Any]:
    whole, rest = divmod(config.d_inner, config.d_model)
    return {"head_dim": value, "expand": config.d_inner / config.d_model if rest else whole}


def _share_inner_size(read: Reader, known: Known) -> int:
    return read.divide(read.count("ssm.inner_size"), "ssm.time_step_rank", known["num_heads"])


def _time_step_limit(read: Reader, known: Known) -> tuple[float, float]:
    """Infinity is a bare token in old files and an object in new ones."""
    value = read.get("time_step_limit", [0.0, math.inf])
    pair = [float(v["__float__"]) if isinstance(v, dict) and set(v) == {"__float__"} else v for v in value]
    if len(pair) != 2 or not all(isinstance(v, int | float) for v in pair) or not 0 <= pair[0] <= pair[1]:
        read.refuse("time_step_limit", value, "it must be two numbers, the smaller one first")
    return float(pair[0]), float(pair[1])


_NO_LIMIT = (0.0, math.inf)
_LIMIT = Way(_time_step_limit, lambda value, config: {} if value == _NO_LIMIT else {"time_step_limit": list(value)})
_HEAD_DIM = Way(_share_inner_size, lambda value, config: {"ssm.inner_size": config.d_inner})

PART = Part(
    config=Mamba2.Config,
    keys=(
        Key("num_heads", count("num_heads"), count("ssm.time_step_rank")),
        Key("head_dim", Way(_fill_expanded, _write_head_dim), _HEAD_DIM),
        Key("num_groups", divisor("n_groups", "num_heads"), count("ssm.group_count", 1)),
        Key("d_state", count("state_size"), count("ssm.state_size")),
        Key("conv_width", count("conv_kernel", 4), count("ssm.conv_kernel")),
        Key("conv_bias", flag("use_conv_bias", True), held("ssm_conv1d.bias")),
        Key("bias", flag("use_bias", False), held("ssm_in.bias")),
        Key("norm", fixed(True), fixed(True)),
        Key("norm_before_gate", fixed(False), fixed(False)),
        Key("eps", known_as("norm_eps"), known_as("norm_eps")),
        Key("time_step_limit", _LIMIT, fixed(_NO_LIMIT)),
    ),
    tensors=tensors,
    module="mixer",
)


# As hybrids with attention spell it (Bamba, Granite 4) ------------------------------------------------------------


def _divide_expanded(read: Reader, known: Known) -> int:
    d_inner = read.count("mamba_expand", 2) * known["d_model"]
    width = read.divide(d_inner, "mamba_n_heads", known["num_heads"])
    read.expect("mamba_d_head", width, "auto")
    return width


def _write_expanded(value: int, config: Mamba2.Config) -> dict[str, Any]:
    whole, rest = divmod(config.d_inner, config.d_model)
    if rest:
        refuse_to_write(f"an inner width of {config.d_inner}", "config.json")
    return {"mamba_d_head": value, "mamba_expand": whole}


HYBRID = PART.having(
    {
        "num_heads": count("mamba_n_heads"),
        "head_dim": Way(_divide_expanded, _write_expanded),
        "num_groups": divisor("mamba_n_groups", "num_heads", default=1),
        "d_state": count("mamba_d_state", 256),
        "conv_width": count("mamba_d_conv", 4),
        "conv_bias": flag("mamba_conv_bias", True),
        "bias": flag("mamba_proj_bias", False),
    },
    module="mamba",
)
