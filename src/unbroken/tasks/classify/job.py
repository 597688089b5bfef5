"""From a configuration to the job of a classification run: the encoder's phase, the head's phase, one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from unbroken.base.fingerprint import canonical, digest
from unbroken.models.arena import Arena, open_arena
from unbroken.models.classifying import ClassifierSettings, classifier_documents, classifier_layout
from unbroken.models.encoder import Encoder
from unbroken.models.vocabulary import use_active_rows, used_ids
from unbroken.run.job import Job, Phase
from unbroken.step.gradients import Scope, cached_gradients
from unbroken.store.layout import EXTRA_FILE
from unbroken.tasks.classify.batches import Batch, Encoding, Features
from unbroken.tasks.classify.config import ClassifyConfig
from unbroken.tasks.classify.course import courses_of
from unbroken.tasks.classify.data import LabelledTexts
from unbroken.tasks.classify.evaluation import Evaluation
from unbroken.tasks.classify.heads import BODY, HEAD, HeadTraining
from unbroken.tasks.classify.losses import Loss, body_loss
from unbroken.tasks.classify.teacher import lesson
from unbroken.tasks.optimizers import adamw


def build_job(
    config: ClassifyConfig,
    encoder: Encoder,
    data: LabelledTexts,
    evaluation: Evaluation | None,
    cache: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> Job:
    """Return the job of a classification run over `data`; tokenises into `cache` what is not there yet."""
    content = digest(canonical([data.digest, "text", data.chosen.tolist()]))
    targets, taught_NE = lesson(config, data, cache, content, encoder.device)
    courses = courses_of(config, targets)
    arena = open_arena(
        cache,
        content=content,
        texts=lambda: [data.texts[row] for row in data.chosen],
        encoder=encoder,
        prompt=encoder.resolve_prompt(),  # with which it will be used
        on_progress=on_progress,
    )
    prepare_encoder(config, encoder, arena)
    settings = settings_of(config, encoder, data)
    head = settings.head().to(encoder.device)
    if config.head == "differentiable":
        head.initialize(config.seed)
    body = {f"{BODY}.{name}" for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    texts_per_step = config.both("batch_size")[0] * (2 if config.pairs == "sampled" else 1)
    chunk_size = config.micro_batch_size or texts_per_step
    encoding = Encoding(arena, targets, chunk_size)
    held_out = evaluation.data if evaluation else None
    training = HeadTraining(config, encoder, head, Features(encoder, arena), targets, data.labels, held_out)
    return Job(
        seed=config.seed,
        phases=(
            Phase(
                name="body",
                end_step=courses.body_steps,
                plan=courses.body,
                optimizer=partial(adamw, config=config, learning_rate=config.both("body_learning_rate")[0]),
                learning_rate=courses.body_rate,
                trains=body.__contains__,
                max_grad_norm=config.max_grad_norm,
                draws_per_step=-(-texts_per_step // chunk_size) + 1,
                completes=False,
            ),
            training.phase(courses, encoding, body),
        ),
        modules={BODY: encoder, HEAD: head},
        encode=encoding,
        gradients=partial(body_gradients, encoder, body_loss(config, courses.body, targets, taught_NE)),
        layout=partial(layout, encoder),
        documents=partial(documents, encoder, settings),
        evaluate=partial(evaluation.measure, encoder, training.probabilities) if evaluation else dict,
        evaluation_id=evaluation.identity if evaluation else "",
        write_back=encoder.write_back,
        rows=lambda ids: data.chosen[ids].tolist(),
    )


def prepare_encoder(config: ClassifyConfig, encoder: Encoder, arena: Arena) -> None:
    """Have the encoder train as configured: what is dropped, and which rows of its table move."""
    encoder.train()
    if config.dropout is not None:
        encoder.set_dropout(config.dropout)
    encoder.reuse_table_gradients()
    if config.active_vocabulary:
        use_active_rows(encoder, used_ids([arena], encoder.vocabulary_size))


def settings_of(config: ClassifyConfig, encoder: Encoder, data: LabelledTexts) -> ClassifierSettings:
    """Return what the finished classifier is, apart from its numbers."""
    return ClassifierSettings(
        kind=config.head,
        labels=data.labels.names,
        dimension=encoder.dimension,
        multi_label=data.labels.several,
        normalize_embeddings=config.normalize_embeddings,
    )


def body_gradients(encoder: Encoder, loss: Loss, batch: Batch, scope: Scope) -> Tensor:
    """Leave the gradients of a batch's contrastive loss in the encoder and return the detached loss."""
    return cached_gradients(encoder.embed, lambda embeddings_ND: loss(embeddings_ND, batch), batch.chunks, scope)


def layout(encoder: Encoder, name: str) -> tuple[str, str]:
    """Place the encoder's tensors where sentence-transformers finds them, and the head's beside them."""
    root, _, rest = name.partition(".")
    if root == BODY and encoder.is_extra(rest):
        return EXTRA_FILE, name
    file, key = classifier_layout(rest) if root == HEAD else encoder.layout(rest)
    return f"model/{file}", key


def documents(encoder: Encoder, settings: ClassifierSettings) -> Mapping[str, bytes]:
    """Return the model folder's files that are not weights."""
    found = encoder.documents() | classifier_documents(settings)
    return {f"model/{path}": content for path, content in found.items()}
