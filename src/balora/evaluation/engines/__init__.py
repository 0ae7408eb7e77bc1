"""Engines that answer prompts or classify rows: transformers and vLLM."""
