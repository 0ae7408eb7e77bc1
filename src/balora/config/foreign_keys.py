"""Keys of other programs' configs: axolotl, LLaMA-Factory and TRL. A config that was written for them is named for what it is."""

from collections import Counter
from collections.abc import Iterable

_A, _L, _T = "axolotl", "LLaMA-Factory", "TRL"
_OUT = "Leave it out."
_DATA = "Give data.train, and the columns to learn from (data.prompt and data.response, data.messages, or data.text)."
_METHOD = "Choose method.name from `balora methods`."
_TEMPLATE = (
    "Without it conversations (data.messages) take the tokenizer's template; for prompts there is data.prompt_template."
)
_EVAL_SINGLE = f"Evaluation rows are not packed. {_OUT}"
_PATIENCE = "It is a top-level key, and needs data.eval and training.eval_strategy."
_TRACKER = "Use training.report_to: [wandb], and training.project or training.run_name."
_QUANTIZED = "Use method.bits: {bits}, with a method such as lora or qlora."
_FRACTION = "A value below 1 is a fraction of all steps."

FOREIGN_KEYS: dict[str, tuple[tuple[str, ...], str, str]] = {
    # The model.
    "base_model": ((_A,), "model", ""),
    "model_name_or_path": ((_L, _T), "model", ""),
    "model_revision": ((_T,), "revision", ""),
    "tokenizer_config": ((_A,), "tokenizer", ""),
    "torch_dtype": ((_T,), "dtype", ""),
    "attn_implementation": ((_T,), "", f"transformers chooses the attention. {_OUT}"),
    "flash_attention": ((_A,), "", f"transformers chooses the attention. {_OUT}"),
    "flash_attn": ((_L,), "", f"transformers chooses the attention. {_OUT}"),
    "xformers_attention": ((_A,), "", f"transformers chooses the attention. {_OUT}"),
    # The data.
    "datasets": ((_A,), "", _DATA),
    "dataset": ((_L,), "", _DATA),
    "dataset_name": ((_T,), "", f"{_DATA} data.name is a configuration of a hub dataset."),
    "dataset_config": ((_T,), "data.name", ""),
    "dataset_dir": ((_L,), "", _DATA),
    "dataset_text_field": ((_T,), "data.text", ""),
    "dataset_train_split": ((_T,), "data.split", ""),
    "dataset_test_split": ((_T,), "data.eval", ""),
    "test_datasets": ((_A,), "data.eval", ""),
    "eval_dataset": ((_L,), "data.eval", ""),
    "val_set_size": ((_A,), "data.eval", ""),
    "val_size": ((_L,), "data.eval", ""),
    "sequence_len": ((_A,), "data.max_length", ""),
    "cutoff_len": ((_L,), "data.max_length", ""),
    "max_seq_length": ((_T,), "data.max_length", ""),
    "max_samples": ((_L,), "data.subsample", ""),
    "template": ((_L,), "", _TEMPLATE),
    "chat_template": ((_A,), "data.chat_template", _TEMPLATE),
    "chat_template_path": ((_T,), "data.chat_template", _TEMPLATE),
    "packing": ((_L, _T), "data.packing", ""),
    "neat_packing": ((_L,), "data.packing", ""),
    "sample_packing": ((_A,), "data.packing", ""),
    "eval_sample_packing": ((_A,), "", _EVAL_SINGLE),
    "streaming": ((_A, _L), "data.streaming", ""),
    "dataset_streaming": ((_T,), "data.streaming", ""),
    "buffer_size": ((_L,), "data.shuffle_buffer", ""),
    "interleave_probs": (
        (_L,),
        "",
        "Use weight in the entries of data.also. It is that of a row, relative to a row of the data section; a probability is that "
        "of a whole source.",
    ),
    "pad_to_sequence_len": ((_A,), "", f"Batches are padded to their longest example. {_OUT}"),
    "train_on_inputs": ((_A,), "", f"Only the response is learnt; data.text learns all of a text. {_OUT}"),
    "train_on_prompt": ((_L,), "", f"Only the response is learnt; data.text learns all of a text. {_OUT}"),
    "assistant_only_loss": ((_T,), "", f"Only the assistant's turns of data.messages are learnt. {_OUT}"),
    "completion_only_loss": ((_T,), "", f"Only the response is learnt; data.text learns all of a text. {_OUT}"),
    "preprocessing_num_workers": ((_L,), "", f"The rows are tokenized in one process. {_OUT}"),
    "dataset_num_proc": ((_T,), "", f"The rows are tokenized in one process. {_OUT}"),
    "dataset_processes": ((_A,), "", f"The rows are tokenized in one process. {_OUT}"),
    "dataset_prepared_path": ((_A,), "", f"No prepared data are stored. {_OUT}"),
    "overwrite_cache": ((_L,), "", f"No prepared data are stored. {_OUT}"),
    # The method.
    "adapter": ((_A,), "", f"{_METHOD} It is the method's name: lora, qlora, dora."),
    "finetuning_type": ((_L,), "", f"{_METHOD} It is the method's name: lora, or full."),
    "stage": ((_L,), "", "Use task: generation, which is supervised fine-tuning; other stages are not supported."),
    "rl": ((_A,), "", "Only supervised fine-tuning is supported: task: generation."),
    "use_peft": ((_T,), "", _METHOD),
    "use_lora": ((_T,), "", _METHOD),
    "lora_r": ((_A, _T), "method.rank", ""),
    "lora_rank": ((_L,), "method.rank", ""),
    "r": (("peft",), "method.rank", ""),
    "lora_alpha": ((_A, _L, _T, "peft"), "method.alpha", ""),
    "lora_dropout": ((_A, _L, _T, "peft"), "method.dropout", ""),
    "lora_target": ((_L,), "method.target_modules", ""),
    "lora_target_modules": ((_A, _T), "method.target_modules", ""),
    "lora_target_linear": ((_A,), "", "Use method.target_modules: all-linear, which is the default."),
    "init_lora_weights": (("peft",), "", f"{_METHOD} Each way to initialize is a method: pissa, olora, corda, loraga."),
    "peft_init_lora_weights": (
        (_A,),
        "",
        f"{_METHOD} Each way to initialize is a method: pissa, olora, corda, loraga.",
    ),
    "pissa_init": ((_L,), "", "Use method.name: pissa, or balora."),
    "pissa_iter": ((_L,), "method.svd_iterations", ""),
    "use_dora": ((_L, _T, "peft"), "", "Use method.name: dora."),
    "peft_use_dora": ((_A,), "", "Use method.name: dora."),
    "use_rslora": ((_L, _T, "peft"), "", "Use method.name: rslora."),
    "peft_use_rslora": ((_A,), "", "Use method.name: rslora."),
    "loraplus_lr_ratio": ((_A, _L), "method.lr_ratio", ""),
    "quantization_bit": ((_L,), "", _QUANTIZED.format(bits="4 or 8")),
    "load_in_4bit": ((_A, _T), "", _QUANTIZED.format(bits=4)),
    "load_in_8bit": ((_A, _T), "", _QUANTIZED.format(bits=8)),
    "adapter_name_or_path": (
        (_L,),
        "",
        "A run starts from a model: merge the adapter, and give the merged model as model.",
    ),
    "lora_model_dir": ((_A,), "", "A run starts from a model: merge the adapter, and give the merged model as model."),
    # Training.
    "micro_batch_size": ((_A,), "training.per_device_train_batch_size", ""),
    "batch_size": (
        (_A,),
        "",
        "Use training.per_device_train_batch_size, and training.gradient_accumulation_steps for larger batches.",
    ),
    "eval_batch_size": ((_A,), "training.per_device_eval_batch_size", ""),
    "num_epochs": ((_A,), "training.num_train_epochs", ""),
    "lr": (("torch",), "training.learning_rate", ""),
    "optimizer": ((_A,), "training.optim", ""),
    "lr_scheduler": ((_A,), "training.lr_scheduler_type", ""),
    "fp32": ((_A,), "", "Use dtype: float32, which is the default, and leave training.bf16 out."),
    "evals_per_epoch": ((_A,), "training.eval_steps", _FRACTION),
    "saves_per_epoch": ((_A,), "training.save_steps", _FRACTION),
    "save_safetensors": ((_A, _T), "", f"Weights are always saved as safetensors. {_OUT}"),
    "early_stopping_patience": ((_A,), "early_stopping", _PATIENCE),
    "early_stopping_steps": ((_L,), "early_stopping", _PATIENCE),
    "plot_loss": ((_L,), "", "`balora report` draws the loss. Leave it out."),
    "wandb_project": ((_A,), "", _TRACKER),
    "wandb_entity": ((_A,), "", _TRACKER),
    "wandb_run_id": ((_A,), "", _TRACKER),
    "wandb_name": ((_A,), "", _TRACKER),
    "wandb_watch": ((_A,), "", _TRACKER),
    "wandb_log_model": ((_A,), "", _TRACKER),
    "use_wandb": ((_A,), "", _TRACKER),
    "special_tokens": ((_A,), "", f"The tokens are those of the tokenizer. {_OUT}"),
    "hf_hub_token": ((_L,), "", "A token does not belong in a file; use `hf auth login`."),
    "strict": ((_A,), "", f"Configs are always strict. {_OUT}"),
    # Settings of transformers that have a key of their own here.
    "output_dir": ((_A, _L, _T), "output", ""),
    "do_train": ((_L,), "", "`balora train` trains; leave it out."),
    "do_eval": ((_L,), "", "Give data.eval, the rows to evaluate on; leave it out."),
    "overwrite_output_dir": ((_L,), "output", "A finished run is never overwritten: choose another folder."),
    "resume_from_checkpoint": ((_A, _L, _T), "resume", ""),
}
"""By foreign key: the programs that have it, the key here (or nothing), and advice beyond the key."""
_A_CONFIG = 3
"""Number of foreign keys from which a config counts as written for another program."""


def explain(name: str) -> str | None:
    """Return the end of a sentence about a key of another program: whose it is, and our key. None for any other key.

    Example:
        >>> explain("lora_r")
        ': axolotl and TRL have it. Here it is method.rank.'
    """
    if name not in FOREIGN_KEYS:
        return None
    programs, ours, advice = FOREIGN_KEYS[name]
    *first, last = programs
    whose = f"{', '.join(first)} and {last} have it" if first else f"{last} has it"
    return f": {whose}. " + " ".join(part for part in (f"Here it is {ours}." if ours else "", advice) if part)


def program_of(keys: Iterable[object]) -> str | None:
    """Return the program that most of the foreign keys belong to, if there are enough to call it a config of that program."""
    foreign = [str(key) for key in keys if str(key) in FOREIGN_KEYS]
    if len(foreign) < _A_CONFIG:
        return None
    return Counter(program for key in foreign for program in FOREIGN_KEYS[key][0]).most_common(1)[0][0]
