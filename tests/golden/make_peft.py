"""Write peft.json: an adapter as the package `peft` saves it, and what its model computes, in fp64.

    pip install peft && python tests/golden/make_peft.py

The numbers of the adapter are random, by the order of their names (`loras.numbers`); the model is `llama` of
tests/checkpoints.py.
"""

import base64
import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoints import IDS, Checkpoints
from loras import numbers, theirs_of
from safetensors.torch import load_file

HERE = Path(__file__).parent


def main() -> None:
    """Give the model an adapter with everything that a config can say of ranks and factors."""
    import peft  # no dependency of the tests

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source, _ = Checkpoints(root)("llama")
        config = peft.LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules="all-linear",
            rank_pattern={"v_proj": 2, "layers.1.mlp.down_proj": 6},
            alpha_pattern={"^model.layers.0.self_attn.q_proj": 3, "k_proj": 5},
            use_rslora=True,
            task_type="CAUSAL_LM",
        )
        model = peft.get_peft_model(theirs_of(source), config).eval()
        model.save_pretrained(root / "adapter")
        shapes = {name: tuple(x.shape) for name, x in load_file(root / "adapter" / "adapter_model.safetensors").items()}
        values = numbers(shapes)
        own = {name.replace(".default.", "."): p for name, p in model.named_parameters() if ".lora_" in name}
        for name, value in values.items():
            own[name].data = value.double()
        with torch.no_grad():
            logits = model(torch.tensor([IDS]), use_cache=False).logits[0]
        text = json.loads((root / "adapter" / "adapter_config.json").read_text())
    found = {
        "peft": peft.__version__,
        "config": {**text, "base_model_name_or_path": "llama", "target_modules": sorted(text["target_modules"])},
        "shapes": shapes,
        "logits": base64.b64encode(logits.numpy().tobytes()).decode(),
    }
    (HERE / "peft.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
