"""The language model of a Gemma 3 that also reads images; without them it is `gemma3`, and that is what it becomes in a
GGUF file."""

from dataclasses import replace

from stretto.models import gemma3

FAMILY = replace(
    gemma3.FAMILY,
    name="gemma3_vl",
    hf={"Gemma3ForConditionalGeneration": "gemma3"},
    gguf=(),
    announce=lambda form, config: "gemma3" if form == "gguf" else "Gemma3ForConditionalGeneration",
    inside="text_config",
    hf_skeleton=replace(
        gemma3.FAMILY.hf_skeleton,
        embed="language_model.model.embed_tokens",
        norm="language_model.model.norm",
        head="language_model.lm_head",
        block="language_model.model.layers.{}",
    ),
    ignore_under=("vision_tower.", "multi_modal_projector."),
)
