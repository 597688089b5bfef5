"""One update: losses, cached gradients, accumulation, clipping, schedule.

Tensors in, tensors out: no files, no clock, and no state between calls.
"""
