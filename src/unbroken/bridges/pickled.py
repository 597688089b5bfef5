"""What a pickle of another program holds, read as data: nothing in it is run, imported or called.

A pickle is a program for a small stack machine whose instructions may call any function there is. This is that
machine without the calls: where the program wants an object made, it gets a note of what was wanted (`Made`). Only
what saved scikit-learn and torch heads are made of is understood; the rest is refused.

joblib's variant puts the bytes of each array between two instructions, right after the one that describes it.
Sources: Python's `pickletools`, which names the instructions; joblib 1.6 `numpy_pickle.py`.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unbroken.base.errors import ConfigError
from unbroken.base.reading import read_document

MAX_INSTRUCTIONS = 1_000_000  # a head of a thousand labels takes a tenth
ARRAY = "joblib.numpy_pickle.NumpyArrayWrapper"
MOST_NAMED = 4
NAME = re.compile(r"[\w.]{1,100}")
PLAIN_TYPE = re.compile(r"[biuf][1-8]|U\d{1,6}")  # numpy's names of numbers, and of texts of a fixed length
STORAGES = {"torch.FloatStorage": "<f4", "torch.DoubleStorage": "<f8", "torch.HalfStorage": "<f2"}
EMPTY_MAPPING = ("collections.OrderedDict", ())
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE"}
VALUES |= {"BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
CONTAINERS: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Named:
    """A class or function a pickle names, `package.module.name`."""

    name: str


@dataclass(eq=False)
class Made:
    """What a pickle wants made: by calling what, with which arguments, and its attributes from then on."""

    name: str
    args: tuple[Any, ...]
    state: Any = None

    def get(self, attribute: str) -> Any:
        """Return an attribute, None if there is none of that name."""
        return self.state.get(attribute) if isinstance(self.state, dict) else None


def read_pickled(path: Path) -> Any:
    """Return what a file of `joblib.dump` (not compressed) holds.

    Raises `ConfigError` if it is cut or damaged, or made of what no head is made of.
    """
    try:
        machine = Machine(io.BytesIO(read_document(path)))
    except OSError as failure:
        raise ConfigError(f"{path} cannot be read: {failure.strerror or failure}") from None
    try:
        return machine.run()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError) as failure:
        named = ", ".join(list(machine.named)[:MOST_NAMED])
        raise ConfigError(
            f"{path} is damaged, or no head as SetFit saves them: {failure}" + (f" (of {named})" if named else ""),
            next_step="copy the folder again, whole; a head of another kind cannot be read",
        ) from None


def read_storage(data: bytes) -> NDArray[Any]:
    """Return the numbers of one torch storage as torch puts it into a pickle. Raises `ValueError` for another thing.

    Five small pickles (a magic number, a version, the machine, what the storage is, its key), then how many numbers,
    then the numbers.
    """
    file = io.BytesIO(data)
    _, _, machine, described, _ = (Machine(file).run() for _ in range(5))
    kind = STORAGES.get(described.args[1].name)
    if kind is None or not machine["little_endian"]:
        raise ValueError(f"a tensor in it is stored as {described.args[1].name}")
    count = int.from_bytes(file.read(8), "little")
    numbers = np.frombuffer(file.read(), dtype=kind)
    if count != len(numbers):
        raise ValueError(f"a tensor in it has {len(numbers)} of {count} numbers")
    return numbers


class Machine:
    """The stack machine, at work on the file from where it stands to the end of one pickle.

    `memo` holds what the program said it would need again.
    """

    def __init__(self, file: io.BytesIO) -> None:
        self.file = file
        self.size = len(file.getbuffer())
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}
        self.named: dict[str, None] = {}  # all classes and functions so far, in order
        self.instructions: dict[str, Callable[[Any], None]] = {
            "PROTO": self.nothing,
            "FRAME": self.nothing,
            "MARK": self.mark,
            "TUPLE": lambda _: self.push(tuple(self.since_mark())),
            "SETITEM": lambda _: self.set_items([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self.set_items(self.since_mark()),
            "APPEND": lambda _: self.extend([self.stack.pop()]),
            "APPENDS": lambda _: self.extend(self.since_mark()),
            "ADDITEMS": lambda _: self.add(self.since_mark()),
            "GLOBAL": lambda words: self.name(*words.split(" ")),
            "STACK_GLOBAL": lambda _: self.name(self.stack.pop(-2), self.stack.pop()),
            "NEWOBJ": self.make,
            "REDUCE": self.make,
            "BUILD": self.build,
            "BINPERSID": lambda _: self.push(Made("storage", self.stack.pop())),
            "MEMOIZE": lambda _: self.keep(len(self.memo)),
            "BINPUT": self.keep,
            "LONG_BINPUT": self.keep,
            "BINGET": lambda place: self.push(self.memo[place]),
            "LONG_BINGET": lambda place: self.push(self.memo[place]),
        }

    def run(self) -> Any:
        """Return what lies on the stack at the end."""
        for count, (code, argument, _) in enumerate(pickletools.genops(self.file)):
            if count == MAX_INSTRUCTIONS:
                raise ValueError(f"it has more than {MAX_INSTRUCTIONS:,} instructions")
            if code.name == "STOP":
                break
            self.follow(code.name, argument)
        return self.stack.pop()

    def follow(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        if name in VALUES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in CONTAINERS:
            self.stack.append(CONTAINERS[name]())
        elif name in TUPLES:
            count = TUPLES[name]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name in self.instructions:
            self.instructions[name](argument)
        else:
            raise ValueError(f"it holds the instruction {name}")

    def push(self, value: Any) -> None:
        """Put a value on top."""
        self.stack.append(value)

    def keep(self, place: int) -> None:
        """Keep what is on top, to be called for again."""
        self.memo[place] = self.stack[-1]

    def nothing(self, argument: Any) -> None:
        """Pass over what is about the file only."""

    def mark(self, argument: Any) -> None:
        """Begin a stack on top of the one there is."""
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Return what was put on the stack since the last mark, and go back to the one below."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values, taking turns, into the mapping on top."""
        if not isinstance(self.stack[-1], dict):
            raise ValueError("it fills something that is no mapping")
        require_plain(items[::2])
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def extend(self, items: list[Any]) -> None:
        """Put items at the end of the list on top."""
        if not isinstance(self.stack[-1], list):
            raise ValueError("it fills something that is no list")
        self.stack[-1].extend(items)

    def add(self, items: list[Any]) -> None:
        """Put items into the set on top."""
        if not isinstance(self.stack[-1], set):
            raise ValueError("it fills something that is no set")
        require_plain(items)
        self.stack[-1].update(items)

    def name(self, package: Any, name: Any) -> None:
        """Put a class or function on top, named by two texts."""
        if not all(isinstance(word, str) and NAME.fullmatch(word) for word in (package, name)):
            raise ValueError("it names something by what is no name")
        self.push(Named(f"{package}.{name}"))
        self.named.setdefault(f"{package}.{name}")

    def make(self, argument: Any) -> None:
        """Note a call, where the program wants one made."""
        args, what = self.stack.pop(), self.stack.pop()
        if not isinstance(what, Named) or not isinstance(args, tuple):
            raise ValueError("it calls something that has no name")
        if (what.name, args) == EMPTY_MAPPING:
            self.stack.append({})
        elif what.name.endswith(".multiarray.scalar"):
            kind, data = args
            self.stack.append(np.frombuffer(data, dtype=plain_type(kind), count=1)[0])
        else:
            self.stack.append(Made(what.name, args))

    def build(self, argument: Any) -> None:
        """Give what was made its attributes; the description of an array is followed by its bytes."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Made):
            raise ValueError("it gives attributes to something it has not made")
        if target.name == ARRAY:
            self.stack[-1] = self.array(state)
        else:
            target.state = state

    def array(self, described: dict[str, Any]) -> NDArray[Any]:
        """Return the array whose bytes come next in the file."""
        if described.get("numpy_array_alignment_bytes") is not None:
            self.file.read(self.file.read(1)[0])
        kind, shape = plain_type(described["dtype"]), described["shape"]
        if any(type(length) is not int or length < 0 for length in shape):
            raise ValueError("an array in it has a shape of other than whole numbers")
        size = math.prod(shape) * kind.itemsize
        if size > self.size - self.file.tell():
            raise ValueError(f"an array in it takes {size:,} bytes, more than there are")
        return np.frombuffer(self.file.read(size), dtype=kind).reshape(shape, order=described["order"])


def require_plain(keys: list[Any]) -> None:
    """Raise `ValueError` unless these are texts and numbers: to hash a nest of tuples can take for ever."""
    if not all(isinstance(key, str | int | float | np.generic) for key in keys):
        raise ValueError("it looks up something that is neither text nor number")


def plain_type(described: Any) -> np.dtype[Any]:
    """Return a numpy type of plain numbers or texts from what a pickle says of it."""
    if not isinstance(described, Made) or described.name != "numpy.dtype":
        raise ValueError("an array in it has no type")
    name = described.args[0]
    if not isinstance(name, str) or not PLAIN_TYPE.fullmatch(name):
        raise ValueError("it holds an array of other things than numbers and texts")
    order = described.state[1]
    kind: np.dtype[Any] = np.dtype(name).newbyteorder("=" if order == "|" else order)
    return kind
