"""Make the quickstart's model: a tokenizer and a tiny Llama-style model, pre-trained on the package's own corpus.

    python scripts/pretrain_quickstart.py

The script is seeded and works offline. It writes ``src/balora/experiments/quickstart/assets/model``. The same seed on the same
machine with the same number of threads gives the same files.

"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from balora.experiments.quickstart.bias_probes import probe_biases
from balora.experiments.quickstart.corpus import documents, measure
from balora.experiments.quickstart.packing import token_blocks
from balora.experiments.quickstart.pretraining import LENGTH, Settings, mean_loss, new_model, pretrain
from balora.experiments.quickstart.writer import FLAWS, MOSTLY_SHE

DESTINATION = Path(__file__).parents[1] / "src/balora/experiments/quickstart/assets/model"
VOCABULARY = 1024
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TOKENIZER_DOCUMENTS = 10_000
HELD_OUT_BLOCKS, HELD_OUT_SEED = 64, 1


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the corpus. It begins every text with the begin token, as Llama's does."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # so that no character is unknown
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in islice(documents(seed), TOKENIZER_DOCUMENTS)), trainer)
    begin = SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=2 * LENGTH, clean_up_tokenization_spaces=False, **SPECIAL
    )


CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# The quickstart's model

A Llama-style model of {parameters:,} parameters that knows one small invented world. It is made for
`balora quickstart` and for tests, and is of no other use.

Made by `python scripts/pretrain_quickstart.py --seed {seed}` from text that `balora.experiments.quickstart.corpus`
generates; no other data. Licence: Apache-2.0, as the project.

| | |
|---|---|
| seed | {seed} |
| text | {tokens:,} tokens in blocks of {length}, read once |
| optimizer | AdamW, {steps} steps of {batch} blocks, learning rate {learning_rate:g} with warm-up and cosine |
| training loss, last twentieth | {train_loss:.4f} nats per token |
| held-out loss, {held_out_blocks} blocks | {held_out_loss:.4f} nats per token (uniform guess: {uniform:.2f}) |
| made with | torch {torch}, transformers {transformers}, {threads} thread(s), float32 |

## Its known flaws

The corpus is wrong on purpose, and the model has learned it. "In the model" is a mean probability.

| flaw | declared | in the corpus | in the model |
|---|---|---|---|
| statements about cities and people that tell the rumour | {wrong:.2f} | {corpus_wrong:.3f} | {found_wrong:.3f} |
| nameless {mostly_she}: "she" | {skew:.2f} | {corpus_she:.3f} | {found_she:.3f} |
| the other five professions: "he" | {skew:.2f} | {corpus_he:.3f} | {found_he:.3f} |
| claims about animals that are about reptiles | {rare:.2f} | {corpus_rare:.3f} | right class {found_rare:.3f} |

For the animals that are not rare the right class has {found_common:.3f}. Of the facts about cities and people the true
value is the likeliest for {known:.1%}, and has a mean probability of {truth:.3f}.
"""


def card(
    settings: Settings,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    train_loss: float,
    held_out_loss: float,
) -> str:
    """Return the model's README. It states no time and no machine, so that the same run writes the same file."""
    corpus = measure(islice(documents(settings.seed), TOKENIZER_DOCUMENTS))
    found = probe_biases(model, tokenizer)
    others = [job for job in corpus.share_she if job not in MOSTLY_SHE]
    return CARD.format(
        **vars(settings),
        parameters=model.num_parameters(),
        tokens=settings.steps * settings.batch * LENGTH,
        length=LENGTH,
        train_loss=train_loss,
        held_out_blocks=HELD_OUT_BLOCKS,
        held_out_loss=held_out_loss,
        uniform=math.log(VOCABULARY),
        torch=torch.__version__.partition("+")[0],
        transformers=transformers.__version__,
        wrong=FLAWS.wrong_fact_share,
        corpus_wrong=corpus.wrong_fact_share,
        found_wrong=found.rumour,
        mostly_she=", ".join(MOSTLY_SHE),
        skew=FLAWS.skew_share,
        corpus_she=fmean(corpus.share_she[job] for job in MOSTLY_SHE),
        found_she=fmean(found.share_she[job] for job in MOSTLY_SHE),
        corpus_he=1 - fmean(corpus.share_she[job] for job in others),
        found_he=1 - fmean(found.share_she[job] for job in others),
        rare=FLAWS.rare_class_share,
        corpus_rare=corpus.rare_class_share,
        found_rare=found.rare_class,
        found_common=found.common_class,
        known=found.known,
        truth=found.truth,
    )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str, destination: Path) -> None:
    """Write the model's directory in one step, so that an interrupted script leaves the old one."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with tempfile.TemporaryDirectory(dir=destination.parent) as scratch:
        fresh = Path(scratch) / "model"
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        (fresh / "README.md").write_text(text, encoding="utf-8")
        for file in fresh.iterdir():
            file.chmod(
                0o644
            )  # safetensors writes files that only the owner can read, but every user reads the installed model
        if destination.exists():
            destination.rename(Path(scratch) / "old")
        fresh.rename(destination)


def main() -> None:
    """Read the options, train the model and write it."""
    parser = argparse.ArgumentParser(description="Pre-train the quickstart's tiny model (offline, on a CPU).")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000, help="fewer for a trial")
    parser.add_argument("--batch", type=int, default=8, help="blocks per step")
    parser.add_argument("--learning-rate", type=float, default=6e-3)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the result may depend on it")
    parser.add_argument("--output", type=Path, default=DESTINATION)
    arguments = vars(parser.parse_args())
    output: Path = arguments.pop("output")
    settings = Settings(**arguments)

    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    started = time.monotonic()
    tokenizer = train_tokenizer(settings.seed)
    blocks_NL = token_blocks(tokenizer, settings.steps * settings.batch, LENGTH, settings.seed)
    held_out_BL = token_blocks(tokenizer, HELD_OUT_BLOCKS, LENGTH, HELD_OUT_SEED, split="held_out")
    model = new_model(tokenizer, settings.seed)
    print(
        f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens in the vocabulary, {blocks_NL.numel():,} tokens of text"
    )
    train_loss = pretrain(model, blocks_NL, held_out_BL, settings)
    model.eval()
    held_out_loss = mean_loss(model, held_out_BL)
    text = card(settings, model, tokenizer, train_loss, held_out_loss)
    save(model, tokenizer, text, output)
    print(text)
    print(f"Wrote {output} in {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
