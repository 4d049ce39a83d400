"""Keys of model files that change the result, with the values at which they do not.

A family reads the keys that it supports. Whatever stands here, was not read and has another value than a neutral one is
refused by name: better no answer than that of another model. Absent and null are neutral everywhere. Keys that are not
listed do not change what a model computes: names, licences, dropout, initialisation, training losses, the order in
which sums are taken (`pretraining_tp`, `chunk_size`).

The lists follow the config classes of transformers 5.24, and what ggml's loader and the `gguf` package 0.19 know.
"""

from collections.abc import Mapping
from typing import Any

_OFF = (False,)  # and 0, which equals it
_ONE = (1.0,)

HF_KEYS: Mapping[str, tuple[Any, ...]] = {
    # what is computed per token
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act"), ("silu", "swish")),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), (0,)),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts"), (0,)),
    **dict.fromkeys(("mlp_bias", "use_mlp_bias", "use_bias", "bias", "add_bias_linear", "lm_head_bias"), _OFF),
    # attention
    **dict.fromkeys(("attention_bias", "qkv_bias", "use_qkv_bias", "attention_out_bias", "attn_bias"), _OFF),
    **dict.fromkeys(("qk_norm", "use_qk_norm", "qk_layernorm", "use_qk_layernorm"), _OFF),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "logits_soft_cap", "clip_qkv"), _OFF),
    **dict.fromkeys(("alibi", "use_alibi", "is_decoder_only_alibi"), _OFF),
    **dict.fromkeys(("use_sliding_window", "sliding_window_pattern", "interleaved_sliding_window"), _OFF),
    **dict.fromkeys(("sliding_window", "attention_window_size", "attention_chunk_size"), ()),
    **dict.fromkeys(("layer_types", "layers_block_type"), ()),
    "no_rope_layers": ([],),
    "num_kv_shared_layers": (0,),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), ()),
    **dict.fromkeys(("attn_temperature_tuning", "attention_sink", "use_attention_sinks", "attn_output_gate"), _OFF),
    "query_pre_attn_scalar": (),
    "is_causal": (True,),
    **dict.fromkeys(
        ("use_bidirectional_attention", "bidirectional", "is_encoder_decoder", "add_cross_attention"), _OFF
    ),
    # positions
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct", "rope_pct", "rope_ratio"), _ONE),
    **dict.fromkeys(("rope_interleaved", "rope_local_base_freq", "global_rope_theta", "rotary_dim"), _OFF),
    "position_embedding_type": ("rope", "rotary"),
    # scales and norms
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"), _ONE),
    **dict.fromkeys(("logit_scale", "scale_emb", "lm_head_multiplier", "key_multiplier", "embedding_scale"), _ONE),
    **dict.fromkeys(("scale_depth", "dim_model_base", "mup_width_scale", "attention_in_multiplier"), ()),
    **dict.fromkeys(("normalize_embedding", "scale_embedding", "embed_scale"), _OFF),
    **dict.fromkeys(("use_parallel_residual", "parallel_residual", "parallel_attn", "post_norm"), _OFF),
    **dict.fromkeys(("rms_norm_add_unit_offset", "norm_before_gate"), _OFF),
    "rms_norm": (True,),
    # how numbers are stored, where the common key does not say so
    **dict.fromkeys(("quantization", "compression_config"), ()),
}
"""Key of config.json -> neutral values."""

GGUF_KEYS: Mapping[str, tuple[Any, ...]] = {
    # what is computed per token
    **dict.fromkeys(("expert_count", "expert_shared_count", "moe_latent_size"), (0,)),
    **dict.fromkeys(("swiglu_clamp_exp", "swiglu_clamp_shexp", "activation_sparsity_scale"), (0.0,)),
    **dict.fromkeys(("altup.num_inputs", "embedding_length_per_layer_input", "n_deepstack_layers"), (0,)),
    **dict.fromkeys(("embedding_length_out", "features_length", "token_shift_count", "full_attention_interval"), (0,)),
    **dict.fromkeys(("dense_2_feat_in", "dense_2_feat_out", "dense_3_feat_in", "dense_3_feat_out"), (0,)),
    **dict.fromkeys(("decoder_block_count", "rescale_every_n_layers", "swin_norm"), _OFF),
    "use_parallel_residual": _OFF,
    "pooling_type": (0, 1, 2, 3),  # of embeddings (convert/pooling.py); 4 is a head that ranks texts
    # attention
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping"), (0.0,)),
    **dict.fromkeys(("attention.max_alibi_bias", "attention.clamp_kqv", "use_alibi"), _OFF),
    **dict.fromkeys(("attention.layer_norm_epsilon", "attention.group_norm_groups"), (0,)),
    **dict.fromkeys(("attention.scale", "attention.sliding_window", "attention.sliding_window_pattern"), (0,)),
    **dict.fromkeys(("attention.q_lora_rank", "attention.kv_lora_rank", "attention.shared_kv_layers"), (0,)),
    **dict.fromkeys(("attention.key_length_mla", "attention.value_length_mla"), (0,)),
    **dict.fromkeys(("attention.key_length_swa", "attention.value_length_swa"), (0,)),
    **dict.fromkeys(("attention.temperature_length", "attention.temperature_scale"), (0,)),
    "attention.relative_buckets_count": (0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.causal": (True,),
    # scales and states
    **dict.fromkeys(("embedding_scale", "residual_scale", "logit_scale"), (0.0, 1.0)),
    "ssm.dt_b_c_rms": (False,),
}
"""Key of GGUF metadata without its architecture -> neutral values."""

GGUF_ROPE_KEYS: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("rope.dimension_count_swa", "rope.freq_base_swa"), (0,)),
    "rope.dimension_sections": ([0, 0, 0, 0],),
    **dict.fromkeys(("rope.scaling.alpha", "rope.scaling.yarn_log_multiplier"), (0.0,)),
    **dict.fromkeys(("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"), (1.0, -1.0)),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
}
"""The same of a rotary embedding, where a model has one."""

HF_ROPE_KEYS: Mapping[str, tuple[Any, ...]] = {
    "partial_rotary_factor": _ONE,  # others read this key, the families here ignore it: no answer is right for both
    **dict.fromkeys(("rope_ratio", "llama_4_scaling_beta", "mrope_section", "mrope_interleaved"), (0, [])),
}
"""Key of `rope_scaling` or `rope_parameters` -> neutral values."""
