"""Instruction tuning of causal language models."""
