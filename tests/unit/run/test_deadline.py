from __future__ import annotations

import math
import time
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.base.errors import ConfigError
from unbroken.run.deadline import LONGEST_CANARY_SECONDS, MARGIN, SPARE_SECONDS, Deadline, _unix_time

MOMENTS = st.datetimes(datetime(2001, 1, 1), datetime(2099, 1, 1)).map(lambda moment: moment.astimezone())


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(MOMENTS, st.integers(0, 9), st.integers(0, 99), st.integers(0, 999), st.integers(0, 9999))
def test_a_span_is_counted_from_now(now: datetime, days: int, hours: int, minutes: int, seconds: int) -> None:
    meant = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    text = f"+{days}d{hours}h{minutes}m{seconds}s"
    assert _unix_time(text, now) - now.timestamp() == pytest.approx(meant, abs=1e-4)
    assert _unix_time(f"+{minutes}m", now) - now.timestamp() == pytest.approx(60 * minutes, abs=1e-4)


@given(MOMENTS, st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_time_of_day_is_the_next_such(now: datetime, hour: int, minute: int, second: int) -> None:
    found = _unix_time(f"{hour}:{minute:02}:{second:02}", now)
    assert now.timestamp() < found <= now.timestamp() + 25 * 3600  # the day the clocks go back has 25 hours
    if found < 2**31:
        there = time.localtime(found)
        assert (there.tm_min, there.tm_sec) == (minute, second)
        assert there.tm_hour == hour or there.tm_isdst >= 0  # an hour the clocks skip does not exist


@given(MOMENTS, st.datetimes(datetime(2001, 1, 1), datetime(2099, 1, 1)))
def test_a_date_is_local_unless_it_names_a_zone(now: datetime, moment: datetime) -> None:
    assert _unix_time(moment.isoformat(), now) == moment.timestamp()
    assert _unix_time(moment.isoformat() + "+00:00", now) == pytest.approx(
        (moment - datetime(1970, 1, 1)).total_seconds(), abs=1e-4
    )
    assert _unix_time(moment, now) == moment.timestamp()


@given(MOMENTS, st.integers(10**9, 4 * 10**9))
def test_unix_seconds(now: datetime, seconds: int) -> None:
    assert _unix_time(str(seconds), now) == _unix_time(seconds, now) == _unix_time(float(seconds), now) == seconds


@given(st.text(max_size=20))
def test_other_text_is_refused_in_one_line(text: str) -> None:
    refusal = ""
    try:
        assert Deadline.of(text).reason == f"stop-at {text}"
    except ConfigError as failure:
        refusal = str(failure)
    assert "\n" not in refusal
    assert not refusal or "17:30" in refusal


@pytest.mark.parametrize(
    "text", ["", "+", "+90", "90m", "+1m2h", "-5m", "25:00", "17:60", "tomorrow", "17.30", "12", "nan", "+1.5h", "٣:٠٠"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match="is no time"):
        Deadline.of(text)


@pytest.mark.parametrize("past", ["2001-01-01", "2001-01-01T00:00", "1000000000", 1e9, "+0s", datetime(2001, 1, 1)])
def test_a_time_that_is_past(past: str | float | datetime) -> None:
    with pytest.raises(ConfigError, match=r"is past: now it is \d{4}-"):
        Deadline.of(past)


def test_none_leaves_time_for_everything() -> None:
    deadline = Deadline.of(None)
    deadline.step_took(1e6)
    deadline.commit_took(1e6)
    assert deadline.leaves_a_step
    assert deadline.leaves_a_commit
    assert not deadline.leaves_a_canary  # it would not fit into the grace time of a signal


def test_a_step_and_its_commit_must_fit() -> None:
    clock = Clock()
    deadline = Deadline(100.0, "x", clock)
    for seconds in (1.0, 4.0, 2.0):
        deadline.step_took(seconds)
    deadline.commit_took(3.0)
    clock.now += 100 - SPARE_SECONDS - MARGIN * (4 + 3)
    assert deadline.leaves_a_step
    clock.now += 0.01
    assert not deadline.leaves_a_step
    assert deadline.leaves_a_commit
    clock.now += MARGIN * 4
    assert not deadline.leaves_a_commit


def test_a_slow_step_is_forgotten_after_a_while() -> None:
    deadline = Deadline(10.0, "x", Clock())
    deadline.step_took(1000.0)
    assert not deadline.leaves_a_step
    for _ in range(8):
        deadline.step_took(0.1)
    assert deadline.leaves_a_step


def test_a_commit_is_assumed_until_one_was_measured() -> None:
    deadline = Deadline(20.0, "x", Clock())
    deadline.commit_has(1e9)  # ten seconds at 100 MB/s, and twice that is too long
    assert not deadline.leaves_a_commit
    deadline.commit_took(1.0)
    assert deadline.leaves_a_commit


def test_the_wall_clock_may_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline.of("+1h")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert deadline.leaves_a_step
    assert not math.isinf(deadline._end)


def test_a_canary_of_a_slow_step_is_left_out() -> None:
    deadline = Deadline()
    deadline.step_took(LONGEST_CANARY_SECONDS)
    assert deadline.leaves_a_canary
    deadline.step_took(LONGEST_CANARY_SECONDS + 0.1)
    assert not deadline.leaves_a_canary
