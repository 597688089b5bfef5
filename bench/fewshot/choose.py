"""How the defaults of `classify` were chosen: `python -m bench.fewshot.choose MODEL SPLITS OUT`.

Trains on draws from the pools that `bench.fewshot.splits` writes into SPLITS, evaluates on other rows of the same
pools, and appends a JSON line per run to OUT; `--show` prints the table of what OUT holds. No row of a benchmark's
training or test set is read. Reference is what SetFit 1.2 does: its pairs (the diagonal with them; fewer than by
default where `STRATEGIES` says so), 16 a step, the mean of (cosine - target)^2, AdamW at 2e-5, warm-up over a tenth,
linear descent, clipping at 1, dropout as the model has it; then scikit-learn's LogisticRegression, as behind every
arm. It runs on our encoder, so its CPU seconds are fewer than SetFit's own.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unbroken.base.seeds import derive
from unbroken.models.dropout import Dropout
from unbroken.models.encoder import Encoder
from unbroken.models.ragged import Ragged
from unbroken.plan.permutation import permute
from unbroken.plan.shots import draw_shots
from unbroken.step.adamw import AdamW
from unbroken.step.schedule import learning_rate

Ids = NDArray[np.int64]
EVALUATED = {"snips": 2000, "banking77": 2310, "wordnet": 1920}
CASES = ("snips:8", "banking77:8", "wordnet:8", "snips:16", "wordnet:64")
FIRST_DRAW = 100  # the benchmark's own draws have the seeds 0 to 2


@dataclass(frozen=True)
class Arm:
    """One setting. `pairs` is SetFit's strategy, or a number of iterations; without it batches are of texts.

    Steps are `least_steps`, or as many as `passes` over the texts take where those are more.
    """

    loss: str = "contrastive"
    temperature: float = 0.1
    texts: int = 64
    least_steps: int = 24
    passes: float = 2.0
    rate: float = 1e-4
    dropout: float = 0.0
    frozen: int = 0  # the embeddings, and one layer less than this
    pairs: str | int | None = None
    head_only: bool = False


REFERENCE = "setfit"
ARMS: dict[str, Arm] = {
    REFERENCE: Arm(pairs="oversampling", loss="squares", rate=2e-5, dropout=0.1),
    "default": Arm(),
    "head-only": Arm(head_only=True),
    "squares": Arm(loss="squares"),
    "double": Arm(least_steps=48, passes=4.0),
    "half": Arm(least_steps=12, passes=1.0),
    "steps-18": Arm(least_steps=18),
    "steps-20": Arm(least_steps=20),
    "rate-5e-5": Arm(rate=5e-5),
    "rate-2e-4": Arm(rate=2e-4),
    "temperature-0.05": Arm(temperature=0.05),
    "temperature-0.3": Arm(temperature=0.3),
    "batch-32": Arm(texts=32),
    "dropout": Arm(dropout=0.1),
    "frozen-2-layers": Arm(frozen=3),
}
# SetFit's settings where its default makes very many pairs.
STRATEGIES: dict[str, str | int] = {"banking77:8": "undersampling", "wordnet:8": "undersampling", "wordnet:64": 5}


@dataclass(frozen=True)
class Problem:
    """Token ids of training texts and then of evaluation texts, and the classes of both."""

    ids: Ragged
    train: Ids
    held_out: Ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("splits", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="NAME:SHOTS")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    if given.show:
        show([json.loads(line) for line in given.out.read_text(encoding="utf-8").splitlines()])
        return
    for case in given.cases:
        for draw in range(FIRST_DRAW, FIRST_DRAW + given.draws):
            for name in given.arms:
                arm = ARMS[name]
                if arm.pairs is not None:
                    arm = replace(arm, pairs=STRATEGIES.get(case, arm.pairs))
                result = {"case": case, "draw": draw, "arm": name} | run(given.model, given.splits, case, draw, arm)
                with given.out.open("a", encoding="utf-8") as file:
                    print(json.dumps(result), file=file)


def run(model: Path, splits: Path, case: str, draw: int, arm: Arm) -> dict[str, Any]:
    """Train and evaluate one arm on one draw."""
    from sklearn.linear_model import LogisticRegression

    encoder = Encoder.from_pretrained(model)
    problem = draw_problem(encoder, splits, case, draw)
    torch.manual_seed(draw)
    began = time.process_time()
    encoded = 0 if arm.head_only else train(encoder, problem, arm, draw)
    tuned = time.process_time()
    embeddings = embed(encoder, problem.ids)
    count = len(problem.train)
    head = LogisticRegression().fit(embeddings[:count], problem.train)
    right = head.predict(embeddings[count:]) == problem.held_out
    return {"accuracy": float(right.mean()), "cpu_seconds": tuned - began, "texts": encoded, "settings": asdict(arm)}


def draw_problem(encoder: Encoder, splits: Path, case: str, draw: int) -> Problem:
    """Return a draw from a pool. The rows evaluated on are the same for every draw, and none is ever drawn."""
    name, _, shots = case.partition(":")
    rows = [json.loads(line) for line in (splits / f"{name}.pool.jsonl").open(encoding="utf-8")]
    labels = [row["label"] for row in rows]
    held_out = np.sort(permute(derive(7, "eval", name), np.arange(EVALUATED[name]), len(rows)))
    rest = np.setdiff1d(np.arange(len(rows)), held_out)
    train = rest[draw_shots([labels[i] for i in rest], int(shots), draw)]
    classes = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    ids = encoder.tokenize([rows[i]["text"] for i in (*train, *held_out)])
    return Problem(ids, classes[train], classes[held_out])


def train(encoder: Encoder, problem: Problem, arm: Arm, seed: int) -> int:
    """Train the encoder in place; return how many texts were encoded."""
    parameters = trained(encoder, arm)
    members = [np.flatnonzero(problem.train == k) for k in np.unique(problem.train)]
    pairs = None if arm.pairs is None else draw_pairs(problem.train, arm.pairs, seed)
    if pairs is not None:
        steps = math.ceil(len(pairs) / 16)
    else:
        size = len(stratified(members, arm.texts, seed, 0))
        steps = max(arm.least_steps, math.ceil(arm.passes * math.ceil(len(problem.train) / size)))
    rate = learning_rate("linear", arm.rate, math.ceil(0.1 * steps), steps)
    optimizer = AdamW([{"params": parameters}], lr=arm.rate)
    encoder.reuse_table_gradients()
    encoded = 0
    for step in range(steps):
        batch = stratified(members, arm.texts, seed, step) if pairs is None else pairs[step * 16 :][:16].ravel()
        embeddings = F.normalize(encoder.embed(problem.ids.select(batch)), dim=-1)
        loss_of(arm, embeddings, torch.from_numpy(problem.train[batch])).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.step()
        optimizer.zero_grad()
        encoded += len(batch)
    return encoded


def trained(encoder: Encoder, arm: Arm) -> list[torch.nn.Parameter]:
    """Put the encoder in training mode and return the parameters that move."""
    encoder.train()
    for module in encoder.modules():
        if isinstance(module, Dropout):
            module.p = arm.dropout
    for name, parameter in encoder.named_parameters():
        layer = int(name.partition("layer.")[2].split(".")[0]) + 1 if "layer." in name else 0
        parameter.requires_grad_(layer >= arm.frozen)
    return [parameter for parameter in encoder.parameters() if parameter.requires_grad]


def loss_of(arm: Arm, embeddings: Tensor, classes: Tensor) -> Tensor:
    """Return the loss of a batch: of (0, 1), (2, 3), ... where the arm has pairs, else of all pairs of its texts."""
    if arm.pairs is not None:
        cosines = (embeddings[0::2] * embeddings[1::2]).sum(dim=-1)
        return ((cosines - (classes[0::2] == classes[1::2]).float()) ** 2).mean()
    cosines = embeddings @ embeddings.T
    itself = torch.eye(len(classes), dtype=torch.bool)
    same = (classes[:, None] == classes) & ~itself
    if arm.loss == "squares":
        apart = classes[:, None] != classes
        return ((cosines[same] - 1) ** 2).mean() / 2 + (cosines[apart] ** 2).mean() / 2
    logits = (cosines / arm.temperature).masked_fill(itself, -1e9)
    logs = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    return -((logs * same).sum(dim=1) / same.sum(dim=1)).mean()


def stratified(members: list[Ids], texts: int, seed: int, step: int) -> Ids:
    """Return batch `step`: as many texts of each class, at least two, of as many classes as there is room for."""
    num_classes = len(members)
    each = max(2, texts // num_classes)
    at_once = max(2, min(num_classes, texts // each))
    cycle, place = divmod(step, num_classes // at_once)
    rows = []
    for k in permute(derive(seed, "strata", cycle), place * at_once + np.arange(at_once), num_classes):
        count = min(each, len(members[k]))
        turn, group = divmod(cycle, len(members[k]) // count)
        order = permute(derive(seed, "texts", int(k), turn), group * count + np.arange(count), len(members[k]))
        rows.append(members[k][order])
    return np.concatenate(rows)


def draw_pairs(classes: Ids, strategy: str | int, seed: int) -> Ids:
    """Return SetFit's pairs of one epoch, shuffled: [pairs, 2]."""
    generator = np.random.default_rng(seed)
    pairs = np.array(np.triu_indices(len(classes))).T
    same = classes[pairs[:, 0]] == classes[pairs[:, 1]]
    halves = [generator.permutation(pairs[same]), generator.permutation(pairs[~same])]
    sizes = sorted(len(half) for half in halves)
    counts = {"undersampling": sizes[0], "oversampling": sizes[1]}
    count = strategy * len(classes) if isinstance(strategy, int) else counts[strategy]
    return generator.permutation(np.concatenate([np.resize(half, (count, 2)) for half in halves]))


@torch.no_grad()
def embed(encoder: Encoder, ids: Ragged) -> NDArray[np.float32]:
    """Return all embeddings, without dropout."""
    encoder.eval()
    blocks = np.array_split(np.arange(len(ids)), math.ceil(len(ids) / 64))
    return torch.cat([encoder.embed(ids.select(rows)) for rows in blocks]).numpy()


def show(results: list[dict[str, Any]]) -> None:
    """Print means over draws, and the mean of the differences to the reference with its standard error."""
    kept = {(result["case"], result["arm"], result["draw"]): result for result in results}
    for case, arm in dict.fromkeys((case, arm) for case, arm, _ in kept):
        runs = {draw: result for (c, a, draw), result in kept.items() if (c, a) == (case, arm)}
        of = {key: np.mean([result[key] for result in runs.values()]) for key in ("accuracy", "cpu_seconds")}
        beside = [kept[case, REFERENCE, draw] for draw in runs if (case, REFERENCE, draw) in kept]
        differences = [100 * (runs[result["draw"]]["accuracy"] - result["accuracy"]) for result in beside]
        line = f"{case:12} {arm:18} {100 * of['accuracy']:6.2f} % {of['cpu_seconds']:7.1f} CPU s {len(runs)} draws"
        if len(differences) > 1 and arm != REFERENCE:
            error = np.std(differences, ddof=1) / math.sqrt(len(differences))
            line += f", {np.mean(differences):+.2f} ± {error:.2f}"
        print(line)


if __name__ == "__main__":
    main()
