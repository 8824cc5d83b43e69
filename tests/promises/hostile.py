"""Files that something has gone wrong with, on purpose or not, and what may come of reading one."""

from __future__ import annotations

import copy
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from nas_plugin.errors import NasPluginError

T = TypeVar("T")
FUZZ = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
SECONDS, MEGABYTES, CHARACTERS = 1.0, 200, 5_000

# What `json.dumps` does not write: marks, and what stands for them in the file.
RAW = {
    "@5000 digits@": "1" + "0" * 5000,
    "@4000 digits@": "9" * 4000,
    "@400 digits@": "-" + "9" * 400,
    "@beyond 64 bits@": str(2**63),
    "@deep@": "[" * 20_000 + "]" * 20_000,
    "@deep enough to parse@": "[" * 300 + "]" * 300,
    "@deep objects@": '{"a":' * 12_000 + "1" + "}" * 12_000,
    "@infinite@": "1e999",
    "@half a pair@": '"\\ud800"',
    "@no number@": "NaN",
}
TEXT = st.text(max_size=4) | st.sampled_from(["", "{}", " ", "..", "../../x", "/etc/x", "a\0b", "²", "x" * 5000])
MARK = st.sampled_from(sorted(RAW))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | MARK,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
MISSING = object()


def as_json(value: Any) -> bytes:
    text = json.dumps(value)
    for mark, raw in RAW.items():
        text = text.replace(json.dumps(mark), raw)
    return text.encode()


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [way] if way else []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(inner, (*way, key))
    return found


@st.composite
def damaged(draw: st.DrawFn, good: Any) -> Any:
    """A good value in which up to three places, at any depth, are gone or hold something else."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        ways = places(value)
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        inner = value
        for step in way:
            inner = inner[step]
        new = draw(JSON | st.just(MISSING))
        if new is not MISSING:
            inner[last] = new
        else:
            del inner[last]
    return value


@st.composite
def mangled(draw: st.DrawFn, good: bytes) -> bytes:
    """Good bytes that were cut, or of which some are others."""
    data = bytearray(good)
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def hostile_json(good: Any) -> st.SearchStrategy[bytes]:
    """Arbitrary bytes, arbitrary JSON, and a good file that was damaged in its values or its bytes."""
    return (
        st.binary(max_size=60)
        | JSON.map(as_json)
        | damaged(good).map(as_json)
        | mangled(as_json(good))
        | st.sampled_from([raw.encode() for raw in RAW.values()])
    )


def survives(read: Callable[[], T], seconds: float = SECONDS) -> T | None:
    """Read something: a value or an error of ours comes out, soon; the error can be printed and is no longer than a page."""
    before = time.process_time()
    try:
        value = read()
    except NasPluginError as error:
        assert len(str(error).encode()) < CHARACTERS
        value = None
    spent = time.process_time() - before
    assert spent < seconds, f"{spent:.1f} s"
    return value


def peak() -> float:
    """Most memory that this process has had, in megabytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


@contextmanager
def little_memory() -> Iterator[None]:
    # Where nothing has been drawn before, as in a fresh checkout, Hypothesis makes its table of characters first: 200 MB.
    st.text().validate()
    before = peak()
    yield
    assert peak() - before < MEGABYTES
