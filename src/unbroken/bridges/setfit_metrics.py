"""Metrics by the names the `evaluate` library has for them, computed by scikit-learn; or by a script's own function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unbroken.base.config import closest
from unbroken.base.errors import ConfigError

# The name, as `evaluate` and its answers have it -> scikit-learn's function of (truth, answers).
METRICS = {
    "accuracy": "accuracy_score",
    "balanced_accuracy": "balanced_accuracy_score",
    "f1": "f1_score",
    "precision": "precision_score",
    "recall": "recall_score",
    "matthews_correlation": "matthews_corrcoef",
    "cohen_kappa": "cohen_kappa_score",
    "jaccard": "jaccard_score",
    "hamming_loss": "hamming_loss",
}


def metric_name(metric: Any) -> str | None:
    """Return the name of a metric, None for a function. Raises `ConfigError` for a name without a metric."""
    if callable(metric):
        return None
    if metric not in METRICS:
        near = closest(str(metric), METRICS)
        raise ConfigError(
            f"metric: {metric!r} is not known",
            next_step=f"did you mean '{near}'?" if near else f"give one of {', '.join(METRICS)}, or a function",
        )
    return str(metric)


def measure(
    metric: str | Callable[..., Any], answers: Any, truth: list[Any], kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the metric of `answers` by its name; of a function, what it returned, as "metric" if no mapping."""
    name = metric_name(metric)
    if name is None:
        assert callable(metric)
        found = metric(answers, truth, **(kwargs or {}))
        return found if isinstance(found, dict) else {"metric": found}
    from sklearn import metrics

    given = answers.numpy() if hasattr(answers, "numpy") else answers
    try:
        value = getattr(metrics, METRICS[name])(truth, given, **(kwargs or {}))
    except (ValueError, TypeError) as failure:
        cause = str(failure).partition("\n")[0]
        raise ConfigError(
            f"metric {name}: {cause}",
            next_step='for several classes or labels: metric_kwargs={"average": "macro"}' if name != "accuracy" else "",
        ) from None
    return {name: float(value) if getattr(value, "ndim", 0) == 0 else value}
