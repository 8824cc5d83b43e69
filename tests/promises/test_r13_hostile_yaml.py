"""R13: a hyperparameter file may hold anything; hyperparameters or a named error come out, and nothing expands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_plugin.cli.options import RunOptions
from nas_plugin.errors import HparamsError, RunError
from nas_plugin.evaluation.runner.load import load_hparams
from nas_plugin.hparams import (
    NASAlphaEditHparams,
    NASENCOREHparams,
    NASHparams,
    NASLyapLockHparams,
    NASMEMITHparams,
    NASPRUNEHparams,
    NASRECTHparams,
    shipped_folder,
)
from nas_plugin.hparams.files import find_file
from nas_plugin.hparams.parse import parse_yaml
from tests.promises.hostile import FUZZ, little_memory, mangled, survives

CLASSES = (
    NASMEMITHparams, NASPRUNEHparams, NASRECTHparams, NASAlphaEditHparams, NASENCOREHparams, NASLyapLockHparams,
)  # fmt: skip
NAMES = "xabcdefghi"


def nine_times(first: str, line: str) -> str:
    """Ten lines, each of which names the one before nine times."""
    pairs = zip(NAMES, NAMES[1:], strict=False)
    return first + "".join(line.format(name=name, ten=", ".join([f"*{before}"] * 9)) for before, name in pairs)


ALIASES = nine_times("x: &x [q, q, q]\n", "{name}: &{name} [{ten}]\n")
MERGES = nine_times("x: &x {q: 1}\n", "{name}: &{name}\n  <<: [{ten}]\n")
BOMBS = {
    "aliases": ALIASES + "layers: *i\n",
    "merges": MERGES + "layers: *i\n",
    "self": "layers: &a [*a]\n",
    "self as key": "&a ? *a : 1\n",
    "deep": "layers: " + "[" * 15_000 + "\n",
    "deep blocks": "layers:\n" + "".join(" " * n + "-\n" for n in range(200)),
    "deep objects": "layers: " + "{a: " * 2_000 + "}" * 2_000 + "\n",
    "long": "layers: [" + "1," * 1_000_000 + "]\n",
    "many scalars": "layers: [" + "1," * 8_000 + "]\n",
    "one word": "alg_name: " + "x" * 15_000 + "\n",
    "one key": "x" * 15_000 + ": 1\n",
    "sexagesimal": "nas_seed: 1" + ":1" * 8_000 + "\n",
    "hexadecimal": "nas_seed: 0x" + "f" * 15_000 + "\n",
    "digits": "nas_seed: " + "1" * 15_000 + "\n",
    "tags": "".join(f"!!python/object/apply:os.system ? [x{n}] : 1\n" for n in range(300)),
}
TAGGED = r"""
2024-13-45 | 2024-01-01 | 2024-01-01T00:00:00+99:99 | !!int x | !!int '' | !!float '' | !!bool x | !!timestamp x | !!binary '*'
!!binary aGk= | !!set {a} | !!omap [a: 1] | !!pairs [a: 1] | !!str [a] | !!null x | !!python/object:os.x {} | !!python/tuple [1]
!!python/object/apply:os.system [x] | !!python/name:os.system | !x y | {a: 1} | [[1]] | [] | ~ | .nan | .inf | -.inf | 1e999
0b | 0b1 | = | << | {<<: 1} | [1, 2 | {a | - 1 | ? x | a: b: c | {} | {[1]: 2} | {{a}: 2} | yes | 1_000 | 9223372036854775808
1:1:1.5 | "\ud800" | "\0" | "\UFFFFFFFF" | "\x" | ' | " | *x | &x [*x] | @ | ` | %
"""
SCALARS = [
    *(scalar for line in TAGGED.strip().splitlines() for scalar in line.split(" | ")),
    *("1" * 400, "-" + "1" * 5000, "0x" + "f" * 40, "0x" + "f" * 5000, "1" + ":1" * 300 + ".0", "|", "\t", "\x85"),
]
KEYS = [
    *(
        "<<",
        "1",
        "2024-01-01",
        "~",
        "[1, 2]",
        "{a: 1}",
        "yes",
        "''",
        '"\\ud800"',
        '"\\0"',
        "!!int x",
        "!!python/name:os.x",
    ),
    *("method", "__class__"),
]


def lines_of(path: Path) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in path.read_text().splitlines() if ": " in line and line[0] != "#")


GOOD = {cls: lines_of(shipped_folder() / f"NAS-{cls.method}/gpt2-xl.yaml") for cls in CLASSES}
RAW_SCALAR = st.sampled_from(SCALARS) | st.text(max_size=12) | st.integers().map(str) | st.floats().map(str)


@st.composite
def damaged_lines(draw: st.DrawFn, cls: type[NASHparams]) -> str:
    """A shipped file of which up to three lines are gone, others, or more."""
    lines = dict(GOOD[cls])
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from([*GOOD[cls], *KEYS]) | st.text(max_size=6))
        if draw(st.integers(0, 5)):
            lines[key] = draw(RAW_SCALAR)
        else:
            lines.pop(key, None)
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


@pytest.fixture(autouse=True, scope="module")
def memory() -> Iterator[None]:
    with little_memory():
        yield


def load(path: Path, cls: type[NASHparams], content: bytes) -> NASHparams | None:
    path.write_bytes(content)
    hparams = survives(lambda: cls.from_hparams(path))
    if hparams is not None:
        # What is accepted can be used: identified, written out, checked again.
        assert len(hparams.digest()) == 64 and str(hparams.to_dict()).encode()
        hparams.validate()
        assert isinstance(hparams.model_name, str)
    return hparams


@settings(FUZZ, max_examples=250)
@given(data=st.data(), cls=st.sampled_from(CLASSES))
def test_a_damaged_file(tmp_path: Path, cls: type[NASHparams], data: st.DataObject) -> None:
    load(tmp_path / "h.yaml", cls, data.draw(damaged_lines(cls)).encode("utf-8", "surrogatepass"))


@FUZZ
@given(data=st.data())
def test_any_bytes(tmp_path: Path, data: st.DataObject) -> None:
    good = (shipped_folder() / "NAS-AlphaEdit/gpt2-xl.yaml").read_bytes()
    content = data.draw(st.binary(max_size=80) | st.text(max_size=80).map(str.encode) | mangled(good))
    load(tmp_path / "h.yaml", NASAlphaEditHparams, content)
    survives(lambda: load_hparams(tmp_path / "h.yaml", {}))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.yaml"
    good = "".join(f"{key}: {value}\n" for key, value in GOOD[NASMEMITHparams].items() if key not in BOMBS[name])
    for content in (BOMBS[name], good + BOMBS[name]):
        assert load(path, NASMEMITHparams, content.encode()) is None


def test_a_large_file_is_not_read_in_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(HparamsError, match="not a readable YAML"):
        NASMEMITHparams.from_hparams(path)


@FUZZ
@given(value=RAW_SCALAR, key=st.sampled_from(sorted(GOOD[NASMEMITHparams])))
def test_a_setting_on_the_command_line(value: str, key: str) -> None:
    def found() -> Any:
        values = RunOptions(set=[f"{key}={value}"]).settings
        return load_hparams("NAS-MEMIT/gpt2-xl", values)

    survives(found)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_on_the_command_line(name: str) -> None:
    survives(lambda: RunOptions(set=[f"layers={BOMBS[name].partition(': ')[2]}"]).settings)


NO_VALUES: list[Any] = [
    10**5000,
    -(10**400),
    2**63,
    math.nan,
    math.inf,
    [10**5000],
    {1: 2},
    {1},
    b"x",
    object(),
    "9" * 5000,
]


@FUZZ
@given(field=st.sampled_from(sorted(GOOD[NASMEMITHparams])), value=st.sampled_from(NO_VALUES))
def test_a_value_from_code(field: str, value: Any) -> None:
    survives(lambda: NASMEMITHparams(**{field: value}).digest())


@pytest.mark.parametrize(
    "name", ["~nobody-of-that-name/x", "x" * 300, "a\0b", "x/" * 5000, "", "..", "NAS-MEMIT/../../x"]
)
def test_names_that_are_no_file(name: str) -> None:
    with pytest.raises(HparamsError, match="No hyperparameter file"):
        find_file(name, "NAS-MEMIT")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [" + "1," * 3000 + "]", "more than 2000 values"),
        ("# " + "x" * 17_000, "at most 16384"),
        ("model_name: 2024-01-01", "is a date; write"),
        ("model_name: !!set {a}", "is a set; write"),
        ("nas_seed: 9223372036854775808", "at most 64 bits"),
        ("nas_seed: -9223372036854775808", "at most 64 bits"),
        ('stats_dir: "a\\0b"', "holds a character"),
        ('stats_dir: "\\ud800"', "holds a character"),
        ('"\\ud800": 1', "holds a character"),
        ("1: 2", "is a int; write keys as text"),
        ("stats_dir: " + "x" * 1001, "has 1001 characters"),
        ("x" * 81 + ": 1", "no key has more"),
        ("a: *b", "an alias"),
        ("a: 2024-13-01", "has no meaning"),
    ],
)
def test_what_is_refused_says_why(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "h.yaml").write_text(text)
    with pytest.raises(HparamsError, match=says):
        NASMEMITHparams.from_hparams(tmp_path / "h.yaml")


def test_what_files_hold_is_still_read() -> None:
    for path in shipped_folder().glob("*/*.yaml"):
        assert parse_yaml(path.read_text())["alg_name"].startswith("NAS-")
    assert parse_yaml("a: [1, 2.5, yes, ~, x]") == {"a": [1, 2.5, True, None, "x"]}
    with pytest.raises(RunError, match="is no value in YAML"):
        RunOptions(set=["v_lr=*x"]).settings  # noqa: B018
