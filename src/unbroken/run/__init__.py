"""The loop, its state, the contract, stopping: the only place that knows plan, step and store."""
