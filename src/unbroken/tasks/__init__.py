"""Kinds of learning: each turns its configuration into jobs, evaluates what was learned, and exports it."""
