"""A tiny model with random weights of every family the paper uses, each from its real transformers config."""

from __future__ import annotations

import transformers

from tiny import _seeded, tiny_bart, tiny_bert, tiny_causal, tiny_gpt2, tiny_llama, tiny_roberta, tiny_t5

EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "moe_intermediate_size": 24, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip


def tiny_deberta(*, num_labels: int = 3, seed: int = 0) -> transformers.DebertaV2ForSequenceClassification:
    """DeBERTa-v3's architecture: v2 with shared keys, relative positions in buckets, and a norm over them."""
    config = transformers.DebertaV2Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=num_labels,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pooler_dropout=0.0, pad_token_id=0, type_vocab_size=0,
        relative_attention=True, position_buckets=16, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"], position_biased_input=False, max_position_embeddings=64,
    )  # fmt: skip
    return _seeded(transformers.DebertaV2ForSequenceClassification, config, seed)


FAMILIES = {
    "LLaMA-2/3, Yi": tiny_llama,
    "Mistral": lambda: tiny_causal("Mistral", sliding_window=6),
    "Qwen1.5/2": lambda: tiny_causal("Qwen2"),
    "Gemma": lambda: tiny_causal("Gemma"),
    "Gemma 2": lambda: tiny_causal("Gemma2", final_logit_softcapping=1.5, sliding_window=6),
    "GPT-2": tiny_gpt2,
    "Mixtral": lambda: tiny_causal("Mixtral"),
    "Qwen1.5/2-MoE": lambda: tiny_causal("Qwen2Moe", shared_expert_intermediate_size=40, **EXPERTS),
    "Qwen3-MoE": lambda: tiny_causal("Qwen3Moe", head_dim=8, **EXPERTS),
    "DeepSeek-V2": lambda: tiny_causal("DeepseekV2", q_lora_rank=None, **LATENT),
    "DeepSeek-V3": lambda: tiny_causal("DeepseekV3", q_lora_rank=20, **LATENT),
    "BERT": tiny_bert,
    "RoBERTa": tiny_roberta,
    "DeBERTa-v3": tiny_deberta,
    "T5": tiny_t5,
    "BART": tiny_bart,
}
"""By the name that people know; a tiny one is made on each call."""

REGRESSION = {
    "BERT": lambda: tiny_bert(num_labels=1),
    "RoBERTa": lambda: tiny_roberta(num_labels=1),
    "DeBERTa-v3": lambda: tiny_deberta(num_labels=1),
}
