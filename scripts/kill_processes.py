"""Kill each process of a run of two at each of its phases, and say how long the other one lasts and what the user reads.

`python scripts/kill_processes.py` starts `balora train` on the CPU once for each phase and process (some minutes), and prints a
line for each: seconds from the kill to the end of the command, and the messages. It ends with status 1 if a run lasted
more than 30 seconds or did not end with one sentence. Arguments are the phases to try; default all of `failing.POINTS`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import failing  # noqa: E402
import launched  # noqa: E402

LIMIT = 30.0


def kill(folder: Path, point: str, rank: int) -> tuple[float, list[str], str]:
    """Return the seconds from the kill to the end of all processes, the messages, and the reason that ``run.json`` keeps."""
    name, stamp = f"{point}-{rank}", folder / f"{point}-{rank}.killed"
    config = failing.write_config(folder, point, name)
    try:
        done = launched.launch(
            rank,
            point,
            "killed",
            "train",
            config,
            script=Path(failing.__file__),
            seconds=400,
            BALORA_FAILED_AT=str(stamp),
        )
    except subprocess.TimeoutExpired:
        return float("inf"), ["it did not end"], ""
    ended = time.time()
    lines = [line for line in done.stderr.splitlines() if line.startswith("balora:")]
    record = folder / name / "run.json"
    reason = json.loads(record.read_text()).get("error") if record.is_file() else None
    seconds = ended - float(stamp.read_text()) if stamp.is_file() else float("nan")
    return seconds, lines if done.returncode else ["the command ended with status 0"], reason or ""


def main(points: list[str]) -> int:
    """Try the phases; return the exit status."""
    worst = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        launched.write_inputs(folder)
        for point in points:
            for rank in (0, 1):
                seconds, lines, reason = kill(folder, point, rank)
                good = seconds <= LIMIT and len(lines) == 1 and f"Process {rank} of 2" in lines[0]
                worst |= not good
                verdict = "as it should be" if good else "NOT AS IT SHOULD BE"
                print(
                    f"{point} rank {rank}: {seconds:.1f} s at load {os.getloadavg()[0]:.0f}, {verdict}; run.json: {reason}"
                )
                print("\n".join(f"    {line}" for line in lines), flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(failing.POINTS)))
