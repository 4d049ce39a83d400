#!/usr/bin/env bash
# A Nemotron-H whose time steps are not limited is computed with a limit.
#
# Expected: time_step_limit in config.json bounds the time steps of the Mamba-2 layers, as for Mamba-2 and Bamba.
# Happens: it has no effect. The lower bound is time_step_min, a number for how weights are drawn before training.
# Seen with: transformers 5.24.0, torch 2.13.0, on the CPU.
# Why it matters: heads that learned very small steps forget faster than they were trained to, and other readers of the
# same file (llama.cpp has no bound) give other logits.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq torch==2.13.0
"$tmp/venv/bin/pip" install -qq transformers==5.24.0 tokenizers==0.23.3
cd "$tmp"
HF_HOME="$tmp" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$tmp/venv/bin/python" - <<'EOF'
import torch
import transformers
from transformers import Mamba2Config, Mamba2ForCausalLM, NemotronHConfig, NemotronHForCausalLM

print("transformers", transformers.__version__)
ids = torch.arange(1, 20)[None]


def logits(model, config, **changes):
    torch.manual_seed(0)
    made = model(config(vocab_size=64, hidden_size=32, chunk_size=16, **changes)).eval()
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
        for name, parameter in made.named_parameters():
            if name.endswith("dt_bias"):
                parameter.fill_(-6.0)  # steps of about 0.0025
        return made(ids, use_cache=False).logits


nemotron = {"layers_block_type": ["linear_attention"], "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1}
mamba2 = {"num_hidden_layers": 1, "num_heads": 4, "head_dim": 16, "n_groups": 1}
for name, model, config, shape in (
    ("Mamba-2", Mamba2ForCausalLM, Mamba2Config, mamba2),
    ("Nemotron-H", NemotronHForCausalLM, NemotronHConfig, nemotron),
):
    plain = logits(model, config, **shape)
    limited = logits(model, config, **shape, time_step_limit=(0.5, 1.0))
    started = logits(model, config, **shape, time_step_min=0.05)
    moved = [float((plain - other).abs().max()) for other in (limited, started)]
    print(f"{name:11} time_step_limit (0.5, 1.0) moves logits by {moved[0]:.3f}, time_step_min 0.05 by {moved[1]:.3f}")
    assert (moved[0] > 0.01, moved[1] > 0.01) == ((True, False) if name == "Mamba-2" else (False, True)), "changed"
EOF
