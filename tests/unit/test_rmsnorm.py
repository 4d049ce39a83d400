"""RMS normalisation against its formula in fp64, the reference and transformers' gated norms."""

from typing import Any

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from stretto.kernels.rmsnorm import rms_norm

EPS = 1e-3
GATING = [(False, False), (True, False), (True, True)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("gated", "norm_first"), GATING, ids=["plain", "gate first", "norm first"])
@pytest.mark.parametrize("weighted", [False, True])
def test_torch_equals_the_reference(
    dtype: torch.dtype, groups: int, gated: bool, norm_first: bool, weighted: bool
) -> None:
    x = torch.randn(5, 4, 12).to(dtype)
    args: dict[str, Any] = {
        "weight": torch.randn(12).to(dtype) if weighted else None,
        "gate": torch.randn(5, 4, 12).to(dtype) if gated else None,
    }
    found = rms_norm(x, **args, eps=EPS, groups=groups, norm_before_gate=norm_first, impl="torch")
    wanted = rms_norm(x, **args, eps=EPS, groups=groups, norm_before_gate=norm_first, impl="reference")
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=2 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_the_value_is_rounded_before_the_weight(impl: Any) -> None:
    x, weight = torch.randn(50, 64).bfloat16(), torch.randn(64).bfloat16()
    normal = (x.double() / (x.double().square().mean(-1, keepdim=True) + EPS).sqrt()).bfloat16()
    found = rms_norm(x, weight, eps=EPS, impl=impl)
    assert (found != normal * weight).float().mean() < 1e-3  # a tie of the first rounding may fall either way


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_a_wider_weight_multiplies_what_is_not_rounded(impl: Any) -> None:
    x, norm = torch.randn(50, 64).bfloat16(), Gemma2RMSNorm(64, eps=EPS).bfloat16()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(64))
        found = rms_norm(x, 1.0 + norm.weight.float(), eps=EPS, impl=impl)
        assert (found != norm(x)).float().mean() < 1e-3  # ties may fall either way
        assert (rms_norm(x, (1.0 + norm.weight.float()).bfloat16(), eps=EPS, impl=impl) != norm(x)).float().mean() > 0.1


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_gated_forms_equal_transformers(impl: Any) -> None:
    x, gate, weight = torch.randn(3, 9, 12), torch.randn(3, 9, 12), torch.randn(12)
    mamba = MambaRMSNormGated(12, group_size=4, eps=EPS)
    qwen = Qwen3NextRMSNormGated(12, eps=EPS)
    with torch.no_grad():
        mamba.weight.copy_(weight)
        qwen.weight.copy_(weight)
        found = rms_norm(x, weight, eps=EPS, groups=3, gate=gate, impl=impl)
        torch.testing.assert_close(found, mamba(x, gate), rtol=0, atol=2e-6)
        found = rms_norm(x, weight, eps=EPS, gate=gate, norm_before_gate=True, impl=impl)
        torch.testing.assert_close(found, qwen(x, gate), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("gated", "norm_first"), GATING, ids=["plain", "gate first", "norm first"])
def test_a_row_has_the_same_bits_alone(dtype: torch.dtype, gated: bool, norm_first: bool) -> None:
    x, weight = torch.randn(23, 30).to(dtype), torch.randn(30).to(dtype)
    gate = torch.randn(23, 30).to(dtype) if gated else None
    together = rms_norm(x, weight, eps=EPS, groups=3, gate=gate, norm_before_gate=norm_first)
    for t in range(23):
        row = slice(t, t + 1)
        own_gate = None if gate is None else gate[row].clone()
        alone = rms_norm(x[row].clone(), weight, eps=EPS, groups=3, gate=own_gate, norm_before_gate=norm_first)
        assert torch.equal(alone, together[row])


@pytest.mark.parametrize(("gated", "norm_first"), GATING, ids=["plain", "gate first", "norm first"])
def test_gradients_equal_finite_differences(gated: bool, norm_first: bool) -> None:
    x, gate = (torch.randn(3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def forward(x: torch.Tensor, weight: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return rms_norm(
            x, weight, eps=EPS, groups=2, gate=gate if gated else None, norm_before_gate=norm_first, impl="torch"
        )

    assert torch.autograd.gradcheck(forward, (x, weight, gate))
