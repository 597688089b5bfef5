"""Your own training loop, made unbroken: the engine of the tasks around a loop body that stays yours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unbroken.base.errors import ConfigError, DataError
from unbroken.base.fingerprint import canonical, digest, short_digest
from unbroken.plan.plan import Plan, steps_for
from unbroken.run import contract, environment
from unbroken.run.cadence import Cadence, SaveStrategy
from unbroken.run.engine import Engine, Settings
from unbroken.run.folder import RunFolder
from unbroken.run.job import Job, Phase
from unbroken.run.report import Ended, Reporter, plain
from unbroken.run.state import held_tensors
from unbroken.store import layout
from unbroken.store.run import read_run


class Loop:
    """A training loop that survives anything.

        loop = Loop("runs/mine", modules={"encoder": encoder, "head": head}, optimizer=optimizer,
                    data=rows, batch_size=32, num_epochs=3)
        for batch in loop.batches():
            loss = ...                 # your forward pass and loss
            loop.step(loss)            # backward, clipping, optimizer step, record, commit

    Started again after any interruption, the loop goes on from the last commit and ends with the tensors it would
    have ended with. Everything the optimizer touches must be in `modules`; what draws random numbers in the loop
    body through torch, Python's `random` or numpy's global generator repeats, because each step seeds them.

    `data` is any sequence; its rows are fingerprinted, or give `fingerprint`, a text that changes when they do.
    `collate` turns the list of a batch's rows into the batch (default: the list). `learning_rate` is a function of
    the step, counted from 0; without it the optimizer's own rates are kept, and restored. `extras` are other
    objects with `state_dict` and `load_state_dict` whose state JSON can hold (a scheduler, a counter).
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        modules: Mapping[str, nn.Module],
        optimizer: Optimizer,
        data: Sequence[Any],
        batch_size: int,
        num_epochs: float | None = None,
        max_steps: int | None = None,
        seed: int = 42,
        collate: Callable[[list[Any]], Any] = lambda rows: rows,
        learning_rate: Callable[[int], float] | None = None,
        max_grad_norm: float | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        evaluate: Callable[[], dict[str, float]] | None = None,
        eval_steps: int | None = None,
        extras: Mapping[str, Any] | None = None,
        fingerprint: str | None = None,
        save_steps: int | None = None,
        save_seconds: float | None = None,
        save_total_limit: int = 2,
        threads: int | None = None,
        report: Reporter = plain,
    ) -> None:
        if not len(data):
            raise DataError("the data are empty", next_step="give at least one row")
        if num_epochs is None and max_steps is None:
            raise ConfigError("a loop needs num_epochs or max_steps")
        environment.pin(threads or torch.get_num_threads())
        plan = Plan(len(data), batch_size, seed, drop_last, shuffle)
        self._optimizer = optimizer
        self._job = Job(
            seed=seed,
            phases=(
                Phase(
                    name="loop",
                    end_step=steps_for(plan, num_epochs, max_steps),
                    plan=plan,
                    optimizer=lambda trained: optimizer,
                    learning_rate=learning_rate,
                    max_grad_norm=max_grad_norm,
                ),
            ),
            modules=modules,
            encode=lambda ids, epoch: collate([data[int(index)] for index in ids]),
            gradients=None,
            layout=lambda name: place(modules, name),
            documents=lambda: documents(modules),
            evaluate=evaluate or dict,
            evaluation_id="loop" if evaluate else "",
            extras=extras or {},
        )
        asked = self._contract(fingerprint or row_fingerprint(data), len(data), plan)
        root = Path(output_dir)
        if read_run(root) is None:
            self._folder = RunFolder.create(root, asked, config=asked["config"], keep=save_total_limit)
        else:
            self._folder = RunFolder.open(root, keep=save_total_limit)
            contract.require_same(self._folder.contract, asked, run=str(root), origins={})
        strategy: SaveStrategy = "steps" if save_steps else "time" if save_seconds else "auto"
        settings = Settings(Cadence(strategy, save_steps, save_seconds), eval_steps, commit_first=True)
        self._engine = Engine(self._job, self._folder, settings, report)

    def batches(self) -> Iterator[Any]:
        """Yield the batch of every step that is still to do; `step(loss)` must follow each."""
        finished = self._folder.finished()
        if finished is not None:
            self._engine.report(finished)
            self._engine.ended = finished
        else:
            yield from self._engine.batches()
        self._folder.close()

    def step(self, loss: Tensor) -> float:
        """Finish the step: backward, clip, optimizer step, record. Returns the loss as a number.

        Raises `TrainingError` before any parameter moves if a gradient is not finite, and `CannotContinueError` if
        the journal holds this step with other results.
        """
        return self._engine.step(loss)

    @property
    def ended(self) -> Ended:
        """How the run stands after the loop: finished or stopped, at which step, with what proof."""
        return self._engine.ended

    @property
    def step_number(self) -> int:
        """How many steps are finished."""
        return self._engine.state.step

    def _contract(self, rows: str, num_rows: int, plan: Plan) -> contract.Contract:
        phase = self._job.phases[0]
        shapes = [[name, list(t.shape), str(t.dtype)] for name, t in held_tensors(self._job.modules)]
        groups = [
            {key: value for key, value in group.items() if isinstance(value, bool | int | float | str) and key != "lr"}
            for group in self._optimizer.param_groups
        ]
        return {
            "config": {
                "task": "loop",
                "plan": plan.fingerprint(),
                "steps": phase.end_step,
                "max_grad_norm": phase.max_grad_norm,
                "optimizer": type(self._optimizer).__name__,
                "groups": groups,
                "threads": torch.get_num_threads(),
            },
            "data": {"digest": rows, "examples": num_rows},
            "model": {"shapes": digest(canonical(shapes))},
        }


def row_fingerprint(data: Sequence[Any]) -> str:
    """Return a digest of all rows in order. Raises `DataError` for a row it cannot read the content of."""
    return digest(b"".join(short_digest(row_bytes(data[index])).to_bytes(8, "little") for index in range(len(data))))


def row_bytes(value: Any) -> bytes:
    """Return bytes that tell rows apart: JSON values, arrays and tensors, and containers of them."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    if hasattr(value, "tobytes"):
        return b"a%s" % value.tobytes()
    if isinstance(value, Mapping):
        return b"{%s}" % b",".join(canonical(str(key)) + b":" + row_bytes(value[key]) for key in sorted(value))
    if isinstance(value, list | tuple):
        return b"[%s]" % b",".join(map(row_bytes, value))
    if value is None or isinstance(value, str | int | float | bool):
        return canonical(value)
    raise DataError(
        f"rows of {type(value).__name__} cannot be fingerprinted",
        why="a change of the data could not be found out",
        next_step="give Loop(fingerprint=...), a text that changes whenever the data do",
    )


def place(modules: Mapping[str, nn.Module], name: str) -> tuple[str, str]:
    """Return where a tensor lives: an `Encoder` as a folder the ecosystem loads, any other module as one file."""
    root, _, rest = name.partition(".")
    module: Any = modules[root]
    if hasattr(module, "layout") and hasattr(module, "documents"):
        file, key = module.layout(rest)
        return f"{layout.MODEL_FOLDER}/{root}/{file}", key
    return f"{layout.MODEL_FOLDER}/{root}{layout.WEIGHTS_SUFFIX}", rest


def documents(modules: Mapping[str, nn.Module]) -> dict[str, bytes]:
    """Return the files beside the weights of every `Encoder` among the modules."""
    found: dict[str, bytes] = {}
    for root, module in modules.items():
        render: Any = getattr(module, "documents", None)
        if render is not None and hasattr(module, "layout"):
            found |= {f"{layout.MODEL_FOLDER}/{root}/{path}": content for path, content in render().items()}
    return found
