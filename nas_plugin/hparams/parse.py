"""YAML as hyperparameter files need it: short, flat, without anything that grows while it is read.

Aliases are refused, because ten lines of them can stand for more values than memory holds; so is every value that is not a
text, a number, true, false, null, or a list or mapping of those.
"""

from __future__ import annotations

from typing import Any

import yaml

from nas_plugin.reading import LARGEST, LONGEST_TEXT, short

_LONGEST = 16 * 1024
_DEEPEST = 8
# PyYAML takes a second for twenty thousand.
_MOST_NODES = 2000


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, deep nesting and very many values."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse what could grow, before it does; see `yaml.composer.Composer.compose_node`."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias, {short('*' + str(event.anchor))}; write the value out")
        self.nodes += 1
        if self.nodes > _MOST_NODES:
            raise yaml.YAMLError(f"more than {_MOST_NODES} values")
        if self.depth >= _DEEPEST:
            raise yaml.YAMLError("lists or mappings nested too deeply")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_yaml(text: str) -> Any:
    """Parse a YAML text.

    Args:
        text: The text, at most 16 KiB.

    Returns:
        Texts, numbers, truth values, None, and lists and mappings (by text) of those.

    Raises:
        ValueError: It is no such text.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"{len(text)} characters; hyperparameters take at most {_LONGEST}")
    try:
        loader = _Loader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # What PyYAML's constructors let through: dates that do not exist, `!!int x`, numbers with thousands of digits.
        raise ValueError(f"a value that YAML has no meaning for ({type(error).__name__}: {error})") from error
    _check(value)
    return value


def _check(value: Any) -> None:
    if isinstance(value, list):
        for inner in value:
            _check(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {short(key)} is a {type(key).__name__}; write keys as text")
            _check(key)
            _check(inner)
    elif isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            raise ValueError(f"{short(value)}... has {len(value)} characters; a text has at most {LONGEST_TEXT}")
        if "\0" in value or not _encodes(value):
            raise ValueError(f"{short(value)} holds a character that no text here can have")
    elif isinstance(value, int):
        if abs(value) > LARGEST:
            raise ValueError(f"{short(value)}; whole numbers have at most 64 bits")
    elif not (value is None or isinstance(value, float)):
        kind = type(value).__name__
        raise ValueError(f"{short(value)} is a {kind}; write text, a number, true, false, null or a list (quote text)")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
