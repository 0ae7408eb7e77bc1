"""Experiments that need several runs: comparisons, the paper's tables and figures, and the quickstart."""
