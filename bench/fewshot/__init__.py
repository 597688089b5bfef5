"""Few-shot classification against SetFit: the same drawn examples, the same model, the same test rows."""
