"""What is built from several runs: comparisons, the paper's experiments, the quickstart's story."""
