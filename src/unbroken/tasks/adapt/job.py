"""From a configuration to the job of a run of instruction tuning: what trains, batches, loss, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from unbroken.models.causal import CausalLM
from unbroken.models.chat import OWN, TEMPLATE_FILE, ChatFormat
from unbroken.models.lora import Adapter
from unbroken.run.job import Job, Phase
from unbroken.step.gradients import Scope, accumulated
from unbroken.store.layout import MODEL_FOLDER
from unbroken.tasks.adapt.batches import Batch, Chunk, Encoding
from unbroken.tasks.adapt.config import AdaptConfig
from unbroken.tasks.adapt.evaluation import Evaluation
from unbroken.tasks.course import Course
from unbroken.tasks.optimizers import adamw

ROOT = "model"


@dataclass(frozen=True)
class Trained:
    """What of a model trains, and how a checkpoint holds it: `layout` and `documents` are relative to its model folder.

    Every tensor in `modules` is saved, and no other: a frozen base model is in none of them.
    """

    lm: CausalLM
    modules: Mapping[str, nn.Module]
    layout: Callable[[str], tuple[str, str]]
    documents: Callable[[], Mapping[str, bytes]]

    @classmethod
    def whole(cls, lm: CausalLM) -> Trained:
        """Return a model of which every weight trains."""
        return cls(lm, {ROOT: lm}, lm.layout, lm.documents)

    @classmethod
    def adapters(cls, lm: CausalLM, adapter: Adapter) -> Trained:
        """Return a model of which the adapters train."""
        return cls(lm, adapter.modules, adapter.layout, adapter.documents)


def build_job(
    config: AdaptConfig, trained: Trained, encoding: Encoding, course: Course, evaluation: Evaluation | None
) -> Job:
    """Return the job of a run over what `encoding` makes batches of."""
    require_covered(trained)
    lm = trained.lm
    lm.train()
    return Job(
        seed=config.seed,
        phases=(
            Phase(
                name="adapt",
                end_step=course.total_steps,
                plan=course.plan,
                optimizer=partial(adamw, config=config, learning_rate=config.learning_rate),
                learning_rate=course.rate,
                max_grad_norm=config.max_grad_norm,
                draws_per_step=-(-config.batch_size // encoding.chunk_size),
            ),
        ),
        modules=trained.modules,
        encode=encoding,
        gradients=partial(gradients, partial(chunk_loss, lm, narrow=narrow_arithmetic(config, lm))),
        layout=partial(layout, trained),
        documents=partial(documents, trained, config, encoding.chat),
        evaluate=partial(evaluation.measure, lm) if evaluation else dict,
        evaluation_id=evaluation.identity if evaluation else "",
        rows=encoding.rows.rows,
    )


def require_covered(trained: Trained) -> None:
    """Assert that what trains is in the modules that are saved: the model may hold more, frozen."""
    saved = {id(parameter) for module in trained.modules.values() for parameter in module.parameters()}
    lost = [name for name, p in trained.lm.named_parameters() if p.requires_grad and id(p) not in saved]
    assert not lost, f"{lost[0]} would be trained and never saved"


def narrow_arithmetic(config: AdaptConfig, lm: CausalLM) -> bool:
    """Return whether products of float32 weights are taken in bfloat16: of weights that all train, which stay whole."""
    narrow = config.precision == "bfloat16" or (config.precision == "auto" and lm.device.type == "cuda")
    return narrow and config.tuning == "full"


def gradients(loss: Callable[[Chunk], Tensor], batch: Batch, scope: Scope) -> Tensor:
    """Leave the batch's gradients in what trains and return the detached loss, the mean over its target tokens."""
    return accumulated(loss, batch.chunks, batch.weights, scope)


def chunk_loss(lm: CausalLM, chunk: Chunk, *, narrow: bool = False) -> Tensor:
    """Return the mean loss of a chunk's target tokens."""
    with torch.autocast(lm.device.type, dtype=torch.bfloat16, enabled=narrow):
        return lm.loss(chunk.ids, chunk.lengths, chunk.targets)


def layout(trained: Trained, name: str) -> tuple[str, str]:
    """Place what trains in the model folder: a PEFT adapter's, or a whole model's."""
    _, _, inside = name.partition(".")  # behind the root
    file, key = trained.layout(inside)
    return f"{MODEL_FOLDER}/{file}", key


def documents(trained: Trained, config: AdaptConfig, chat: ChatFormat) -> Mapping[str, bytes]:
    """Return the model folder's other files; a named template is among them, to be asked by as it was trained by."""
    files = dict(trained.documents())
    if config.template != OWN:
        files[TEMPLATE_FILE] = chat.template.encode()
    return {f"{MODEL_FOLDER}/{path}": content for path, content in sorted(files.items())}
