"""Every field of trl's SFTConfig and of TrainingArguments is honoured, refused with a sentence, or irrelevant to the objective.

A field that a new version adds fails `test_every_field_is_in_the_table`, until somebody has decided what it means here.
"""

from __future__ import annotations

import dataclasses
import types

import pytest
from test_sft import trainer as sft_trainer
from transformers import Trainer, TrainingArguments
from trl import SFTConfig

from balora import BALoraTrainer
from balora.config.training_arguments import training_fields
from balora.config.validation import Problems, check_training
from balora.errors import BALoraError
from balora.training.trainer_checks import check_sharding
from small_runs import OFF, history, pissa
from small_runs import trainer as plain_trainer
from tiny import tiny_causal, tiny_llama

# Refused in Python whenever the value is one that the objective would not honour: the value, and words of the message.
REFUSED = {
    "loss_type": ("dft", "cross-entropy"),
    "label_smoothing_factor": (0.1, "Set it to 0"),
    "auto_find_batch_size": (True, "gradient_accumulation_steps"),
    "label_names": (["targets"], "column 'labels'"),
    "liger_kernel_config": ({"fused_linear_cross_entropy": True}, "fused_linear_cross_entropy"),
    "push_to_hub": (True, "push_to_hub is not supported"),
    # Each has a test of its own below, or needs several processes.
    "average_tokens_across_devices": (None, ""),
    "router_aux_loss_coef": (None, ""),
    "chat_template_path": (None, ""),
    "parallelism_config": (None, ""),
    "fsdp": (None, ""),  # version 1: `check_sharding`
    "fsdp_config": (None, ""),
    "deepspeed": (None, ""),  # ZeRO 3
}
# Done by code of transformers, accelerate or trl that the regularized trainers keep.
HONOURED = {
    "optimizer and schedule": """learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay
        adam_beta1 adam_beta2 adam_epsilon optim_target_modules max_grad_norm""",
    "length and batches": """per_device_train_batch_size num_train_epochs max_steps gradient_accumulation_steps
        per_device_eval_batch_size accelerator_config train_sampling_strategy length_column_name dataloader_drop_last
        dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
        dataloader_multiprocessing_context dataloader_in_order remove_unused_columns seed data_seed full_determinism""",
    "precision and speed": """bf16 fp16 bf16_full_eval fp16_full_eval tf32 use_cpu activation_checkpointing
        activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend
        torch_compile_mode use_liger_kernel torch_empty_cache_steps activation_offloading""",
    "forward": "neftune_noise_alpha",
    "logging": """logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
        include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
        trackio_bucket_id trackio_static_space_id skip_memory_metrics debug""",
    "evaluation": """eval_strategy eval_steps eval_delay prediction_loss_only eval_on_start eval_do_concat_batches
        eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics load_best_model_at_end
        metric_for_best_model greater_is_better""",
    "checkpoints": """output_dir save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint
        ignore_data_skip restore_callback_states_from_checkpoint""",
    "processes": """ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
        local_rank""",
    "trl's data": """model_init_kwargs trust_remote_code dataset_text_field dataset_kwargs dataset_num_proc eos_token pad_token
        max_length truncation_mode shuffle_dataset packing packing_strategy padding_free pad_to_multiple_of eval_packing
        completion_only_loss assistant_only_loss""",
}
IRRELEVANT = {
    "use_cache": "training never uses the key-value cache",
    "hub_token": "only for a push, which is refused",
    "hub_private_repo": "only for a push, which is refused",
    "hub_model_id": "only for a push, which is refused",
    "hub_strategy": "only for a push, which is refused",
    "hub_always_push": "only for a push, which is refused",
    "hub_revision": "only for a push, which is refused",
    "do_train": "read by scripts, not by a Trainer",
    "do_eval": "read by scripts, not by a Trainer",
    "do_predict": "read by scripts, not by a Trainer",
    "resume_from_checkpoint": "read by scripts, not by a Trainer",
}
# Refused by the `training` section of a config, besides what is refused in Python.
REFUSED_IN_A_CONFIG = [
    *("output_dir", "seed", "resume_from_checkpoint", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
    *("hub_always_push", "hub_revision", "do_train", "do_eval", "do_predict", "remove_unused_columns", "label_names"),
    *("enable_jit_checkpoint", "push_to_hub", "label_smoothing_factor", "auto_find_batch_size"),
]
_VALUES = {"label_smoothing_factor": 0.1}


def test_every_field_is_in_the_table():
    fields = {f.name for kind in (SFTConfig, TrainingArguments) for f in dataclasses.fields(kind) if f.init}
    table = [*REFUSED, *" ".join(HONOURED.values()).split(), *IRRELEVANT]
    assert sorted(table) == sorted(set(table)), "a field is in one part of the table"
    assert fields - set(table) == set(), "new fields: decide if they are honoured, refused or irrelevant"
    assert {*REFUSED_IN_A_CONFIG} - set(training_fields()) == set()


@pytest.mark.parametrize("name", [name for name, (value, _) in REFUSED.items() if value is not None])
def test_a_refused_field_says_what_to_do(name, tmp_path):
    value, words = REFUSED[name]
    with pytest.raises(BALoraError) as found:
        sft_trainer(tmp_path, **{name: value})
    assert name in str(found.value) and words in str(found.value)


def test_every_refusal_is_reported_at_once(tmp_path):
    with pytest.raises(
        BALoraError, match=r"2 problems(?s:.)*loss_type='dft'(?s:.)*auto_find_batch_size=True|2 problems"
    ):
        sft_trainer(tmp_path, loss_type="dft", auto_find_batch_size=True)


@pytest.mark.parametrize("name", REFUSED_IN_A_CONFIG)
def test_a_config_refuses_what_a_run_would_ignore(name):
    with pytest.raises(Problems) as found:
        check_training({name: _VALUES.get(name, True)})
    assert f"training.{name} " in str(found.value)


def test_a_template_that_adds_tokens_is_refused(tmp_path, monkeypatch):
    def clone(model, tokenizer, path):
        model.resize_token_embeddings(len(tokenizer) + 3)
        return model, tokenizer, [len(tokenizer)]

    monkeypatch.setattr("trl.trainer.sft_trainer.clone_chat_template", clone)
    with pytest.raises(BALoraError, match=r"chat_template_path='other' adds tokens.*not trained.*\.jinja"):
        sft_trainer(tmp_path, chat_template_path="other")


def test_the_routers_weight_is_honoured_or_refused(tmp_path):
    with pytest.raises((BALoraError, ValueError), match="router_aux_loss_coef"):
        sft_trainer(tmp_path, router_aux_loss_coef=0.1)
    losses = []
    for weight in (0.0, 5.0):
        run = sft_trainer(
            tmp_path,
            config=OFF,
            make=lambda: tiny_causal("Mixtral"),
            method="lora",
            router_aux_loss_coef=weight,
            max_steps=1,
        )
        run.train()
        losses.append(history(run, "loss")[0])
    assert losses[1] > losses[0] + 1.0


def test_parallelism_within_a_sequence_or_matrix_is_refused():
    parallel = types.SimpleNamespace(cp_enabled=True, sp_enabled=False, tp_enabled=True)
    state = types.SimpleNamespace(parallelism_config=parallel, deepspeed_plugin=None, fsdp_plugin=None)
    with pytest.raises(BALoraError, match=r"Context and tensor parallelism.*Leave parallelism_config out"):
        check_sharding(state, tiny_llama(), None)


HONOURED_CASES = {
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
    "noise": {"neftune_noise_alpha": 5.0},
    "checkpointing": {"activation_checkpointing": True},
    "order": {"train_sampling_strategy": "sequential"},
    "data seed": {"data_seed": 7},
    "optimizer": {"optim": "sgd", "optim_args": "momentum=0.5"},
    "schedule": {"lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.5},
    "clipping": {"max_grad_norm": 0.01},
    "precision": {"bf16": True},
    "accumulation": {"gradient_accumulation_steps": 2, "average_tokens_across_devices": False},
    "counting": {"include_num_input_tokens_seen": "all", "torch_empty_cache_steps": 1, "logging_first_step": True},
    "last batch": {"dataloader_drop_last": True, "per_device_train_batch_size": 3},
}


@pytest.mark.parametrize("name", HONOURED_CASES)
def test_with_all_weights_0_a_setting_acts_as_in_transformers(name, tmp_path):
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    settings = {key: value for key, value in HONOURED_CASES[name].items() if key in known}
    runs = []
    for kind in (BALoraTrainer, Trainer):
        runs.append(plain_trainer(pissa(tiny_llama), tmp_path, kind=kind, config=OFF, **settings))
        runs[-1].train()  # before the next is made, which sets the seed
    ours, theirs = runs
    for key in ("loss", "grad_norm", "learning_rate", "num_input_tokens_seen"):
        assert history(ours, key) == pytest.approx(history(theirs, key), rel=2e-2 if name == "precision" else 1e-4), key
