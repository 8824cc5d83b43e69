"""Colours of the page and of its charts, for light and dark backgrounds.

Charts are drawn with placeholder colours that name a role; the page turns them into CSS variables, so that a chart follows the
reader's colour scheme. Hues are Okabe and Ito's, some made darker or lighter until each stands out from its background
(contrast of 3 or more) and any two are told apart with any colour vision; a marker per method repeats the difference.
"""

from __future__ import annotations

import re

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One per hue; beyond them hues repeat with another marker."""

ROLES: dict[str, tuple[str, str]] = {
    "surface": ("#ffffff", "#15181c"),
    "raised": ("#f5f6f8", "#1e2227"),
    "ink": ("#1b1e22", "#e8eaed"),
    "muted": ("#565e69", "#a3abb5"),
    "line": ("#c9ced6", "#3c434c"),
    "hue-0": ("#005a9e", "#2b93d6"),
    "hue-1": ("#d55e00", "#f0803a"),
    "hue-2": ("#00875a", "#19c295"),
    "hue-3": ("#d070ab", "#e09cc3"),
    "hue-4": ("#75480a", "#e8ab1e"),
    "hue-5": ("#3a9ae0", "#8fd3fa"),
    "hue-6": ("#101010", "#f0e442"),
}
"""Role to its colour on a light and on a dark background."""
HUES = sum(role.startswith("hue-") for role in ROLES)

_PLACEHOLDER = re.compile(r"#0000([0-9a-f]{2})\b")


def placeholder(role: str) -> str:
    """Name a role in a way that a drawing library takes for a colour.

    Args:
        role: A key of `ROLES`.

    Returns:
        A hexadecimal colour.
    """
    return f"#0000{list(ROLES).index(role) + 1:02x}"


def with_variables(style: str) -> str:
    """Replace placeholders by the page's CSS variables.

    Args:
        style: Text of a style attribute.

    Returns:
        The text with `var(--role)` in their place.
    """
    return _PLACEHOLDER.sub(lambda match: f"var(--{list(ROLES)[int(match[1], 16) - 1]})", style)


def variables(dark: bool) -> str:
    """Declare the CSS variables.

    Args:
        dark: For a dark background.

    Returns:
        CSS declarations.
    """
    return " ".join(f"--{role}: {colours[dark]};" for role, colours in ROLES.items())
