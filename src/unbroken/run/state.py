"""Everything that survives a stop: the step, the tensors the optimizer touches, the optimizer's own tensors.

What is not here follows from (configuration, data, step): order, learning rate, random draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from unbroken.base.errors import CannotContinueError, ConfigError
from unbroken.base.fingerprint import canonical
from unbroken.run.job import Job, Phase
from unbroken.step.adamw import Optimizer
from unbroken.store import layout
from unbroken.store.checkpoints import Image, Placed, Restored

ALIGNMENT = 64
OPTIMIZER_FILE = "optimizer.safetensors"


@dataclass
class State:
    """The state of a run in memory. `step` counts finished steps and is the only cursor there is."""

    job: Job
    step: int
    phase: int
    optimizer: Optimizer
    trained: dict[str, Parameter]
    movable: dict[str, bool]
    best: dict[str, Any] | None = None

    @classmethod
    def initial(cls, job: Job) -> State:
        """Return the state before the first step, every tensor aligned.

        Raises `ConfigError` if something would be trained that no checkpoint holds.
        """
        align(job.modules)
        movable = {name: tensor.requires_grad for name, tensor in held_tensors(job.modules)}
        trained, optimizer = begin_phase(job, 0, movable)
        return cls(job, step=0, phase=0, optimizer=optimizer, trained=trained, movable=movable)

    def advance(self) -> None:
        """Count one finished step; at the end of a phase, begin the next one with a new optimizer."""
        self.step += 1
        self._enter(self.job.phase_at(self.step)[0])

    def _enter(self, phase: int) -> None:
        if phase != self.phase:
            self.phase = phase
            self.trained, self.optimizer = begin_phase(self.job, phase, self.movable)

    def image(self) -> Image:
        """Return what a commit writes now; tensors are the live ones.

        Only an update changes parameters and the optimizer's tensors, unless the loop's body is the user's, who may
        change anything at any time. A forward pass may change buffers.
        """
        ours = self.job.gradients is not None
        self.job.write_back()  # no commit is copying: the update that it writes back has waited for that
        tensors = {
            name: Placed(*self.job.layout(name), tensor, steady=ours and isinstance(tensor, Parameter))
            for name, tensor in held_tensors(self.job.modules)
        }
        numbers: dict[str, dict[str, Any]] = {}
        for name, parameter in self.trained.items():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    key = f"{name}/{slot}"
                    tensors[f"optimizer/{key}"] = Placed(OPTIMIZER_FILE, key, value, steady=ours)
                else:
                    numbers.setdefault(name, {})[slot] = value
        state = {
            "step": self.step,
            "phase": self.job.phases[self.phase].name,
            "optimizer_numbers": numbers,
            "groups": group_options(self.optimizer, self.trained),
            "extras": {name: extra.state_dict() for name, extra in self.job.extras.items()},
        }
        return Image(self.step, tensors, {**self.job.documents(), **self._unfinished()}, state)

    def _unfinished(self) -> dict[str, bytes]:
        """Return the file that says that the model lacks what a later phase makes; none where it does not."""
        _, phase = self.job.phase_at(max(0, self.step - 1))
        if phase.completes:
            return {}
        return {f"{layout.MODEL_FOLDER}/{layout.UNFINISHED_MODEL}": canonical({"phase": phase.name, "step": self.step})}

    def restore(self, restored: Restored) -> None:
        """Put a verified checkpoint into the live modules and optimizer.

        Raises `CannotContinueError`, before anything is touched, unless names, shapes and dtypes agree both ways, and
        also if the checkpoint holds a tensor twice and differently.
        """
        state = restored.state
        held = dict(held_tensors(self.job.modules))
        saved = {name: tensor for name, tensor in restored.tensors.items() if not name.startswith("optimizer/")}
        require_same(held, saved, restored.step)
        self._enter(self.job.phase_at(restored.step)[0])
        slots = self._optimizer_slots(restored)
        with torch.no_grad():
            for name, tensor in saved.items():
                held[name].copy_(tensor)
        if self.job.write_back():
            raise CannotContinueError(
                f"the tensors of checkpoint {restored.step} do not belong together",
                why="what was trained of a table is not what the model's table holds: it was changed after it was "
                "made, or trained on other data",
                next_step="`unbroken verify RUN` makes its steps again and names what differs",
            )
        self.step = restored.step
        self._restore_optimizer(restored, slots)
        for name, extra in self.job.extras.items():
            extra.load_state_dict(state["extras"][name])

    def _optimizer_slots(self, restored: Restored) -> dict[str, dict[str, Any]]:
        """Return what the checkpoint holds for each parameter, once it is known to fit the optimizer of its phase."""
        slots: dict[str, dict[str, Any]] = {}
        for path, tensor in restored.tensors.items():
            if path.startswith("optimizer/"):
                name, _, slot = path.removeprefix("optimizer/").rpartition("/")
                slots.setdefault(name, {})[slot] = tensor
        for name, numbers in restored.state["optimizer_numbers"].items():
            slots.setdefault(name, {}).update(numbers)
        unknown = sorted(slots.keys() - self.trained.keys())
        if unknown:
            raise CannotContinueError(
                f"checkpoint {restored.step} holds optimizer state for {unknown[0]}, which this run does not train"
            )
        if len(restored.state["groups"]) != len(self.optimizer.param_groups):
            raise CannotContinueError(
                f"checkpoint {restored.step} holds {len(restored.state['groups'])} parameter groups of the optimizer, "
                f"which has {len(self.optimizer.param_groups)} now",
                next_step="give the optimizer all its groups from the start; a rate of 0 keeps one still",
            )
        return slots

    def _restore_optimizer(self, restored: Restored, slots: dict[str, dict[str, Any]]) -> None:
        ordered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        names = {id(parameter): name for name, parameter in self.trained.items()}
        packed = self.optimizer.state_dict()
        packed["state"] = {
            index: slots[names[id(parameter)]]
            for index, parameter in enumerate(ordered)
            if names[id(parameter)] in slots
        }
        for group, options in zip(packed["param_groups"], restored.state["groups"], strict=True):
            for key, value in options.items():
                if key != "names":
                    group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        self.optimizer.load_state_dict(packed)
        for parameter in ordered:  # torch casts slots to the parameter's type, also where the optimizer keeps another
            for slot, value in slots.get(names[id(parameter)], {}).items():
                if isinstance(value, Tensor) and self.optimizer.state[parameter][slot].dtype != value.dtype:
                    self.optimizer.state[parameter][slot] = value.to(parameter.device)


def begin_phase(job: Job, index: int, movable: Mapping[str, bool]) -> tuple[dict[str, Parameter], Optimizer]:
    """Freeze what phase `index` does not train, build its optimizer over the rest, and return both.

    A phase that does not say trains what was `movable` when the run began, whatever the phases before it froze.
    What counts as trained is what the optimizer holds: only that has its gradients measured, clipped and released.
    """
    phase: Phase = job.phases[index]
    parameters = {name: p for name, p in held_tensors(job.modules) if isinstance(p, Parameter)}
    for name, parameter in parameters.items():
        parameter.requires_grad_(movable[name] if phase.trains is None else phase.trains(name))
    moved = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    if not moved:
        raise ConfigError(f"phase '{phase.name}' has nothing to train")
    optimizer = phase.optimizer(moved)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    known = {id(parameter) for parameter in parameters.values()}
    strangers = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in known]
    if strangers:
        shapes = ", ".join(str(tuple(parameter.shape)) for parameter in strangers[:3])
        raise ConfigError(
            f"the optimizer holds {len(strangers)} parameters ({shapes}) that belong to none of the modules given",
            why="they would be trained but never saved",
            next_step="pass every module that is trained",
        )
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in held}, optimizer


def held_tensors(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield (fully qualified name, tensor) for every parameter and persistent buffer, shared ones once."""
    seen: set[int] = set()
    for root, module in modules.items():
        own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        live = dict(module.named_parameters(remove_duplicate=False)) | dict(
            module.named_buffers(remove_duplicate=False)
        )
        for name in module.state_dict(keep_vars=True):
            tensor = live.get(name)
            if tensor is None:
                raise ConfigError(
                    f"module '{root}' keeps '{name}' in its state_dict, but it is no parameter or buffer",
                    why="it could not be restored exactly",
                )
            if id(tensor) in own and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{root}.{name}", tensor


def require_same(held: Mapping[str, Tensor], saved: Mapping[str, Tensor], step: int) -> None:
    """Raise `CannotContinueError` unless both sides have the same names, shapes and dtypes."""
    for name in sorted(held.keys() ^ saved.keys()):
        where = "is missing from" if name in held else "is only in"
        raise CannotContinueError(
            f"tensor '{name}' {where} checkpoint {step}", why="the model is built differently now"
        )
    for name, tensor in held.items():
        if tensor.shape != saved[name].shape or tensor.dtype != saved[name].dtype:
            raise CannotContinueError(
                f"tensor '{name}' is {tuple(saved[name].shape)} {saved[name].dtype} in checkpoint {step}, "
                f"but {tuple(tensor.shape)} {tensor.dtype} in the model"
            )


def align(modules: Mapping[str, nn.Module]) -> None:
    """Move every CPU tensor into storage aligned to 64 bytes.

    Matrix products depend on the address modulo 64 in their last bits; memory-mapped weights come at any address.
    """
    for _, tensor in held_tensors(modules):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
        assert tensor.device.type != "cpu" or tensor.data_ptr() % ALIGNMENT == 0


def group_options(optimizer: Optimizer, trained: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """Return each parameter group's options and the names in it; options JSON cannot hold are left out."""
    names = {id(parameter): name for name, parameter in trained.items()}
    groups = []
    for group in optimizer.param_groups:
        options = {key: _plain(value) for key, value in group.items() if key != "params"}
        options = {key: value for key, value in options.items() if value is not NotImplemented}
        groups.append(options | {"names": [names[id(parameter)] for parameter in group["params"]]})
    return groups


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else NotImplemented
