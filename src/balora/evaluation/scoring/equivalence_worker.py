"""The other end of `equivalence`: a program that reads pairs of answers and says whether they are equal.

It runs as a script, so that it starts with math-verify alone and not with torch.
"""

from __future__ import annotations

import json
import logging
import resource
import sys

MEMORY = 2 * 2**30


def equal(truth: str, found: str) -> bool:
    """Whether math-verify takes the two for the same."""
    from math_verify import parse, verify

    parsed = [parse(f"${text.strip().strip('$')}$", parsing_timeout=None) for text in (truth, found)]
    return bool(verify(*parsed, timeout_seconds=None))


def main() -> None:
    """Answer line by line until the input ends."""
    logging.disable(logging.CRITICAL)  # that its own time-outs are off: the process around us has one
    equal("1", "2")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        pair = json.loads(line)
        try:
            answer = equal(pair["truth"], pair["found"])
        except Exception:  # whatever a parser makes of nonsense, it is not the answer
            answer = False
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
