"""State to disk and back: whole, checked, or not at all."""
