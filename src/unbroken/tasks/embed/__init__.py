"""Embedding models: texts that mean the same come to lie close together."""
