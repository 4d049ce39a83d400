"""Retention against the parallel form of its paper, written out in fp64."""

import torch

from stretto.core.seqs import Seqs
from stretto.mixers.retention import Retention


def rotated(x: torch.Tensor) -> torch.Tensor:
    """[T, H, K]: pairs (i, i + K/2) as complex numbers, turned by position times 10000^(-2i / K)."""
    length, _, size = x.shape
    pairs = torch.complex(x[..., : size // 2], x[..., size // 2 :])
    angles = torch.arange(length)[:, None] * 10000.0 ** (-2 * torch.arange(size // 2) / size)
    turned = pairs * torch.polar(torch.ones_like(angles), angles).to(pairs)[:, None]
    return torch.cat([turned.real, turned.imag], -1)


def test_it_is_the_parallel_form() -> None:
    config = Retention.Config(d_model=12, num_heads=3, head_k_dim=4, head_v_dim=5, eps=1e-6)
    mixer = config.build().double()
    with torch.no_grad():
        mixer.norm_weight.uniform_(0.5, 1.5)
    x, n = torch.randn(9, 12, dtype=torch.float64), 9
    q, k, v, z = (part.unflatten(1, (3, -1)) for part in mixer.in_proj.split(x @ mixer.in_proj.weight.T))
    gamma = 1 - 2.0 ** -torch.arange(5, 8, dtype=torch.float64)
    distance = torch.arange(n)[:, None] - torch.arange(n)
    decay = torch.where(distance >= 0, gamma[:, None, None] ** distance.clamp(min=0), 0.0)  # [H, T, T]
    scores = torch.einsum("thk,shk->hts", rotated(q), rotated(k)) / 4**0.5 * decay
    y = torch.einsum("hts,shv->thv", scores, v)
    y = y * (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * mixer.norm_weight
    want = (y * z * torch.sigmoid(z)).flatten(1) @ mixer.out_proj.weight.T
    torch.testing.assert_close(mixer(x, Seqs.of([n])), want, rtol=0, atol=1e-6)  # tables of angles are fp32
