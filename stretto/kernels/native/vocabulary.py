"""Torch operations that are recorded as native ones: what a mixer's own `forward` may compute between kernels.

    y = f(x)          neg abs exp log log1p sqrt rsqrt reciprocal sigmoid tanh softplus elu silu gelu relu, x^2
    y = f(x, z)       add sub mul div maximum minimum; one operand may be a number or a constant, and broadcast
    y = cat(parts)    along the last axis, with constants among the parts; padding there
    y = x W           a constant matrix for each head, [T,H,K] by [H,K,V], or one for all: matmul, bmm, einsum
    y = |x|           Euclidean, along the last axis (so `F.normalize` is here); layer norm and RMS norm there

Rows are fp32 and contiguous within a row. What does not fit is not recorded here, and becomes a host operation.

A tape is recorded under inference_mode, where torch 2.13 hands over composite operations whole (`reshape`, `to`,
`square`) that no_grad takes apart: their names stand in the table beside those of their parts.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from stretto.kernels.layernorm import layer_norm
from stretto.kernels.native.guard import NotRecordable, Recorder, require
from stretto.kernels.rmsnorm import rms_norm

aten = torch.ops.aten
Handler = Callable[..., Tensor]


def _unary(name: str) -> Handler:
    def emit(tape: Recorder, x: Tensor) -> Tensor:
        return unary(tape, name, x)

    return emit


def unary(tape: Recorder, name: str, x: Tensor) -> Tensor:
    """Record f(x), a new buffer of the shape of x."""
    _check(tape, x)
    y, code = tape.like(x, *x.shape[1:]), tape.library.code("Unary", name)
    tape.emit("unary", rows=tape.rows(x), width=prod(x.shape[1:]), op=code, x=x, y=y)
    return y


def _binary(name: str) -> Handler:
    def emit(tape: Recorder, x: Tensor | float, z: Tensor | float, *, alpha: float = 1) -> Tensor:
        require(alpha == 1, "scales what it adds")
        return binary(tape, name, x, z)

    return emit


def binary(tape: Recorder, name: str, x: Tensor | float, z: Tensor | float) -> Tensor:
    """Record f(x, z): at least one is a buffer, the other a buffer, a constant or a number."""
    rows = next(t for t in (x, z) if isinstance(t, Tensor) and tape.holds(t))
    shape = torch.broadcast_shapes(*(t.shape for t in (x, z) if isinstance(t, Tensor)))
    require(shape[0] == rows.shape[0], "combines rows with what has more")
    y = tape.like(rows, *shape[1:])
    (x, x_stride, x_every), (z, z_stride, z_every) = (_operand(tape, t, shape) for t in (x, z))
    require(x_every == 1 or z_every == 1 or x_every == z_every, "broadcasts two operands in different ways")
    tape.emit(
        "binary",
        rows=tape.rows(rows),
        width=prod(shape[1:]),
        op=tape.library.code("Binary", name),
        x=x,
        x_stride=x_stride,
        z=z,
        z_stride=z_stride,
        x_every=x_every,
        z_every=z_every,
        y=y,
    )
    return y


def _operand(tape: Recorder, t: Tensor | float, shape: torch.Size) -> tuple[Tensor, int, int]:
    """(values, distance of rows, how many elements of a row share a value)."""
    width = prod(shape[1:])
    if not isinstance(t, Tensor):
        return torch.full((1,), float(t)), 0, width
    if tape.holds(t):
        t = _unexpanded(t)
        _check(tape, t)
        return t, t.stride(0), _every(t.shape[1:], shape[1:])
    require(t.dtype == torch.float32, "combines rows with numbers that are not fp32")
    if t.dim() == len(shape):
        require(t.shape[0] == 1 or t.stride(0) == 0, "combines rows with a constant for each row")
        t = t[0]
    own = torch.Size([1] * (len(shape) - 1 - t.dim()) + list(t.shape))
    if own == shape[1:] or prod(own) == 1:
        return t.reshape(-1).contiguous(), 0, 1 if own == shape[1:] else width
    return t.expand(shape[1:]).reshape(-1).contiguous(), 0, 1


def _every(own: Sequence[int], wanted: Sequence[int]) -> int:
    """How many neighbouring elements read one value: trailing dimensions of size 1 are broadcast."""
    own, every = list(own), 1
    require(len(own) == len(wanted), "combines rows of different ranks")
    for mine, theirs in zip(reversed(own), reversed(wanted), strict=True):
        if mine == theirs:
            break
        require(mine == 1, "broadcasts rows along other axes than the last")
        every *= theirs
    require(prod(own) * every == prod(wanted), "broadcasts rows along other axes than the last")
    return every


def _unexpanded(x: Tensor) -> Tensor:
    """Size 1 where a view repeats one number."""
    for axis in range(1, x.dim()):
        if x.stride(axis) == 0:
            x = x.narrow(axis, 0, 1)
    return x


def _check(tape: Recorder, x: Tensor) -> None:
    require(tape.holds(x), "computes with what are no rows of the step")
    require(x.dtype == torch.float32 and x[0].is_contiguous(), "computes with rows that are not contiguous fp32")


def _cat(tape: Recorder, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    first = next(part for part in parts if tape.holds(part))
    require(dim % first.dim() == first.dim() - 1 > 0, "concatenates rows, or along an axis that is not the last")
    require(first.dim() == 2, "concatenates heads")
    y, at = tape.like(first, sum(part.shape[-1] for part in parts)), 0
    for part in parts:
        target = y[:, at : at + part.shape[-1]]
        if tape.holds(part):
            _check(tape, part)
            _copy(tape, part, part.stride(0), target)
        else:
            require(part.dtype == torch.float32 and part.stride(0) == 0, "concatenates with a constant for each row")
            _copy(tape, part[0].contiguous(), 0, target)
        at += part.shape[-1]
    return y


def _pad(tape: Recorder, x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    require(mode == "constant", "pads with what is there already")
    require(len(pad) == 2 and x.dim() == 2 and min(pad) >= 0, "pads along an axis that is not the last")
    before, after = (torch.full((1, n), float(value or 0.0)).expand(len(x), n) for n in pad)
    return _cat(tape, [part for part in (before, x, after) if part.shape[1]], -1)


def _copy(tape: Recorder, source: Tensor, stride: int, target: Tensor) -> None:
    code = tape.library.code("Unary", "identity")
    rows = tape.rows(target)
    tape.emit("unary", rows=rows, width=target.shape[1], op=code, x=source, x_stride=stride, y=target)


def _softplus(tape: Recorder, x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    require(beta == 1 and threshold >= 15, "computes a softplus with a slope of its own")
    return unary(tape, "softplus", x)


def _elu(tape: Recorder, x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    require(alpha == scale == input_scale == 1, "computes an elu with scales of its own")
    return unary(tape, "elu", x)


def _gelu(tape: Recorder, x: Tensor, *, approximate: str = "none") -> Tensor:
    return unary(tape, "gelu_tanh" if approximate == "tanh" else "gelu", x)


def _clamp(tape: Recorder, x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    if min is not None:
        x = binary(tape, "maximum", x, min)
    return x if max is None else binary(tape, "minimum", x, max)


def _power(tape: Recorder, x: Tensor, exponent: float) -> Tensor:
    names = {1: "identity", 2: "square", -1: "reciprocal", 0.5: "sqrt", -0.5: "rsqrt"}
    require(exponent in names, f"raises rows to the power {exponent}")
    return unary(tape, names[exponent], x)


def _product(tape: Recorder, x: Tensor, weight: Tensor) -> Tensor:
    """[T,K] or [T,H,K] by a constant [K,V] or [H,K,V]: [T,V] or [T,H,V]."""
    require(tape.holds(x) and not tape.holds(weight), "multiplies rows by rows")
    require(x.dtype == weight.dtype == torch.float32 and x.stride(-1) == 1, "multiplies what are no fp32 rows")
    require(x.dim() in (2, 3) and weight.dim() in (2, x.dim()), "multiplies rows of other axes than heads")
    fits = weight.shape[-2] == x.shape[-1] and (weight.dim() == 2 or len(weight) == x.shape[1])
    require(fits, f"multiplies rows {list(x.shape[1:])} by {list(weight.shape)}")
    y, weight = tape.like(x, *x.shape[1:-1], weight.shape[-1]), weight.contiguous()
    require(len(x) == len(y), "multiplies along rows")
    tape.emit(
        "head_product",
        rows=tape.rows(x),
        heads=x.shape[1] if x.dim() == 3 else 1,
        depth=x.shape[-1],
        width=weight.shape[-1],
        x=x,
        x_head_stride=x.stride(1) if x.dim() == 3 else 0,
        weight=weight,
        weight_head_stride=weight.stride(0) if weight.dim() == 3 else 0,
        y=y,
    )
    return y


def _matmul(tape: Recorder, x: Tensor, weight: Tensor) -> Tensor:
    """[T,K] or [T,H,K] by [K,V]; [H,T,K] (a transposed view) or [T,H,1,K] by [H,K,V]."""
    if weight.dim() == 3 and x.dim() == 3:
        require(x.stride(0) <= x.stride(1), "multiplies along rows")
        return _product(tape, x.transpose(0, 1), weight).transpose(0, 1)
    if weight.dim() == 3 and x.dim() == 4 and x.shape[2] == 1:
        return _product(tape, x.squeeze(2), weight).unsqueeze(2)
    return _product(tape, x, weight)


def _einsum(tape: Recorder, equation: str, tensors: Sequence[Tensor], path: Sequence[int] | None = None) -> Tensor:
    """`thk,hkv->thv` and its like: the axes of the constant in any order."""
    terms, _, out = equation.replace(" ", "").partition("->")
    require(terms.count(",") == 1 and path is None, f"computes einsum {equation}")
    (x, left), (weight, right) = sorted(zip(tensors, terms.split(","), strict=True), key=lambda t: not tape.holds(t[0]))
    deep, wide, heads = left[-1:], "".join(c for c in right if c not in left), left[1:-1]
    is_product = out == left[:-1] + wide and len(wide) == 1 and deep in right
    require(
        is_product and sorted(right) in (sorted(heads + deep + wide), [*sorted(deep + wide)]), f"computes {equation}"
    )
    return _product(tape, x, weight.permute([right.index(c) for c in (*heads, deep, wide) if c in right]))


def _length(
    tape: Recorder, x: Tensor, ord: float = 2, dim: Sequence[int] | None = None, keepdim: bool = False
) -> Tensor:
    """|x| of every row [T,K], or of every head [T,H,K]."""
    is_last = dim is not None and [axis % x.dim() for axis in dim] == [x.dim() - 1]
    require(ord == 2 and is_last and x.dim() in (2, 3), "takes another norm than the length of rows or heads")
    require(tape.holds(x) and x.dtype == torch.float32 and x.stride(-1) == 1, "measures what are no fp32 rows")
    heads, head_stride = (x.shape[1], x.stride(1)) if x.dim() == 3 else (1, 0)
    y, width = tape.like(x, heads), x.shape[-1]
    tape.emit("head_length", rows=tape.rows(x), heads=heads, width=width, x=x, x_head_stride=head_stride, y=y)
    y = y if x.dim() == 3 else y[:, 0]
    return y.unsqueeze(-1) if keepdim else y


def _layer_norm(
    tape: Recorder,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    require(len(shape) == 1, "normalises several axes at once")
    assert shape[0] == x.shape[-1]
    return layer_norm(x, weight, bias, eps=eps, impl="native")


def _rms_norm(
    tape: Recorder, x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    require(len(shape) == 1, "normalises several axes at once")
    assert shape[0] == x.shape[-1]
    return rms_norm(x, weight, eps=torch.finfo(x.dtype).eps if eps is None else eps, impl="native")


def _contiguous(tape: Recorder, x: Tensor, **_: Any) -> Tensor:
    """A copy of rows whose heads lie apart."""
    require(x.dtype == torch.float32 and x.dim() >= 2 and x.stride(-1) == 1, "copies rows in another order")
    y = tape.like(x, *x.shape[1:])
    if x.dim() == 2:
        _copy(tape, x, x.stride(0), y)
        return y
    require(x.dim() == 3, "copies rows of many axes")
    for h in range(x.shape[1]):
        _copy(tape, x[:, h], x.stride(0), y[:, h])
    return y


def _to_dtype(tape: Recorder, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    raise NotRecordable("changes the type of rows")


def _copied_first(view: Any) -> Handler:
    def emit(tape: Recorder, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return view(_contiguous(tape, x), *args, **kwargs)  # type: ignore[no-any-return]

    return emit


VOCABULARY: Mapping[Any, Handler] = {
    **{getattr(aten, name).default: _unary(name) for name in ("neg", "abs", "square", "sqrt", "rsqrt", "reciprocal")},
    **{
        getattr(aten, name).default: _unary(name) for name in ("exp", "log", "log1p", "sigmoid", "tanh", "silu", "relu")
    },
    **{getattr(aten, name).Tensor: _binary(name) for name in ("add", "sub", "mul", "div")},
    **{getattr(aten, name).Scalar: _binary(name) for name in ("add", "sub", "mul", "div")},
    **{getattr(aten, name).default: _binary(name) for name in ("maximum", "minimum")},
    aten.rsub.Scalar: lambda tape, x, z, alpha=1: _binary("sub")(tape, z, x, alpha=alpha),
    aten.softplus.default: _softplus,
    aten.elu.default: _elu,
    aten.gelu.default: _gelu,
    aten.pow.Tensor_Scalar: _power,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _binary("maximum"),
    aten.clamp_max.default: _binary("minimum"),
    **dict.fromkeys((aten.matmul.default, aten.bmm.default, aten.mm.default), _matmul),
    aten.einsum.default: _einsum,
    aten.linalg_vector_norm.default: _length,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.cat.default: _cat,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: lambda tape, x, pad, value=0.0: _pad(tape, x, pad, value=value),
    aten.clone.default: _contiguous,
    aten._unsafe_view.default: lambda tape, x, size: x.view(size),
    **dict.fromkeys((aten._to_copy.default, aten.to.dtype, aten.to.device), _to_dtype),
    **{view: _copied_first(view) for view in (aten.reshape.default, aten.flatten.using_ints, aten.contiguous.default)},
}
"""ATen operation -> what records it."""


def record(tape: Recorder, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The result of `function` as a buffer of the tape. Raises NotRecordable for what is not in the vocabulary."""
    handler = VOCABULARY.get(function)
    if handler is None:
        raise NotRecordable(f"computes {function.__name__}")
    try:
        return handler(tape, *args, **kwargs)
    except TypeError as problem:  # an argument that no handler has
        raise NotRecordable(f"computes {function.__name__} in an unusual form") from problem
