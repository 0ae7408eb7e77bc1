"""What is built from several runs: the quickstart's story."""
