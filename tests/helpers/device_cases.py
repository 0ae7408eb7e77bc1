"""Runs of `balora train` in one process and in two, for the table of docs/how-to/several-devices.md and its tests.

As a script under torchrun: train every case without an interruption, and again with one after the second step and a resume.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import launched

TASKS = ("generation", "seq2seq", "classification")
FORMS = ("plain", "anchored", "cached")
CASES = [(task, form) for task in TASKS for form in FORMS]
REFUSED = {("FSDP2", "seq2seq")}
"""Ways that are refused: accelerate shards T5's shared embedding twice."""
KINDS = ("DDP", "FSDP2", "ZeRO-1", "ZeRO-2")
INTERRUPTED = "interrupted"


def training_of(kind: str, task: str) -> dict:
    """Return the settings of a way to share the model."""
    if kind == "one":
        return {"per_device_train_batch_size": 8}
    if kind == "FSDP2":
        # By default accelerate shards BERT's embeddings twice, which torch refuses.
        blocks = {"classification": ["BertLayer"]}
        layers = {"transformer_layer_cls_to_wrap": blocks[task]} if task in blocks else {}
        return {**launched.FSDP, "fsdp_config": {"version": 2, **layers}}
    if kind.startswith("ZeRO"):
        config = {
            "zero_optimization": {"stage": int(kind[-1])},
            "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
        }  # fmt: skip
        return {"deepspeed": config, "use_cpu": False, "ddp_backend": "gloo"}
    return {}


def sections_of(folder: Path, task: str, form: str) -> dict:
    """Return the config's sections of a form."""
    weights = {"consistency": 0.5, "diversity": 0.3, "consistency_schedule": "constant", "focus_schedule": "constant"}
    if task == "classification":
        weights |= {"batch_statistics": "global", "spectral": 0.0}
    else:
        weights |= {"spectral": 0.2, "batch_statistics": "global"}
    sections: dict = {"regularization": weights, "teacher_cache": "off"}
    if form == "anchored":
        # Such shares that the anchors of a step are an even number: processes hold equally many.
        share = 2.0 if task == "classification" else 1.0
        # An encoder-decoder has no anchors from a text: it answers training inputs itself.
        source = {"generate": 20, "tokens": 12} if task == "seq2seq" else {"text": str(folder / "anchors.txt")}
        sections["anchor"] = {**source, "share": share, "weight": 2.0}
    if form == "cached":
        sections["teacher_cache"] = "auto" if task == "classification" else str(folder / f"cache-{task}")
    return sections


def write_configs(folder: Path, kind: str, tasks=TASKS, forms=FORMS) -> list[str]:
    """Write the configs of all cases of a kind; return their names."""
    names = []
    for task in tasks:
        for form in forms:
            if (task, form) not in CASES or (kind, task) in REFUSED:
                continue
            for end in ("", f"-{INTERRUPTED}") if kind != "one" else ("",):
                name = f"{kind}-{task}-{form}{end}"
                launched.write_config(folder, name, task, training_of(kind, task), **sections_of(folder, task, form))
                names.append(name)
    return names


def write_caches(folder: Path, tasks=TASKS) -> None:
    """Build the teacher caches."""
    from balora.config.run_config import load_run_config
    from balora.teacher.cache_builder import build_teacher_cache

    for task in tasks:
        if task != "classification":
            path = launched.write_config(folder, f"build-{task}", task, **sections_of(folder, task, "cached"))
            build_teacher_cache(load_run_config(path), 97, lambda line: None)


def train(folder: Path, names: list[str]) -> dict[str, str]:
    """Train the named cases one after the other; return what failed."""
    import balora.training.run as run
    from balora.config.run_config import load_run_config
    from balora.errors import Interrupted
    from small_runs import Do

    problems, train_once = {}, run._train

    def stopping(trainer, *arguments):
        if trainer.args.process_index == trainer.accelerator.num_processes - 1:
            trainer.add_callback(Do("on_step_end", 2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        return train_once(trainer, *arguments)

    for name in names:
        config = load_run_config(folder / f"{name}.yaml")
        try:
            if name.endswith(INTERRUPTED):
                run._train = stopping
                try:
                    run.run(config)
                    problems[name] = "was not interrupted"
                except Interrupted:
                    pass
                finally:
                    run._train = train_once
            run.run(config)
        except Exception as error:
            if os.environ.get("BALORA_TRACEBACK"):
                raise
            problems[name] = f"{type(error).__name__}: {error}"
    return problems


def compare(folder: Path, kind: str, task: str, form: str) -> dict[str, float | bool | str]:
    """Compare a case with that of one process: weights, losses, files; load it and export it."""
    import balora
    from balora.checkpoints.run_directory import read_record
    from balora.exporting.export import export
    from balora.training.callbacks import read_metrics

    name = f"{kind}-{task}-{form}"
    one, two, again = (folder / n for n in (f"one-{task}-{form}", name, f"{name}-{INTERRUPTED}"))
    expected, found, resumed = (_weights(run) for run in (one, two, again))
    losses = [
        [
            line[key]
            for line in read_metrics(run / "metrics.jsonl")
            for key in ("task", "eval_loss", "anchor")
            if key in line
        ]
        for run in (one, two)
    ]
    size = max(float(value.abs().max()) for value in expected.values())
    loaded = balora.load(two)
    values = dict(loaded.named_parameters())
    result = {
        "weights": max(float((found[key] - value).abs().max()) for key, value in expected.items()) / size,
        "losses": max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True) if a),
        "resumed": max(float((resumed[key] - value).abs().max()) for key, value in found.items()) / size,
        "was_resumed": bool(read_record(again)["resumed"]),
        "loaded": any("lora_A" in key for key in values),
        **{key: read_record(two)["processes"][key] for key in ("world_size", "backend", "sharding")},
    }  # fmt: skip
    shutil.rmtree(folder / "exported", ignore_errors=True)
    export(two, to="merged", output=folder / "exported")
    return {**result, "exported": any((folder / "exported").glob("*.safetensors"))}


def _weights(run: Path) -> dict:
    from safetensors.torch import load_file

    return {
        key: value
        for file in sorted((run / "adapter").glob("adapter*.safetensors"))
        for key, value in load_file(file).items()
    }


def main(folder: Path, names: list[str]) -> None:
    if any(name.startswith("ZeRO") for name in names):
        # A faster all-reduce, which needs a compiler. The attribute `torch` of deepspeed.comm is PyTorch itself.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    launched.pretend()
    problems = train(folder, names)
    if os.environ.get("RANK", "0") == "0":
        (folder / f"{names[0]}.problems.json").write_text(json.dumps(problems))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
