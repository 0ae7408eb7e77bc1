"""Train the same runs sharded over two processes by FSDP2 and in one, and write a report. Run by test_sharded.py.

accelerate shards on accelerators only, so these processes pretend to have some.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

import balora
from balora import BALoraTrainer, RegularizationConfig
from balora.models.fsdp import gather_tensors, reshard
from balora.regularization import WEIGHTS
from processes import in_two_processes
from small_runs import ALL_TERMS, OFF, TOKEN_TERMS, Gradients, arguments, history
from tiny import labelled_rows, pad_rows, tiny_bert, tiny_llama, token_rows

GLOBAL = RegularizationConfig(**{**ALL_TERMS.to_dict(), "batch_statistics": "global"})
FEATURES = RegularizationConfig(
    **{
        **GLOBAL.to_dict(),
        "variance": 0.4,
        "spectral_rank": 1,
        "diversity_target": "features",
        "spectral_target": "features",
    }
)


def untied():
    return tiny_llama(tie_word_embeddings=False)


# name: (model, method, rows, regularization, further arguments)
RUNS = {
    "balora": (untied, "balora", token_rows, GLOBAL, {}),
    "accumulated": (untied, "pissa", token_rows, TOKEN_TERMS, {"teacher_offload": True}),
    "tied": (lambda: tiny_llama(tie_word_embeddings=True), "lora", token_rows, GLOBAL, {}),
    "full": (untied, "full", token_rows, GLOBAL, {}),
    "full, no teacher": (untied, "full", token_rows, OFF, {}),
    "bias": (lambda: tiny_llama(attention_bias=True), "bitfit", token_rows, GLOBAL, {"loss_path": "plain"}),
    "classification": (tiny_bert, "pissa", labelled_rows, FEATURES, {}),
}
RESUMED = ("balora", "full")


def gathered(named) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in gather_tensors(named).items()}


class WholeGradients(Gradients):
    """Record the optimizer's gradients of each step, gathered from the shards."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.steps.append(gathered((n, p.grad) for n, p in model.named_parameters() if p.grad is not None))


def build(name: str, folder: Path, processes: int) -> BALoraTrainer:
    make, method, rows, config, further = RUNS[name]
    given = {
        "optim": "adamw_torch", "adam_epsilon": 1e-3, "learning_rate": 0.05, "max_steps": 3, "max_grad_norm": 1.0,
        "per_device_train_batch_size": 4 // processes, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps",
        "eval_steps": 3, "logging_steps": 3, "per_device_eval_batch_size": 4,
    }  # fmt: skip
    if processes > 1 and name == "accumulated":
        given |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    if processes > 1:
        # By default accelerate shards BERT's embeddings twice, as a block and as the input layer, which torch refuses.
        layers = {"transformer_layer_cls_to_wrap": ["BertLayer"]} if name == "classification" else {}
        given |= {"ddp_backend": "gloo", "fsdp": True, "fsdp_config": {"version": 2, **layers}}
    args = arguments(folder / name, **given)
    if processes > 1:
        assert args.device.type == "cpu"
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    model = balora.adapt(make(), method=method, **({} if method in ("full", "bitfit") else {"rank": 4}))
    return BALoraTrainer(
        model=model, args=args, train_dataset=rows(24), eval_dataset=rows(8), data_collator=pad_rows, regularization=config,
        **further,
    )  # fmt: skip


def fit(name: str, folder: Path, processes: int, *, resume: bool = False) -> tuple[dict, dict]:
    """Train three steps of four rows and return what was logged, and every tensor."""
    run, seen = build(name, folder, processes), WholeGradients()
    run.add_callback(seen)
    run.train(resume_from_checkpoint=str(folder / name / "checkpoint-2") if resume else None)
    if processes > 1:
        assert run.accelerator.is_fsdp2
        reshard(run.model)
        assert all(isinstance(p, DTensor) for p in run.model.parameters())
    logged = {key: history(run, key) for key in ("loss", "task", *WEIGHTS, "eval_loss", "grad_norm")}
    trained = gathered((f"trained {n}", p) for n, p in run.model.named_parameters() if p.requires_grad)
    return logged, trained | {f"{at} {key}": g for at, step in enumerate(seen.steps) for key, g in step.items()}


def work(rank: int, folder: Path) -> None:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    for name in RUNS:
        logged, tensors = fit(name, folder / "two", 2)
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(logged))
            save_file(tensors, folder / f"{name}.safetensors")
        if name in RESUMED:
            _, tensors = fit(name, folder / "two", 2, resume=True)
            if rank == 0:
                save_file(tensors, folder / f"{name}-resumed.safetensors")


def main(folder: Path) -> None:
    in_two_processes(work, folder)
    report = {}
    for name in RUNS:
        logged, expected = fit(name, folder / "one", 1)
        found = load_file(folder / f"{name}.safetensors")
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        size = max(float(g.norm()) for key, g in expected.items() if key[0].isdigit())
        report[name] = {
            "gradient": max(float((found[k] - g).norm()) / size for k, g in expected.items() if k[0].isdigit()),
            "weights": max(float((found[k] - w).abs().max()) for k, w in expected.items() if not k[0].isdigit()),
            "logged": [logged, json.loads((folder / f"{name}.json").read_text())],
            "files": sorted(p.name for p in (folder / "two" / name / "checkpoint-3").iterdir()),
        }
        if name in RESUMED:
            again = load_file(folder / f"{name}-resumed.safetensors")
            report[name]["resumed"] = max(float((found[k] - w).abs().max()) for k, w in again.items() if k[0] == "t")
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
