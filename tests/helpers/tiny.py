"""Tiny models with random weights, and a tokenizer, so that the tests need nothing but themselves."""

from __future__ import annotations

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn


def tiny_llama(
    *, vocab: int = 97, hidden: int = 32, layers: int = 2, seed: int = 0, **settings
) -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings,
    )  # fmt: skip
    return _seeded(transformers.LlamaForCausalLM, config, seed)


def tiny_bert(
    *, num_labels: int = 3, seed: int = 0, dropout: float = 0.0, **settings
) -> transformers.BertForSequenceClassification:
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=num_labels,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, pad_token_id=0, **settings,
    )  # fmt: skip
    return _seeded(transformers.BertForSequenceClassification, config, seed)


def tiny_roberta(*, num_labels: int = 3, seed: int = 0) -> transformers.RobertaForSequenceClassification:
    config = transformers.RobertaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=num_labels,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0, max_position_embeddings=130,
    )  # fmt: skip
    return _seeded(transformers.RobertaForSequenceClassification, config, seed)


def tiny_bart(*, seed: int = 0, **settings) -> transformers.BartForConditionalGeneration:
    config = transformers.BartConfig(
        vocab_size=97, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, dropout=0.0, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=2, **settings,
    )  # fmt: skip
    return _seeded(transformers.BartForConditionalGeneration, config, seed)


def tiny_gpt2(*, seed: int = 0) -> transformers.GPT2LMHeadModel:
    config = transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return _seeded(transformers.GPT2LMHeadModel, config, seed)


def tiny_t5(*, seed: int = 0) -> transformers.T5ForConditionalGeneration:
    config = transformers.T5Config(
        vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, dropout_rate=0.0, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    model = _seeded(transformers.T5ForConditionalGeneration, config, seed)
    # T5 leaves out attention's usual scaling; its widened logits would be hundreds, and every softmax a single peak.
    with torch.no_grad():
        model.shared.weight.mul_(0.05)
    return model


def tiny_causal(family: str, *, seed: int = 0, **settings):
    """A causal model whose head or whose layers are peculiar: its family is its config's name in transformers."""
    sizes = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if family.startswith("Gemma"):
        sizes["head_dim"] = 8
    if family == "Mixtral":
        sizes["num_local_experts"] = 4
    config = getattr(transformers, f"{family}Config")(**{**sizes, **settings})
    return _seeded(getattr(transformers, f"{family}ForCausalLM"), config, seed)


def token_rows(count: int = 64, *, vocab: int = 97, shortest: int = 8, longest: int = 20, seed: int = 0) -> list[dict]:
    """Rows of random tokens; the first part of each is a prompt, of uneven length, that nothing is learnt from."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(shortest, longest, (1,), generator=generator))
        prompt = int(torch.randint(1, length - 2, (1,), generator=generator))
        tokens = torch.randint(4, vocab, (length,), generator=generator).tolist()
        rows.append({"input_ids": tokens, "labels": [-100] * prompt + tokens[prompt:], "attention_mask": [1] * length})
    return rows


def labelled_rows(count: int = 64, *, labels: int = 3, vocab: int = 97, length: int = 10, seed: int = 0) -> list[dict]:
    """Rows with a class (or, for one label, a score) that can be read off the first token."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        tokens = torch.randint(4, vocab, (length,), generator=generator).tolist()
        label = tokens[0] / vocab if labels == 1 else tokens[0] % labels
        rows.append({"input_ids": tokens, "labels": label, "attention_mask": [1] * length})
    return rows


def pair_rows(count: int = 32, *, vocab: int = 97, seed: int = 0) -> list[dict]:
    """Source and target for an encoder-decoder, of unlike lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        lengths = torch.randint(5, 12, (2,), generator=generator).tolist()
        source, target = (torch.randint(4, vocab, (n,), generator=generator).tolist() for n in lengths)
        rows.append({"input_ids": source, "labels": target, "attention_mask": [1] * len(source)})
    return rows


def pad_rows(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Collate: every column padded on the right with what means nothing there."""
    filler = {"labels": -100}
    batch = {}
    for name, first in rows[0].items():
        if not isinstance(first, list):
            batch[name] = torch.tensor([row[name] for row in rows])
            continue
        width = max(len(row[name]) for row in rows)
        batch[name] = torch.tensor([row[name] + [filler.get(name, 0)] * (width - len(row[name])) for row in rows])
    return batch


def tiny_tokenizer(vocab: int = 97) -> transformers.PreTrainedTokenizerFast:
    """One token per character: pad 0, bos 1, eos 2, unk 3, then printable ASCII."""
    pieces = ["<pad>", "<s>", "</s>", "<unk>"] + [chr(code) for code in range(32, 32 + vocab - 4)]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _seeded(kind: type[nn.Module], config: transformers.PretrainedConfig, seed: int):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        # transformers' initial weights are so small that every output is alike; widen them so that mistakes show.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6.0)
    return model.eval()
