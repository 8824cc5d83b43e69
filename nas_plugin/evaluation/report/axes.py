"""Axes: how far they reach, whether they are logarithmic, and how their ticks are labelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SEVERAL = 10.0
"""Ratio of largest to smallest value from which a logarithmic axis is the readable one."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Range:
    """Ends of an axis, shared by all panels of a section.

    Attributes:
        low: Lower end.
        high: Upper end.
        logarithmic: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def around(cls, values: Sequence[float], low: float = math.inf) -> Range:
        """Make room for values.

        Args:
            values: What has to fit; those that are not finite do not.
            low: The axis reaches down to here at least.

        Returns:
            A range a little larger; logarithmic if positive values span a factor of ten or more.
        """
        finite = [value for value in values if math.isfinite(value)] + ([low] if math.isfinite(low) else [])
        bottom, top = (min(finite), max(finite)) if finite else (0.0, 1.0)
        if bottom > 0 and top / bottom >= SEVERAL:
            return cls(bottom / 1.1, top * 1.2, True)
        margin = 0.06 * (top - bottom) or 0.05 * abs(top) or 1.0
        return cls(bottom if bottom == low else bottom - margin, top + margin)

    def apply(self, axis: Any, name: str) -> None:
        """Set the ends of an axis.

        Args:
            axis: matplotlib axes.
            name: "x" or "y".
        """
        if self.logarithmic:
            from matplotlib.ticker import LogLocator, NullFormatter

            axis.set(**{f"{name}scale": "log"})
            scaled = getattr(axis, f"{name}axis")
            decades = math.log10(self.high / self.low)
            scaled.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3.5 else (1,)))
            scaled.set_major_formatter(lambda value, _: power_of_ten(value))
            scaled.set_minor_formatter(NullFormatter())
        axis.set(**{f"{name}lim": (self.low, self.high)})

    def remark(self, text: str) -> str:
        """Say in an axis title how the axis is divided.

        Args:
            text: The title.

        Returns:
            It, marked if logarithmic.
        """
        return f"{text} (log)" if self.logarithmic else text


def power_of_ten(value: float) -> str:
    """Label a tick of a logarithmic axis.

    Args:
        value: One, two or five times a power of ten.

    Returns:
        The number; beyond five digits as a power of ten.
    """
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    power = "10" + f"{int(exponent)}".translate(_SUPERSCRIPTS)
    return power if mantissa == "1" else f"{mantissa}·{power}"
