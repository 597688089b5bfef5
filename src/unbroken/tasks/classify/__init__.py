"""Few-shot classification: an encoder taught what belongs together, then a head over its embeddings."""
