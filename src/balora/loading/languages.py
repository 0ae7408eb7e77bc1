"""Languages of multilingual encoder-decoders (NLLB, M2M100, mBART), whose texts are marked with the code of their language.

Without a language these tokenizers assume one, and take an unknown name for the unknown token.
"""

import inspect
import logging
import re
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import BALoraError, suggest
from balora.loading.source import ModelSource

logger = logging.getLogger("balora")
_KEYS = {"src_lang": "source_language", "tgt_lang": "target_language"}
_CODE = re.compile(r"_*([a-z]{2,3}(_[A-Z][A-Za-z]{1,3})?)_*")


def set_languages(tokenizer: PreTrainedTokenizerBase, source: ModelSource, *, required: bool = True) -> None:
    """Set the languages that a source names; they are saved with the tokenizer.

    Raises:
        BALoraError: The tokenizer knows no languages, does not know the named one, or is multilingual and a language is missing
            for a seq2seq task (with ``required``).
    """
    given = {name: value for name, key in _KEYS.items() if (value := getattr(source, key)) is not None}
    name = tokenizer.name_or_path
    if not is_multilingual(tokenizer):
        if given:
            raise BALoraError(
                f"The tokenizer {name} does not mark texts with a language. Leave out "
                f"{' and '.join(f'data.{_KEYS[key]}' for key in given)}."
            )
        return
    stored: dict[str, Any] = tokenizer.init_kwargs
    for attribute, language in given.items():
        _check_language(tokenizer, language, f"data.{_KEYS[attribute]}")
        setattr(tokenizer, attribute, language)
        stored[attribute] = language
    missing = [f"data.{key}" for attribute, key in _KEYS.items() if not stored.get(attribute)]
    if missing and required and source.task == "seq2seq":
        known = ", ".join(known_languages(tokenizer)[:8])
        raise BALoraError(
            f"The tokenizer {name} marks texts with their language, and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set. Set {'it' if len(missing) == 1 else 'them'}; the tokenizer knows "
            f"{known} and others."
        )
    assumed = {key: getattr(tokenizer, attribute) for attribute, key in _KEYS.items() if attribute not in given}
    if source.task != "seq2seq":
        logger.warning("The tokenizer %s marks every text as %s.", name, assumed["source_language"])
    elif assumed:
        pairs = " and ".join(f"data.{key} is {language}" for key, language in assumed.items())
        logger.warning("The tokenizer %s decides the languages that the config does not name: %s.", name, pairs)


def set_answer_language(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a model generate in the target language of its tokenizer, as it is trained; other tokenizers change nothing."""
    if not is_multilingual(tokenizer) or not getattr(tokenizer, "tgt_lang", None) or model.generation_config is None:
        return
    prefix, suffix = _target_marks(tokenizer)
    code = next((token for token in (*prefix, *suffix) if token not in _ordinary(tokenizer)), None)
    if code in prefix:
        model.generation_config.forced_bos_token_id = code
    elif model.config.model_type in ("mbart", "plbart"):
        # The labels end with the language, and the decoder starts with it.
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = code


def is_multilingual(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer marks its texts with a language."""
    return "src_lang" in inspect.signature(type(tokenizer).__init__).parameters


def known_languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the names of a multilingual tokenizer's languages."""
    codes = getattr(tokenizer, "lang_code_to_token", None)
    if codes:
        return sorted(codes)
    matches = (_CODE.fullmatch(token) for token in tokenizer.get_vocab() if "_" in token)
    special = set(tokenizer.all_special_tokens)
    return sorted(match[1] for match in matches if match and match[0] in special)


def _check_language(tokenizer: Any, language: str, key: str) -> None:
    before = tokenizer.src_lang
    try:
        tokenizer.set_src_lang_special_tokens(language)
        code = [*tokenizer.prefix_tokens, *tokenizer.suffix_tokens]
    except (KeyError, TypeError, ValueError):
        code = [None]
    tokenizer.set_src_lang_special_tokens(before)
    if None in code or tokenizer.unk_token_id in code:
        languages = known_languages(tokenizer)
        hint = suggest(language, languages) or f" It knows {', '.join(languages[:8])} and others."
        raise BALoraError(
            f"The tokenizer {tokenizer.name_or_path} does not know the language {language!r} ({key}).{hint}"
        )


def _target_marks(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer writes before and after a text in the target language."""
    tokenizer._switch_to_target_mode()
    marks = list(tokenizer.prefix_tokens), list(tokenizer.suffix_tokens)
    tokenizer._switch_to_input_mode()
    return marks


def _ordinary(tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    return {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
