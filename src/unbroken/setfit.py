"""SetFit's interface: a script written for it runs with its import changed, and can be stopped and run again.

    from unbroken.setfit import SetFitModel, Trainer, TrainingArguments, sample_dataset

`docs/from-setfit.md` says what each argument means here, and what differs on purpose. The losses are names:
sentence-transformers' own classes serve as well, and importing them is not needed.
"""

from __future__ import annotations

from typing import NoReturn

from unbroken.bridges.setfit_arguments import SetFitWarning, TrainingArguments
from unbroken.bridges.setfit_data import get_templated_dataset, sample_dataset
from unbroken.bridges.setfit_model import SetFitModel
from unbroken.bridges.setfit_trainer import DistillationTrainer, Trainer

CosineSimilarityLoss = "CosineSimilarityLoss"
SupConLoss = "SupConLoss"
BatchAllTripletLoss = "BatchAllTripletLoss"
BatchHardTripletLoss = "BatchHardTripletLoss"
BatchSemiHardTripletLoss = "BatchSemiHardTripletLoss"
BatchHardSoftMarginTripletLoss = "BatchHardSoftMarginTripletLoss"

__all__ = [
    "BatchAllTripletLoss",
    "BatchHardSoftMarginTripletLoss",
    "BatchHardTripletLoss",
    "BatchSemiHardTripletLoss",
    "CosineSimilarityLoss",
    "DistillationTrainer",
    "SetFitModel",
    "SetFitWarning",
    "SupConLoss",
    "Trainer",
    "TrainingArguments",
    "get_templated_dataset",
    "sample_dataset",
]

# What SetFit has beside these, and what to do instead.
ELSEWHERE = {
    "SetFitTrainer": "use Trainer and TrainingArguments, as SetFit itself says since 1.0",
    "SetFitHead": "write SetFitModel.from_pretrained(..., use_differentiable_head=True)",
    "SetFitModelCardData": "leave it out: no model card is written",
    "AbsaModel": "train a classifier for the aspects and one for their polarity",
    "AbsaTrainer": "train a classifier for the aspects and one for their polarity",
}


def __getattr__(name: str) -> NoReturn:
    if name in ELSEWHERE:
        raise ImportError(f"unbroken.setfit has no {name}: {ELSEWHERE[name]}")
    raise AttributeError(f"module 'unbroken.setfit' has no attribute '{name}'")
