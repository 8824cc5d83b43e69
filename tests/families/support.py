"""The families that the promises do not go through one by one."""

from __future__ import annotations

from tests.conftest import ARCHITECTURES, CONFIGS

FAMILIES = tuple(family for family in CONFIGS if family not in ARCHITECTURES)
NORMED = ("olmo2", "gemma2", "gemma3_text", "gemma3")
