"""Drawing with matplotlib, and making the result part of a page: no fixed colours, no fonts, no identifiers that collide."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from nas_plugin.errors import PackageMissingError
from nas_plugin.evaluation.report.palette import placeholder, with_variables

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_INK, _MUTED, _LINE = placeholder("ink"), placeholder("muted"), placeholder("line")
# A point is a unit of the drawing: at its natural width a chart's letters are as large as the page's small print.
_SETTINGS = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "svg.fonttype": "none", "svg.hashsalt": "nas_plugin", "text.parse_math": False, "font.size": 11,
    "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _LINE, "xtick.color": _LINE, "ytick.color": _LINE,
    "xtick.labelcolor": _INK, "ytick.labelcolor": _INK, "grid.color": _LINE, "grid.linewidth": 0.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "lines.linewidth": 2, "figure.constrained_layout.w_pad": 2 / 72, "figure.constrained_layout.h_pad": 2 / 72,
}  # fmt: skip
_DECIMALS = re.compile(r"(\d+\.\d\d)\d+")
# matplotlib names its own font and a list of others, in one property or, before 3.9, at the end of another.
_FAMILIES = re.compile(r"'[^;]*sans-serif")
_REFERENCE = re.compile(r"#([A-Za-z][\w.-]*)")


def draw(paint: Callable[[Any], None], width: float, height: float, name: str, title: str, description: str) -> Markup:
    """Draw a chart for a page.

    Args:
        paint: Draws on a matplotlib figure, in placeholder colours.
        width: Natural width, CSS pixels.
        height: Natural height.
        name: Prefix of its identifiers, unique on the page.
        title: What it shows, for those who cannot see it.
        description: What there is to see, likewise.

    Returns:
        An `<svg>` element that takes the width it is given.
    """
    root = _drawing(paint, width, height, name)
    root.set("class", "chart")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(tag, id=f"{name}-{tag}")
        element.text = text
        root.insert(0, element)
    return _markup(root)


def draw_symbol(paint: Callable[[Any], None], width: float, height: float, name: str) -> Markup:
    """Draw something small that a page shows in many places.

    Args:
        paint: Draws on a matplotlib figure, in placeholder colours.
        width: Natural width, CSS pixels.
        height: Natural height.
        name: Its identifier, unique on the page.

    Returns:
        A `<symbol>` element to be used by that identifier.
    """
    root = _drawing(paint, width, height, name)
    root.tag = "symbol"
    root.set("id", name)
    return _markup(root)


def _drawing(paint: Callable[[Any], None], width: float, height: float, name: str) -> ElementTree.Element:
    try:
        import matplotlib
    except ImportError as error:
        raise PackageMissingError("a report draws with matplotlib; pip install 'nas-plugin[eval]'.") from error
    from matplotlib.figure import Figure

    content = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        paint(figure)
        figure.savefig(content, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(content.getvalue())
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    for style in root.findall(f"./{{{_SVG}}}defs/{{{_SVG}}}style/.."):
        root.remove(style)
    used = {
        match for element in root.iter() for value in element.attrib.values() for match in _REFERENCE.findall(value)
    }
    for element in root.iter():
        _localise(element, used, name)
    return root


def _localise(element: ElementTree.Element, used: set[str], name: str) -> None:
    element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    for attribute, value in list(element.attrib.items()):
        del element.attrib[attribute]
        if attribute == "id":
            if value in used:
                element.set("id", f"{name}-{value}")
        elif attribute == "style":
            element.set("style", with_variables(_FAMILIES.sub("system-ui, sans-serif", value)))
        elif not (attribute == "transform" and value.startswith("rotate(-0 ")):
            value = _REFERENCE.sub(lambda match: f"#{name}-{match[1]}", _DECIMALS.sub(r"\1", value))
            element.set("href" if attribute == f"{{{_XLINK}}}href" else attribute, value)


def _markup(root: ElementTree.Element) -> Markup:
    # Drawn by us, and every text in it is escaped by the serialiser.
    return Markup(re.sub(r"\n\s*", "\n", ElementTree.tostring(root, encoding="unicode")))
