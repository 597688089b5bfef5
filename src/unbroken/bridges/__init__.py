"""sentence-transformers, SetFit, FlagEmbedding, DeepKE, Hugging Face checkpoints."""
