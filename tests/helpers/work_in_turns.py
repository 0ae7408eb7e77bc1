"""Work that two processes divide: the adapter's start, and the teacher of a classifier and of anchors.

Run by test_divided_work.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed as dist

import balora
from balora.anchoring.teacher import BATCH, AnchorTeacher
from balora.losses import Logits
from balora.losses.collectives import agreed
from balora.methods.init import residual_init
from balora.turns import divided_among_processes
from processes import in_two_processes
from small_runs import flat, trainer
from tiny import labelled_rows, tiny_bert, tiny_llama
from two_processes import ROWS, adapted


def start(divided: bool) -> tuple[int, torch.Tensor]:
    """Return the number of decompositions in this process, and the adapter's values."""
    made, decompose = [], residual_init.principal_factors

    def counted(*args, **kwargs):
        made.append(1)
        return decompose(*args, **kwargs)

    residual_init.principal_factors = counted
    try:
        if divided:
            with divided_among_processes():
                model = balora.adapt(tiny_llama(), method="pissa", rank=4)
        else:
            model = balora.adapt(tiny_llama(), method="pissa", rank=4)
    finally:
        residual_init.principal_factors = decompose
    return len(made), flat(model)


def classify(folder: Path, processes: int) -> tuple[int, int, torch.Tensor]:
    """Train two epochs; return the rows that the teacher saw in this process, the cached rows, and the weights."""
    run = trainer(
        adapted(tiny_bert), folder, config=ROWS, rows=labelled_rows(12), max_steps=6, optim="sgd",
        per_device_train_batch_size=4 // processes, **({"ddp_backend": "gloo"} if processes > 1 else {}),
    )  # fmt: skip
    seen: list[int] = []
    run.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])) if not module.training else None,
        with_kwargs=True,
    )
    run.train()
    return sum(seen), len(run.logit_cache), flat(run.model)


def hold(processes: int) -> tuple[int, list[float]]:
    """Return the batches that this process computed, and the teacher's outputs."""
    made = []

    def compute(rows):
        made.append(rows)
        return Logits(torch.tensor([[float(row), 1.0] for row in rows]))

    teacher = AnchorTeacher(compute, [1] * (5 * BATCH + 3), memory=10**9, temperature=1.0, processes=processes)
    return len(made), teacher.at(range(5 * BATCH + 3), torch.device("cpu")).logits_MV[:, 0].tolist()


def work(rank: int, folder: Path) -> None:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    seen, cached, weights = classify(folder / "two", 2)  # starts the process group
    made, values = start(divided=True)
    alone, _ = start(divided=False)
    batches, outputs = hold(2)
    answers = [agreed(True, torch.device("cpu")), agreed(rank == 0, torch.device("cpu"))]
    torch.save({"weights": weights, "values": values}, folder / f"{rank}.pt")
    report = {"seen": seen, "cached": cached, "made": made, "alone": alone, "batches": batches, "outputs": outputs}
    (folder / f"{rank}.json").write_text(json.dumps({**report, "answers": answers}))
    dist.barrier()


def main(folder: Path) -> None:
    in_two_processes(work, folder)
    reports = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    tensors = [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
    made, values = start(divided=False)
    seen, cached, weights = classify(folder / "one", 1)
    _, outputs = hold(1)
    report = {
        "reports": reports,
        "one": {"made": made, "seen": seen, "cached": cached, "outputs": outputs},
        "values": [float((t["values"] - values).abs().max()) for t in tensors],
        "weights": [float((t["weights"] - weights).abs().max()) for t in tensors],
    }
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
