"""`tokenizer_digest`: tells tokenizers apart by what they do with a text."""

import hashlib
import json

from transformers import PreTrainedTokenizerBase


def tokenizer_digest(*tokenizers: PreTrainedTokenizerBase | None) -> str:
    """Return a digest of everything that affects how texts become tokens."""
    digest = hashlib.sha256()
    for tokenizer in tokenizers:
        if tokenizer is None:
            continue
        backend = getattr(tokenizer, "backend_tokenizer", None)
        content = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
        for last_call in ("padding", "truncation"):  # set by the last call, not by the tokenizer
            content.pop(last_call, None)
        parts = [content, {k: str(v) for k, v in tokenizer.special_tokens_map.items()}, str(tokenizer.chat_template)]
        digest.update(json.dumps(parts, sort_keys=True).encode())
    return digest.hexdigest()
