"""What is compared: one module for each part, each with `run(context) -> Result`."""
