"""The command under torchrun, in two processes on the CPU.

`pretend` makes accelerate shard: it does so on accelerators only. As a script, this file is the command with that pretence.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

import balora

FSDP = {"fsdp": True, "fsdp_config": {"version": 2}, "ddp_backend": "gloo"}


def write_inputs(folder: Path, rows: int = 22) -> None:
    """Write a tiny model of each task, and data, into a folder."""
    from tiny import tiny_bert, tiny_llama, tiny_t5, tiny_tokenizer

    for name, model in (("llama", tiny_llama(tie_word_embeddings=False)), ("bert", tiny_bert()), ("t5", tiny_t5())):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    values = [
        {"question": f"what is {n} plus {n % 5}?", "answer": f"it is {n + n % 5}.", "label": "abc"[n % 3]}
        for n in range(rows)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    (folder / "anchors.txt").write_text("\n\n".join(f"a line about {n} things, and one more" for n in range(20)))


TASKS = {
    "generation": {"model": "llama", "data": {"prompt": "question", "response": "answer", "max_length": 64}},
    "seq2seq": {"model": "t5", "data": {"prompt": "question", "response": "answer", "max_length": 64}},
    "classification": {"model": "bert", "data": {"text": "question", "label": "label", "max_length": 64}},
}


def write_config(folder: Path, output: str, task: str = "generation", training: dict | None = None, **sections) -> Path:
    """Write the config of a run of three steps of eight rows; the third step lacks rows."""
    kind = TASKS[task]
    values = {
        "model": str(folder / kind["model"]),
        "task": task,
        "data": {"train": str(folder / "train.jsonl"), "eval": 0.15, **kind["data"]},
        "method": {"name": "balora", "rank": 4},
        "training": {
            "num_train_epochs": 1, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "logging_steps": 1,
            "save_steps": 2, "use_cpu": True, "learning_rate": 1e-3, "disable_tqdm": True, "eval_strategy": "steps",
            "eval_steps": 2, "report_to": [], "adam_epsilon": 1e-3, **(training or {}),
        },
        "output": str(folder / output),
        **sections,
    }  # fmt: skip
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def launch(
    *arguments: object, script: Path | None = None, processes: int = 2, python: str = sys.executable, seconds: float = 240,
    **environment: str,
) -> subprocess.CompletedProcess:  # fmt: skip
    """Run the command, or a script, under torchrun."""
    paths = [
        str(Path(balora.__file__).resolve().parents[1]),
        str(Path(__file__).parent),
        os.environ.get("PYTHONPATH", ""),
    ]
    what = ["-m", "balora"] if script is None else [str(script)]
    return subprocess.run(
        [python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *what]
        + [str(argument) for argument in arguments],
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment,
        },
        capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip


def pretend() -> None:
    """Let accelerate believe that the processes have accelerators."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    import balora.training.run as run

    make = run.training_arguments

    def pretending(config):
        arguments = make(config)
        if arguments.fsdp and arguments.device.type == "cpu":
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return arguments

    run.training_arguments = pretending
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        # DeepSpeed runs on the CPU. accelerate asks for the backend of an accelerator first.
        PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


if __name__ == "__main__":
    from balora.cli.main import main

    pretend()
    main()
