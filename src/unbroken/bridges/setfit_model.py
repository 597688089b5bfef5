"""SetFit's model, on an `Encoder` and a `LinearHead`: the same calls, the same kinds of answers.

Source: SetFit 1.2 `modeling.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from unbroken.base.errors import ConfigError
from unbroken.bridges.setfit_arguments import refuse_unknown, warn

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from unbroken.models.classifying import ClassifierSettings, LinearHead
    from unbroken.models.encoder import Encoder

    Answers = Tensor | NDArray[np.int64] | list[str] | int | str

HEAD_FILE = "model_head.pkl"  # where SetFit keeps its head
MULTI_TARGET = ("one-vs-rest", "multi-output")
# Of the heads' own parameters in SetFit: those that say how the optimum is found, and what the others must be here.
HOW_FOUND = ("solver", "max_iter", "tol", "random_state", "n_jobs", "verbose", "warm_start", "dual")
REGRESSION = {"C": 1.0, "penalty": "l2", "fit_intercept": True, "intercept_scaling": 1, "multi_class": "auto"}
DIFFERENTIABLE = {"temperature": 1.0, "bias": True}
SETTLED = ("in_features", "device", "multitarget", "eps")  # by SetFit itself, or of no consequence
# Arguments of SetFit's `from_pretrained` about the hub and how it is reached.
OF_THE_HUB = (
    "revision",
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "proxies",
    "resume_download",
    "trust_remote_code",
    "model_card_data",
)


class SetFitModel:
    """An encoder and, once trained, a classifier over its embeddings. Made by `from_pretrained`.

    `base` is what it was loaded from, which is what a training starts from. `labels` are the names answered with, by
    number; without them answers are numbers.
    """

    def __init__(
        self,
        base: Any = None,
        folder: Path = Path(),
        *,
        labels: Sequence[str] | None = None,
        multi_target_strategy: str | None = None,
        use_differentiable_head: bool = False,
        head_params: Mapping[str, Any] | None = None,
        normalize_embeddings: bool = False,
        device: str | None = None,
        **of_setfit: Any,
    ) -> None:
        if not isinstance(base, str) or of_setfit:
            raise ConfigError(
                "SetFitModel is not made of a body and a head",
                next_step='write SetFitModel.from_pretrained("folder or name on the hub", ...)',
            )
        if multi_target_strategy not in (None, *MULTI_TARGET):
            raise ConfigError(
                f"multi_target_strategy: {multi_target_strategy!r} is not known here",
                next_step=f"give one of {', '.join(MULTI_TARGET)}: either makes a yes or no for each label",
            )
        self.base: str = base
        self.folder = folder
        self.labels = None if labels is None else list(labels)
        self.multi_target_strategy = multi_target_strategy
        self.normalize_embeddings = normalize_embeddings
        self.settings: ClassifierSettings | None = None
        self.model_head: LinearHead | None = None
        self.has_differentiable_head = use_differentiable_head
        params = dict(head_params or {})
        self.out_features: int | None = params.pop("out_features", None) if use_differentiable_head else None
        self.class_weight = params.pop("class_weight", None)
        refuse_parameters(params, use_differentiable_head)
        self._body: Encoder | None = None
        self._device = device

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        use_differentiable_head: bool = False,
        head_params: Mapping[str, Any] | None = None,
        multi_target_strategy: str | None = None,
        labels: Sequence[str] | None = None,
        normalize_embeddings: bool | None = None,
        device: Any = None,
        allow_pickle: bool = False,
        **of_the_hub: Any,
    ) -> Self:
        """Take an encoder's folder, its name on the hub, a classifier's folder, a run, or one SetFit saved.

        Reads the classifier if there is one, of a run once it is finished; SetFit's own lies in a pickle, which is
        read only with `allow_pickle`, as data. Raises `ConfigError` for what is missing, damaged or not understood.
        """
        refuse_unknown("SetFitModel.from_pretrained", of_the_hub, [*OF_THE_HUB])
        for name, value in of_the_hub.items():
            if value:
                raise ConfigError(
                    f"SetFitModel.from_pretrained: {name} has no effect here",
                    next_step="fetch the model with huggingface_hub and give its folder",
                )
        from unbroken.models.classifying import SETTINGS_FILE, WEIGHTS_FILE, read_classifier
        from unbroken.models.folder import read_folder, resolve
        from unbroken.tasks.origin import resolve_model

        base = str(pretrained_model_name_or_path)
        origin = resolve_model(base)
        folder = resolve(origin.model, HEAD_FILE, SETTINGS_FILE, WEIGHTS_FILE)
        read_folder(folder)
        model = cls(
            base,
            folder,
            labels=labels,
            multi_target_strategy=multi_target_strategy,
            use_differentiable_head=use_differentiable_head,
            head_params=head_params,
            normalize_embeddings=bool(normalize_embeddings),
            device=None if device is None else str(device),
        )
        if not origin.finished:
            pass  # a checkpoint's head may not have been trained yet
        elif (folder / SETTINGS_FILE).is_file():
            model.take(*read_classifier(folder, model.model_body.dimension))
        elif (folder / HEAD_FILE).is_file():
            from unbroken.bridges.folders import open_setfit

            found = open_setfit(folder, allow_pickle, "auto" if device is None else str(device))
            model._body = found.encoder
            model.take(found.settings, found.head)
        if model.settings is not None and normalize_embeddings not in (None, model.settings.normalize_embeddings):
            raise ConfigError(
                f"{folder}: the classifier was trained with normalize_embeddings={model.normalize_embeddings}",
                next_step="leave normalize_embeddings out, or name the encoder it came from",
            )
        return model

    def take(self, settings: ClassifierSettings, head: LinearHead) -> None:
        """Have this classifier from now on."""
        self.settings, self.model_head = settings, head.to(self.device).eval()
        self.has_differentiable_head = settings.kind == "differentiable"
        self.normalize_embeddings = settings.normalize_embeddings
        if settings.multi_label and self.multi_target_strategy is None:
            self.multi_target_strategy = MULTI_TARGET[0]
        if self.labels is None and all(isinstance(label, str) for label in settings.labels):
            self.labels = list(map(str, settings.labels))

    @property
    def model_body(self) -> Encoder:
        """The encoder; loaded when first asked for."""
        if self._body is None:
            from unbroken.models.encoder import Encoder
            from unbroken.tasks.device import resolve_device

            self._body = Encoder.from_pretrained(self.folder, device=resolve_device(self._device or "auto"))
        return self._body

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model_body.device

    @property
    def device_asked_for(self) -> str | None:
        """The device that the script named, if it named one."""
        return self._device

    def to(self, device: Any) -> Self:
        """Move the model to a device, where it will be trained too; return it."""
        self._device = str(device)
        self.model_body.to(device)
        if self.model_head is not None:
            self.model_head.to(device)
        return self

    @property
    def id2label(self) -> dict[int, str]:
        """The name of each label's number; empty without names."""
        return dict(enumerate(self.labels or ()))

    @property
    def label2id(self) -> dict[str, int]:
        """The number of each label's name; empty without names."""
        return {name: number for number, name in self.id2label.items()}

    def encode(
        self, inputs: list[str], batch_size: int = 32, show_progress_bar: bool | None = None
    ) -> Tensor | NDArray[np.float32]:
        """Return the embeddings [N, D]; a tensor if the head is differentiable, else an array."""
        return self.model_body.encode(
            inputs,
            batch_size=batch_size,
            normalize_embeddings=self.normalize_embeddings,
            convert_to_numpy=not self.has_differentiable_head,
            show_progress_bar=show_progress_bar,
        )

    def predict_proba(
        self,
        inputs: str | Sequence[str],
        batch_size: int = 32,
        as_numpy: bool = False,
        show_progress_bar: bool | None = None,
    ) -> Tensor | NDArray[np.float64]:
        """Return the probability of each label, [N, L], or [L] for a single text; rows sum to 1 if labels exclude."""
        import torch

        with torch.no_grad():
            found = self._head.probabilities(self._embed(inputs, batch_size, show_progress_bar)).double().cpu()
        if isinstance(inputs, str):
            found = found[0]
        return found.numpy() if as_numpy else found

    def predict(
        self,
        inputs: str | Sequence[str],
        batch_size: int = 32,
        as_numpy: bool = False,
        use_labels: bool = True,
        show_progress_bar: bool | None = None,
    ) -> Answers:
        """Return each text's label: a list of names where there are `labels`, else numbers [N], or 0/1 [N, L].

        `use_labels=False` gives the numbers; a single text gives a single answer.
        """
        import torch

        with torch.no_grad():
            found = self._head.predict(self._embed(inputs, batch_size, show_progress_bar)).cpu().long()
        if found.ndim == 1:
            found = torch.tensor(self.numbers)[found]
            if use_labels and self.labels:
                names = [self.labels[number] for number in found.tolist()]
                return names[0] if isinstance(inputs, str) else names
        if isinstance(inputs, str):
            found = found[0]
        return found.numpy() if as_numpy else found

    __call__ = predict

    @property
    def numbers(self) -> list[int]:
        """The number of each of the classifier's labels: itself, or where labels are names its place."""
        assert self.settings is not None
        return [label if isinstance(label, int) else place for place, label in enumerate(self.settings.labels)]

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that this class, `SentenceTransformer` and the commands load; there is no pickle in it.

        Whole, or not at all, in place of a model folder that is there; without a trained head, the encoder alone.
        Raises `ConfigError` if `path` is anything else, or in a run.
        """
        from unbroken.tasks.classify.predict import TextClassifier

        if self.model_head is None:
            self.model_body.save_pretrained(path)
        else:
            TextClassifier(self.model_body, self.named(), self.model_head).save(path)

    def named(self) -> ClassifierSettings:
        """Return the classifier's settings with the names that `labels` gives its numbers."""
        assert self.settings is not None
        numbers, names = self.numbers, self.labels or []
        if max(numbers) >= len(names):
            return self.settings
        return replace(self.settings, labels=tuple(names[number] for number in numbers))

    def freeze(self, component: str | None = None) -> None:
        """Change nothing, and warn: which part is trained when follows from the arguments."""
        warn("freeze() and unfreeze() do nothing: the encoder is trained in the second phase with end_to_end=True")

    def unfreeze(self, component: str | None = None, keep_body_frozen: bool | None = None) -> None:
        """Change nothing, and warn: as `freeze`."""
        self.freeze(component)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Raise `ConfigError`: nothing here sends anything."""
        raise ConfigError(
            "push_to_hub is not done here",
            next_step="save_pretrained(FOLDER), then `hf upload NAME FOLDER` of huggingface_hub",
        )

    def require_unchanged(self) -> None:
        """Raise `ConfigError` if the encoder's weights were changed in memory: a training starts from the folder."""
        if self._body is None:
            return
        import torch

        from unbroken.models.encoder import Encoder

        stored = Encoder.from_pretrained(self.folder).state_dict()
        for name, tensor in self._body.state_dict().items():
            if not torch.equal(tensor.cpu(), stored[name]):
                raise ConfigError(
                    f"the encoder's weights are no longer those of {self.base} ({name} differs)",
                    why="a training starts from the folder, so that it can be repeated",
                    next_step="save_pretrained(FOLDER), and load the model from there",
                )

    def reload(self, folder: Path, *, by_number: bool) -> None:
        """Become the classifier in `folder`; `by_number`: answer with numbers unless the script gave names."""
        from unbroken.models.classifying import read_classifier

        given = self.labels
        self.base, self.folder, self._body = str(folder), folder, None
        self.take(*read_classifier(folder, self.model_body.dimension))
        if by_number:
            self.labels = given

    @property
    def _head(self) -> LinearHead:
        if self.model_head is None:
            raise ConfigError(
                f"{self.base} has no classifier yet", next_step="train it: Trainer(model=model, ...).train()"
            )
        return self.model_head

    def _embed(self, inputs: str | Sequence[str], batch_size: int, show_progress_bar: bool | None) -> Tensor:
        _ = self._head  # what is missing is said before anything is encoded
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        found: Any = self.model_body.encode(
            texts, batch_size=batch_size, convert_to_numpy=False, show_progress_bar=show_progress_bar
        )
        return found  # type: ignore[no-any-return]


def refuse_parameters(params: Mapping[str, Any], differentiable: bool) -> None:
    """Warn of parameters of a head that say how it is found, refuse those that would make another head."""
    fixed, ignored = (DIFFERENTIABLE, SETTLED) if differentiable else (REGRESSION, HOW_FOUND)
    refuse_unknown("head_params", params, [*fixed, *ignored, "out_features", "class_weight"])
    for name, value in params.items():
        if name in fixed and value != fixed[name]:
            raise ConfigError(
                f"head_params: {name}={value!r} is not to be had; it is {fixed[name]!r}",
                next_step="leave it out; TrainingArguments(calibrate=True) fits a temperature to eval_dataset"
                if name == "temperature"
                else "leave it out",
            )
    idle = [name for name in params if name in ignored and not differentiable]
    if idle:
        warn(f"head_params: {', '.join(idle)} does nothing: the regression is fitted to its optimum by lbfgs")
