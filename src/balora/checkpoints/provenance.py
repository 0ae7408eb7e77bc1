"""Provenance of a result: versions, machine, commit and time. Written beside every number that balora reports."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("balora", "torch", "transformers", "peft", "accelerate", "datasets", "trl")


def provenance() -> dict[str, Any]:
    """Return versions, hardware, the time (UTC), and the commit if balora runs from a git checkout."""
    processor = _proc_value("/proc/cpuinfo", "model name") or platform.machine()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "hardware": {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "commit": _commit(),
    }


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def peak_memory_mib() -> float:
    """Return the peak memory of this process in MiB: of the GPU if there is one, else the resident size."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    # The kernel's count for this program alone. `ru_maxrss` includes the peak of the process that started it.
    peak = _proc_value("/proc/self/status", "VmHWM")
    if peak is not None:
        return int(peak.split()[0]) / 1024
    import resource  # absent on Windows, which offers no resident peak either

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _proc_value(path: str, name: str) -> str | None:
    """Return the first value that a file of the kernel gives under this name, or None."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines() if Path(path).is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _commit() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # An installed copy may be inside another project's repository, whose commit says nothing about balora.
        if not (Path(git("rev-parse", "--show-toplevel")) / "src" / "balora").is_dir():
            return None
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
