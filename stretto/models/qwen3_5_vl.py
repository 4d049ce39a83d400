"""The language model of a Qwen3.5 that also reads images; without them it is `qwen3_5`, and that is what it becomes in
a GGUF file."""

from dataclasses import replace

from stretto.models import qwen3_5

FAMILY = replace(
    qwen3_5.FAMILY,
    name="qwen3_5_vl",
    hf={"Qwen3_5ForConditionalGeneration": "qwen3_5"},
    gguf=(),
    announce=lambda form, config: "qwen35" if form == "gguf" else "Qwen3_5ForConditionalGeneration",
    inside="text_config",
    hf_skeleton=replace(
        qwen3_5.FAMILY.hf_skeleton,
        embed="model.language_model.embed_tokens",
        norm="model.language_model.norm",
        block="model.language_model.layers.{}",
    ),
    ignore_under=(qwen3_5.MTP, "model.visual."),
)
