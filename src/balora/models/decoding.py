"""Generation settings that change which token is the likeliest, switched off for evaluations.

Models bring such settings in their generation_config.json (Blenderbot: at least 20 tokens; Qwen: a repetition penalty). An
evaluation must depend on its own settings alone, and be the same with every engine.
"""

PLAIN_DECODING = {
    "min_length": 0,
    "min_new_tokens": None,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""Arguments of ``generate``. Tokens that a model needs (``forced_bos_token_id``, ``bad_words_ids``) are not among them."""
