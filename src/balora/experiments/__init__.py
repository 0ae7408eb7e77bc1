"""Experiments that need several runs: comparisons, the paper's tables and figures, and the quickstart."""

import logging

# The processes of a comparison import bitsandbytes (through peft) without the command, which silences it as well.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
