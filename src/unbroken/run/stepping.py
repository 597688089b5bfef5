"""Steps in memory: examples drawn, random numbers seeded, the update made, its record. Nothing here knows a disk."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from unbroken.base.fingerprint import digest, json_number
from unbroken.base.seeds import chunk_seed, derive
from unbroken.plan.plan import Draw
from unbroken.run.job import Job
from unbroken.run.state import State
from unbroken.step.generators import seeded
from unbroken.step.update import gradient_norm, update


class Steps:
    """The steps of a job, each a function of the state before it: training, verifying and the canary share this.

    `state` is the state before the first step until `state.restore` puts another in its place.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.state = State.initial(job)
        self._draw_key = derive(job.seed, "step")

    def draw(self) -> Draw:
        """Return the examples of the step that follows `state.step` finished ones."""
        index, phase = self.job.phase_at(self.state.step)
        return phase.plan.draw(self.state.step - self.job.first_step(index))

    def scope(self, chunk: int) -> AbstractContextManager[None]:
        """Return the context in which chunk number `chunk` of that step draws its random numbers."""
        number = self.state.step
        index, phase = self.job.phase_at(number)
        counter = sum(
            (before.end_step - self.job.first_step(i)) * before.draws_per_step
            for i, before in enumerate(self.job.phases[:index])
        )
        counter += (number - self.job.first_step(index)) * phase.draws_per_step + chunk
        return seeded(chunk_seed(self._draw_key, counter))

    def finish(self, drawn: Draw, loss: Tensor) -> dict[str, Any]:
        """Update with the gradients that lie in the parameters, count the step, and return its record.

        A record holds only what is deterministic: two runs of one configuration hold the same ones. Raises
        `TrainingError` before any parameter moves if a gradient is not finite.
        """
        state = self.state
        index, phase = self.job.phase_at(state.step)
        rate = state.optimizer.param_groups[0]["lr"]
        if phase.learning_rate is not None:
            rate = phase.learning_rate(state.step - self.job.first_step(index))
        norm = update(state.optimizer, state.trained, rate, phase.max_grad_norm)
        state.advance()
        return {
            "kind": "step",
            "n": state.step,
            "ids": digest(drawn.ids.astype("<i8").tobytes()),
            "loss": json_number(float(loss.detach())),
            "grad_norm": json_number(norm),
            "learning_rate": float(rate),
        }

    def encode(self, drawn: Draw) -> Any:
        """Return the batch of the examples drawn for the next step; to be called in `scope(0)`."""
        _, phase = self.job.phase_at(self.state.step)
        return (phase.encode or self.job.encode)(drawn.ids, drawn.epoch)

    def gradients(self, batch: Any) -> Tensor:
        """Leave the gradients of a batch of the next step in the parameters and return the detached loss."""
        _, phase = self.job.phase_at(self.state.step)
        gradients = phase.gradients or self.job.gradients
        assert gradients is not None, "a job without gradients is a user's own loop"
        return gradients(batch, self.scope)

    def make(self) -> dict[str, Any]:
        """Make one whole step and return its record."""
        drawn = self.draw()
        return self.finish(drawn, self._gradients(drawn))

    def foresee(self) -> dict[str, Any]:
        """Return the number, loss and gradient norm of the next step without making it; no tensor changes."""
        loss = self._gradients(self.draw())
        norm = gradient_norm([p.grad for p in self.state.trained.values() if p.grad is not None])
        self.state.optimizer.zero_grad(set_to_none=True)
        return {"n": self.state.step + 1, "loss": json_number(float(loss)), "grad_norm": json_number(float(norm))}

    def _gradients(self, drawn: Draw) -> Tensor:
        with self.scope(0):
            batch = self.encode(drawn)
        return self.gradients(batch)
