"""LoRA training of a causal language model against Hugging Face Trainer and PEFT: the same rows, the same steps."""
