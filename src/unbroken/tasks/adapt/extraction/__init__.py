"""Labelled text as questions to a language model, and its answers as labels with scores."""
