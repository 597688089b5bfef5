"""Text to vectors: token ids, packed encoding, pooling, and the folder formats of the ecosystem."""
