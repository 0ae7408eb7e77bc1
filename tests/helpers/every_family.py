"""Tiny models of all text families of the installed transformers, made from their configs' own defaults with small sizes."""

from __future__ import annotations

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MAPPINGS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}
_HIDDEN = "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size"
_INNER = "intermediate_size intermediate_size_mlp ffn_dim d_ff n_inner ffn_hidden_size encoder_ffn_dim decoder_ffn_dim hidden_dim"
_TWO_LAYERS = "num_hidden_layers n_layer n_layers num_layers num_blocks"
_ONE_LAYER = "encoder_layers decoder_layers num_decoder_layers num_encoder_layers num_encoder_sparse_layers"
_HEADS = (
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_decoder_attention_heads "
    "num_encoder_attention_heads"
)
_EXPERTS = "num_experts num_local_experts n_routed_experts moe_num_experts"
_DROPOUT = (
    "hidden_dropout_prob attention_probs_dropout_prob dropout attention_dropout resid_pdrop embd_pdrop dropout_rate "
    "activation_dropout classifier_dropout"
)
SIZES = {
    "vocab_size": 97, "vocab_size_per_layer_input": 97, "src_vocab_size": 97, "tgt_vocab_size": 97,
    **dict.fromkeys(_HIDDEN.split(), 32), **dict.fromkeys(_INNER.split(), 48), **dict.fromkeys(_TWO_LAYERS.split(), 2),
    **dict.fromkeys(_ONE_LAYER.split(), 1), **dict.fromkeys(_HEADS.split(), 4), **dict.fromkeys(_EXPERTS.split(), 4),
    **dict.fromkeys(_DROPOUT.split(), 0.0), "num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 8, "d_kv": 8,
    "kv_channels": 8, "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "expert_ffn_hidden_size": 24,
    "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "zero_expert_num": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "n_shared_experts": 1, "state_size": 8, "mamba_d_state": 8, "ssm_state_size": 8, "mamba_num_heads": 8,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_head_dim": 8, "mamba_n_groups": 1, "n_groups": 1, "n_mamba_heads": 2,
    "mamba_d_ssm": 64, "mamba_dt_rank": 4, "time_step_rank": 4, "index_head_dim": 16, "index_n_heads": 2, "index_topk": 4,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "hidden_size_per_layer_input": 8, "laurel_rank": 4, "rotary_dim": 4, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2, "use_cache": False,
}  # fmt: skip
PECULIAR = {
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 0, "layer_types": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "zamba": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "layoutlmv3": {"visual_embed": False, "coordinate_size": 5, "shape_size": 6},
    "esm": {"mask_token_id": 3},
    "mpt": {"attn_pdrop": 0},
    "xmod": {"default_language": "en_XX"},
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 2},
    "zaya": {"num_experts_per_tok": 1},
    "esmc": {"num_key_value_heads": 4},
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gpt_oss": {"sliding_window": 6},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_buckets": 2},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32},
}
"""Settings of single families, because their sizes depend on each other."""


def tiny_model(kind: str, family: str, *, seed: int = 0):
    """A tiny model of a family; raises whatever its config or its class raises on sizes that do not fit together."""
    config = tiny_config(CONFIG_MAPPING[family], PECULIAR.get(family, {}))
    if kind == "classification":
        config.num_labels = 3
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 2
    names = MAPPINGS[kind][family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, names if isinstance(names, str) else names[0])(config).eval()


def tiny_config(
    kind: type[transformers.PreTrainedConfig], peculiar: dict | None = None
) -> transformers.PreTrainedConfig:
    """A config of a class with small sizes, also for the configs in it."""
    default = kind()
    known = vars(default).keys() - getattr(kind, "attribute_map", {}).keys()
    known = {name for name in known if not isinstance(getattr(kind, name, None), property)}
    fields = {name: value for name, value in SIZES.items() if name in known}
    if {"qk_rope_head_dim", "kv_lora_rank"} <= known:  # multi-head latent attention has one head size for keys
        fields.pop("head_dim", None)
        fields["num_key_value_heads"] = 4
    for name in {"layer_types", "mlp_layer_types"} & known:
        types = getattr(default, name)
        fields[name] = [types[0], types[-1]] if isinstance(types, list) and types else types
    for name, value in vars(default).items():
        if isinstance(value, transformers.PreTrainedConfig):
            fields[name] = tiny_config(type(value)).to_dict()
    return kind(**{**fields, **(peculiar or {})})


def text_inputs(model, *, rows: int = 2, length: int = 9) -> dict[str, torch.Tensor]:
    """A batch of random tokens that end with the end token; classes or the tokens themselves are the labels."""
    tokens = torch.randint(4, 90, (rows, length), generator=torch.Generator().manual_seed(0))
    tokens[:, -1] = 2
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    labels = torch.arange(rows) % 3 if classifies else tokens.clone()
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
