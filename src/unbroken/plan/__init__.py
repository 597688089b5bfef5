"""Which examples, in which order: integer arithmetic on numpy, and the rows it counts. No torch."""
