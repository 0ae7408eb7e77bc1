"""Tiny models with random weights that read images and text."""

from __future__ import annotations

import torch
import transformers as hf

from tiny import _seeded

_TEXT = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256,
}  # fmt: skip
_ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
_IDS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 24,
    "patch_size": 14,
}


def gemma3(kind: str = "Gemma3ForConditionalGeneration", **settings):
    vision = {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    config = hf.Gemma3Config(
        text_config={**_TEXT, "head_dim": 8}, vision_config=vision, mm_tokens_per_image=4, image_token_index=90,
        boi_token_index=91, eoi_token_index=92, **settings,
    )  # fmt: skip
    return _seeded(getattr(hf, kind), config, 0)


def gemma4():
    text = {
        **_TEXT, "head_dim": 8, "global_head_dim": 8, "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4,
    }  # fmt: skip
    config = hf.Gemma4Config(
        text_config=text, vision_config=vision, image_token_id=90, boi_token_id=91, eoi_token_id=92
    )
    return _seeded(hf.Gemma4ForConditionalGeneration, config, 0)


def gemma3n():
    """Make a Gemma 3n for text and sound; its vision tower needs the library timm."""
    text = {
        **_TEXT, "head_dim": 8, "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8, "altup_num_inputs": 2,
        "num_kv_shared_layers": 0, "laurel_rank": 4, "layer_types": ["full_attention"] * 2, "intermediate_size": [48, 48],
        "activation_sparsity_pattern": [0.0, 0.0],
    }  # fmt: skip
    torch.manual_seed(0)
    return hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**text)).eval()


def qwen2_vl():
    vision = {
        "depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "in_channels": 3, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    config = hf.Qwen2VLConfig(text_config={**_TEXT, **_ROPE}, vision_config=vision, **_IDS)
    return _seeded(hf.Qwen2VLForConditionalGeneration, config, 0)


def qwen2_5_vl():
    vision = {**_VISION, "spatial_merge_size": 2, "fullatt_block_indexes": [0], "window_size": 28}
    config = hf.Qwen2_5_VLConfig(text_config={**_TEXT, **_ROPE}, vision_config=vision, **_IDS)
    return _seeded(hf.Qwen2_5_VLForConditionalGeneration, config, 0)


def qwen3_vl():
    vision = {**_VISION, "spatial_merge_size": 2, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = hf.Qwen3VLConfig(text_config={**_TEXT, "head_dim": 8, **_ROPE}, vision_config=vision, **_IDS)
    return _seeded(hf.Qwen3VLForConditionalGeneration, config, 0)


def llava():
    vision = {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
        "patch_size": 14, "projection_dim": 24,
    }  # fmt: skip
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**_TEXT), vision_config=hf.CLIPVisionConfig(**vision), image_token_index=90
    )
    return _seeded(hf.LlavaForConditionalGeneration, config, 0)


MULTIMODAL = {
    "Gemma 3": gemma3,
    "Gemma 4": gemma4,
    "Qwen2-VL": qwen2_vl,
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3-VL": qwen3_vl,
    "LLaVA": llava,
}
"""By the name that people know; a tiny one is made on each call."""
