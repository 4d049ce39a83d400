"""The table of Mamba. GGUF files hold A itself in place of its logarithm."""

from collections.abc import Iterator
from typing import Any

from stretto.mixers.mamba import Mamba
from stretto.models.reader import Reader
from stretto.models.table import Key, Known, Part, Row, Source, Way, linear, row
from stretto.models.ways import count, flag, held, log_of_minus, minus_exp


def tensors(c: Mamba.Config) -> Iterator[Row]:
    """Projections of one input are one matrix in both formats."""
    first = 0
    for s in ("x", "z"):
        rows = first, c.d_inner
        yield from linear(f"in_proj.{s}", Source(name="in_proj", rows=rows), Source(name="ssm_in", rows=rows))
        first += c.d_inner
    first = 0
    for s, width in (("delta", c.d_step), ("B", c.d_state), ("C", c.d_state)):
        rows = first, width
        yield Row(f"x_proj.{s}", Source(name="x_proj.weight", rows=rows), Source(name="ssm_x.weight", rows=rows))
        first += width
    yield row("dt_proj.dt", "dt_proj.weight", "ssm_dt.weight")
    yield row("dt_bias", "dt_proj.bias", "ssm_dt.bias")
    conv = Source(name="conv1d.weight", shape=(c.d_inner, 1, c.conv_width))
    yield Row("conv_weight", conv, Source(name="ssm_conv1d.weight"))
    yield row("conv_bias", "conv1d.bias", "ssm_conv1d.bias")
    yield Row("A_log", Source(name="A_log"), Source(name="ssm_a", load=log_of_minus, save=minus_exp))
    yield row("D", "D", "ssm_d")
    yield from linear("out_proj.out", Source(name="out_proj"), Source(name="ssm_out"))


def _rank(read: Reader, known: Known) -> int:
    is_auto = read.get("time_step_rank", "auto") == "auto"
    return -(-int(known["d_model"]) // 16) if is_auto else read.count("time_step_rank")


def _expand(read: Reader, known: Known) -> int:
    times = read.count("expand", 2)
    read.expect("intermediate_size", times * known["d_model"])
    return times


def _share_inner_size(read: Reader, known: Known) -> int:
    width = read.count("ssm.inner_size")
    if width % known["d_model"]:
        read.refuse("ssm.inner_size", width, f"it must be a multiple of {known['d_model']}")
    return width // int(known["d_model"])


_RANK = Way(_rank, lambda value, config: {"time_step_rank": config.d_step})
_GGUF_RANK = Way(
    lambda read, known: read.count("ssm.time_step_rank"), lambda value, config: {"ssm.time_step_rank": config.d_step}
)
_EXPAND: Any = Way(_share_inner_size, lambda value, config: {"ssm.inner_size": config.d_inner})


def is_falcon(read: Reader) -> bool:
    """Whether a config.json is that of a Falcon Mamba."""
    announced = (read.get("architectures", None) or [read.get("model_type", None)])[0]
    return announced in ("FalconMambaForCausalLM", "falcon_mamba")


def _falcon_eps(read: Reader, known: Known) -> float | None:
    return read.number("mixer_rms_eps", 1e-6) if is_falcon(read) else None


def _write_falcon_eps(value: float | None, config: Mamba.Config) -> dict[str, Any]:
    return {} if value is None else {"mixer_rms_eps": value}


def _gguf_eps(read: Reader, known: Known) -> float | None:
    return float(known["norm_eps"]) if read.flag("ssm.dt_b_c_rms", False) else None


def _write_gguf_eps(value: float | None, config: Mamba.Config) -> dict[str, Any]:
    return {} if value is None else {"ssm.dt_b_c_rms": True}


PART = Part(
    config=Mamba.Config,
    keys=(
        Key("expand", Way(_expand, lambda value, config: {"expand": value}), _EXPAND),
        Key("d_state", count("state_size", 16), count("ssm.state_size")),
        Key("dt_rank", _RANK, _GGUF_RANK),
        Key("conv_width", count("conv_kernel", 4), count("ssm.conv_kernel")),
        Key("conv_bias", flag("use_conv_bias", True), held("ssm_conv1d.bias")),
        Key("bias", flag("use_bias", False), held("ssm_in.bias")),
        Key("inner_norm", Way(_falcon_eps, _write_falcon_eps), Way(_gguf_eps, _write_gguf_eps)),
    ),
    tensors=tensors,
    module="mixer",
)
