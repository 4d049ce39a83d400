"""Which of torch's CPU kernels keep the bits of a row when its companions change. Prints one line per kernel and dtype.

python bench/probes/torch_bits.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float32, torch.float64)


def linear(dtype: torch.dtype) -> list[int]:
    """Row counts below 65 at which the first rows differ from those of a product of 16 rows (576 -> 960)."""
    weight, x = torch.randn(960, 576).to(dtype), torch.randn(64, 576).to(dtype)
    want = F.linear(x[:16], weight)
    return [n for n in range(1, 65) if not torch.equal(F.linear(x[:n], weight)[:16], want[: min(n, 16)])]


def fused_attention(dtype: torch.dtype) -> list[int]:
    """How many masked keys more change the result of three query rows over 100 keys."""
    q, k, v = (torch.randn(1, 3, n, 64).to(dtype) for n in (3, 180, 180))
    run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    want = run(q, k[:, :, :100], v[:, :, :100])[0]
    changed = []
    for extra in (1, 4, 16, 28, 64, 80):
        mask = torch.zeros(1, 1, 3, 100 + extra, dtype=dtype)
        mask[..., 100:] = -torch.inf
        if not torch.equal(run(q, k[:, :, : 100 + extra], v[:, :, : 100 + extra], attn_mask=mask)[0], want):
            changed.append(extra)
    return changed


def positions_of(function: object, dtype: torch.dtype) -> int:
    """At how many of 64 offsets an elementwise function changes the bits of a row of 37 values."""
    row = (4 * torch.rand(37)).to(dtype)
    want: Tensor = function(row)  # type: ignore[operator]
    found = [function(torch.cat([torch.zeros(n, dtype=dtype), row]))[n:] for n in range(64)]  # type: ignore[operator]
    return sum(not torch.equal(values, want) for values in found)


def main() -> None:
    """Print everything."""
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    for dtype in DTYPES:
        print(f"{dtype}: linear differs from 16 rows at row counts {linear(dtype)}")
        print(f"{dtype}: fused attention over 100 keys changes with {fused_attention(dtype)} masked keys more")
        for function in (F.silu, torch.sigmoid, F.softplus, torch.exp, torch.log1p):
            print(f"{dtype}: {function.__name__} changes a row at {positions_of(function, dtype)} of 64 offsets")


if __name__ == "__main__":
    main()
