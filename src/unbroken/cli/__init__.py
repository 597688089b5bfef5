"""Verbs: parse, call, print. No logic of its own."""
