"""Every named error is explained, says where, and says it once."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import nas_plugin
from nas_plugin import errors
from nas_plugin.errors import HparamsError, NasPluginError

PACKAGE = Path(nas_plugin.__file__).resolve().parent
CLASSES = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == errors.__name__
}
PARTS = ("Symptom", "Cause", "What to do")

LEAK = """
try:
    load()
except {caught} as error:
    {body}
"""


def entries() -> list[tuple[str, str]]:
    text = (PACKAGE.parent / "docs" / "errors.md").read_text(encoding="utf-8")
    pieces = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    return list(zip(pieces[::2], pieces[1::2], strict=True))


def test_every_error_has_one_entry_and_every_entry_is_an_error() -> None:
    assert CLASSES and all(issubclass(kind, NasPluginError) for kind in CLASSES.values())
    assert [name for name, _ in entries()] == list(CLASSES), "one entry for each class, in the order of errors.py"


@pytest.mark.parametrize("name", CLASSES)
def test_an_entry_has_all_its_parts(name: str) -> None:
    found = re.findall(r"^- \*\*(.+)\.\*\* (.*)$", dict(entries())[name], flags=re.MULTILINE)
    assert [part for part, _ in found] == list(PARTS)
    assert all(len(text) > 10 for _, text in found)


def test_links_within_the_documentation_lead_somewhere() -> None:
    anchors = {name.lower() for name, _ in entries()}
    text = "".join(body for _, body in entries())
    folder = PACKAGE.parent / "docs"
    for file, anchor in re.findall(r"\]\(([\w./]*)#?([\w-]*)\)", text):
        assert (folder / file).exists() if file else anchor in anchors, (file, anchor)


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_an_error_says_where_it_is_explained(kind: type[NasPluginError]) -> None:
    error = kind("the value is 3; give 2.")
    assert error.message == "the value is 3; give 2."
    assert str(error) == f"the value is 3; give 2. [docs/errors.md#{kind.__name__.lower()}]"


def test_no_message_holds_another_with_its_link() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in leaks(path.read_text(encoding="utf-8"))
    ]
    assert not found, "use error.message, so that the link stands at the end and once"


@pytest.mark.parametrize(
    ("caught", "body", "found"),
    [
        ("HparamsError", 'raise RunError(f"no: {error}") from error', True),
        ("(OSError, errors.RunError)", 'raise RunError("no: " + str(error)) from error', True),
        ("NasPluginError", "reason = str(error)", True),
        ("RequestError", "raise AnchorError(error) from error", True),
        ("RequestError", 'raise AnchorError("no: %s" % error) from error', True),
        ("HparamsError", 'raise RunError(f"no: {error.message}") from error', False),
        ("HparamsError", "raise error", False),
        ("OSError", 'raise RunError(f"no: {error}") from error', False),
        ("HparamsError", 'console.print(f"no: {error}")', False),
        ("HparamsError", 'logger.warning("no: %s", error)', False),
    ],
)
def test_what_counts_as_a_link_within_a_message(caught: str, body: str, found: bool) -> None:
    assert bool(leaks(LEAK.format(caught=caught, body=body))) is found


def test_a_file_is_named_once_and_the_link_comes_last(tmp_path: Path) -> None:
    path = tmp_path / "memit.yaml"
    path.write_text("alg_name: NAS-MEMIT\nmodel_name: demo\nlayers: [0]\nv_lrr: 0.1\n", encoding="utf-8")
    with pytest.raises(HparamsError) as caught:
        nas_plugin.NASMEMITHparams.from_hparams(str(path))
    assert str(caught.value).count("docs/errors.md") == 1 and str(caught.value).endswith(
        "[docs/errors.md#hparamserror]"
    )


def leaks(source: str) -> list[int]:
    """List the lines that put a caught error of ours, not its `message`, into a text that is not shown then and there."""
    lines: list[int] = []
    for handler in ast.walk(ast.parse(source)):
        if isinstance(handler, ast.ExceptHandler) and handler.name and handler.type and ours(handler.type):
            for statement in handler.body:
                lines += whole(statement, handler.name)
    return lines


def ours(caught: ast.expr) -> bool:
    return any(getattr(node, "id", getattr(node, "attr", None)) in CLASSES for node in ast.walk(caught))


def whole(node: ast.AST, name: str) -> list[int]:
    """List where the error itself becomes text: by an f-string, `str`, `%` or `+`, or as another error's argument."""
    if isinstance(node, ast.Call) and called(node) in {"print", "debug", "info", "warning", "error", "exception"}:
        return []
    inner: list[ast.AST] = []
    if isinstance(node, ast.FormattedValue):
        inner = [node.value]
    elif isinstance(node, ast.Call) and called(node) in {"str", "repr", "format", *CLASSES}:
        inner = [*node.args]
    elif isinstance(node, ast.BinOp):
        inner = [node.left, node.right, *getattr(node.right, "elts", [])]
    lines = [part.lineno for part in inner if isinstance(part, ast.Name) and part.id == name]
    return lines + [line for child in ast.iter_child_nodes(node) for line in whole(child, name)]


def called(call: ast.Call) -> str | None:
    return getattr(call.func, "id", getattr(call.func, "attr", None))


def said(path: Path) -> list[str]:
    """All texts of a source, with a NUL where a value goes."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


@pytest.fixture(scope="module")
def texts() -> str:
    return "\0".join(text for path in sorted(PACKAGE.rglob("*.py")) for text in said(path))


@pytest.mark.parametrize("name", CLASSES)
def test_a_symptom_is_what_the_message_says(name: str, texts: str) -> None:
    """Whoever looks for a message in the documentation finds it: words in capitals, numbers and dots stand for values."""
    symptom = re.split(r"^- \*\*Cause", dict(entries())[name], flags=re.MULTILINE)[0]
    quoted = re.findall(r"`([^`]+)`", re.sub(r"\s+", " ", symptom))
    pieces = [part for text in quoted for part in re.split(r"\b[A-Z][A-Z_]*\b|\.\.\.|\b\d+\b", text)]
    pieces = [piece.strip(" '\"()[]:;,.") for piece in pieces]
    assert [piece for piece in pieces if len(piece) > 5 and piece not in texts] == []
