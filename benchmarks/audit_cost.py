"""Cost of `balora audit` against the two forwards that it cannot avoid, and its memory against one model.

`python benchmarks/audit_cost.py MODEL --text FILE` makes a LoRA for MODEL (or takes `--adapter`) and prints a line of JSON.

Time: in one process and in turn, the forwards of base and tuned model over the documents, in the audit's batches and with all
logits, and a whole audit with its loading, its weights and its files; medians of the repeats and the machine's load beside them.
Memory: the greatest resident size of a process that loads the adapted model and runs the forwards, and of one that audits.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Measure, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id of a causal model")
    parser.add_argument("--text", required=True, help="file with documents, as for balora audit")
    parser.add_argument("--adapter", help="folder of a peft adapter (default: a LoRA of rank 8 on all linear layers)")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip", choices=("time", "memory"), help="what not to measure")
    parser.add_argument("--only", choices=("load", "forwards", "audit"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        if given.only is not None:
            one(given, Path(work))
            return
        if given.adapter is None:
            given.adapter = str(make_adapter(given.model, Path(work) / "adapter"))
        found: dict[str, Any] = {"model": given.model, "documents": given.documents, "tokens": given.tokens}
        found |= {"dtype": given.dtype, "load_before": os.getloadavg()[0], "cores": os.cpu_count()}
        if given.skip != "memory":
            found |= memory(given)
        if given.skip != "time":
            found |= times(given, Path(work))
        print(json.dumps({**found, "load_after": os.getloadavg()[0]}))


def make_adapter(model: str, folder: Path) -> Path:
    """Write a LoRA that changes the model a little."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(model)
    adapted = get_peft_model(plain, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.002)
    adapted.peft_config["default"].base_model_name_or_path = (
        str(Path(model).resolve()) if Path(model).exists() else model
    )
    adapted.save_pretrained(folder)
    return folder


class Forwards:
    """The forwards of both models over the documents of an audit, in its batches."""

    def __init__(self, given: argparse.Namespace) -> None:
        from balora.auditing.documents import read_documents
        from balora.auditing.model_pair import ModelPair
        from balora.auditing.options import AuditOptions
        from balora.auditing.token_pass import batches

        self.pair = ModelPair(given.adapter, None, AuditOptions(dtype=given.dtype))
        with self.pair.side("base") as loaded:
            self.rows = read_documents(
                given.text, {}, loaded, tokens=given.tokens, count=given.documents, seed=42
            ).rows  # fmt: skip
        self.batches = batches(self.rows, AuditOptions().batch_size)

    def run(self) -> None:
        """Run both models."""
        from balora.anchoring.rows import collate
        from balora.auditing.model_pair import SIDES

        for side in SIDES:
            with self.pair.side(side) as loaded:
                for batch in self.batches:
                    inputs = collate([self.rows[i] for i in batch], 0, causal=True)
                    inputs.pop("labels")
                    loaded.model(**{name: tensor.to(loaded.device) for name, tensor in inputs.items()}, use_cache=False)


def run_audit(given: argparse.Namespace, output: Path, lines: list[str]) -> None:
    """Audit into a new folder."""
    import balora

    settings = {"documents": given.documents, "tokens": given.tokens, "dtype": given.dtype}
    balora.audit(given.adapter, text=given.text, output=output, say=lines.append, **settings)


def times(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Time forwards and audit in turn."""
    forwards = Forwards(given)
    clocks: dict[str, list[tuple[float, float]]] = {"forwards": [], "audit": []}
    lines: list[str] = []
    for number in range(given.repeats):
        for name in clocks:
            wall, cpu = time.perf_counter(), time.process_time()
            if name == "forwards":
                forwards.run()
            else:
                lines.clear()
                run_audit(given, work / f"audit-{number}", lines)
            clocks[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            print(f"{name} {number}: {clocks[name][-1][0]:.1f} s, {clocks[name][-1][1]:.1f} s of CPU", file=sys.stderr)
    found: dict[str, Any] = {
        "predicted_tokens": sum(len(row["input_ids"]) - 1 for row in forwards.rows),
        "parts": lines,
    }
    for at, clock in enumerate(("wall", "cpu")):
        values = {name: statistics.median(pair[at] for pair in pairs) for name, pairs in clocks.items()}
        found |= {f"{name}_{clock}_s": round(value, 2) for name, value in values.items()}
        ratios = [a[at] / f[at] for a, f in zip(clocks["audit"], clocks["forwards"], strict=True)]
        found[f"ratio_{clock}"] = round(statistics.median(ratios), 3)
    return found


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """Measure the greatest resident size of separate processes, in MiB."""
    found: dict[str, Any] = {}
    for name in ("load", "forwards", "audit"):
        shared = ["--text", given.text, "--adapter", given.adapter, "--documents", str(given.documents)]
        command = [sys.executable, __file__, given.model, *shared, "--tokens", str(given.tokens)]
        done = subprocess.run(
            [*command, "--dtype", given.dtype, "--only", name], check=True, capture_output=True, text=True
        )
        found[f"{name}_mib"] = float(done.stdout.split()[-1])
        print(f"{name}: {found[f'{name}_mib']:.0f} MiB", file=sys.stderr)
    found["memory_ratio"] = round(found["audit_mib"] / found["forwards_mib"], 3)
    found["memory_ratio_without_logits"] = round(found["audit_mib"] / found["load_mib"], 3)
    return found


def one(given: argparse.Namespace, work: Path) -> None:
    """Do one thing in this process and print its greatest resident size."""
    if given.only == "audit":
        run_audit(given, work / "audit", [])
    else:
        forwards = Forwards(given)
        if given.only == "forwards":
            forwards.run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
