"""Writes down what happens in an arm, and when. The clock is the system's monotonic one, the same in all processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


class Recorder:
    """Appends JSON lines to the file `events` of a spec, each written out at once: arms get killed."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self._file = open(spec["events"], "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (open as long as the process)

    @classmethod
    def from_arguments(cls) -> Recorder:
        return cls(json.loads(Path(sys.argv[1]).read_bytes()))

    def emit(self, event: str, **values: Any) -> None:
        record = {"event": event, "at": time.monotonic(), "cpu": time.process_time(), **values}
        print(json.dumps(record), file=self._file)

    def ended(self) -> None:
        self.emit("ended", peak_bytes=peak_bytes(), device_bytes=device_bytes())

    def maybe_die(self, step: int, saved: bool) -> None:
        """End as a crash would, after the step the spec says, and not before something was saved if it says so."""
        after = self.spec.get("die_after")
        if after is not None and step >= after and (saved or not self.spec.get("die_saved")):
            self.ended()
            os.kill(os.getpid(), signal.SIGKILL)


def peak_bytes() -> int:
    """Return the most memory this process has held (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def device_bytes() -> int:
    """Return the most memory that tensors of this process have had on a GPU; 0 without one."""
    torch: Any = sys.modules.get("torch")
    return int(torch.cuda.max_memory_allocated()) if torch is not None and torch.cuda.is_initialized() else 0
