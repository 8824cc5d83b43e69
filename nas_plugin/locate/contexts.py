"""Context templates: short prefixes that the unedited model writes itself, so that keys do not depend on one phrasing.

Source: MEMIT (Meng et al., 2023), appendix on value optimisation; lengths and sampling as in its released code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

from nas_plugin.errors import PlaceholderError
from nas_plugin.model.editable import EditableModel
from nas_plugin.model.trace import as_found, forked_rng
from nas_plugin.reading import short

_OPENINGS = ("The", "Therefore", "Because", "I", "You")
_TOTAL_TOKENS = 10
_TOP_K = 5


@dataclass(frozen=True)
class ContextTemplates:
    """Groups of templates; a key is the mean over groups of the mean within each group.

    Attributes:
        groups: `(("{}",), five generated templates)`; every template holds one `{}`.
        seed: Seed they were sampled with, None if given by the caller.

    Raises:
        PlaceholderError: A template does not hold exactly one `{}`, or the first is not the bare "{}".
    """

    groups: tuple[tuple[str, ...], ...]
    seed: int | None = None

    def __post_init__(self) -> None:
        """Validate the templates."""
        for template in self.flat:
            if template.count("{}") != 1:
                raise PlaceholderError(f"context template {template!r} must hold exactly one '{{}}'.")
        if not self.groups or self.groups[0] != ("{}",):
            raise PlaceholderError("the first group of context templates must be the bare prompt: ('{}',).")

    @property
    def flat(self) -> tuple[str, ...]:
        """All templates, the bare prompt first."""
        return tuple(template for group in self.groups for template in group)

    @property
    def weights(self) -> tuple[float, ...]:
        """Share of each template in a key: groups count alike, templates alike within their group."""
        return tuple(1.0 / (len(self.groups) * len(group)) for group in self.groups for _ in group)

    @property
    def digest(self) -> str:
        """SHA-256 of the templates."""
        return hashlib.sha256(json.dumps(self.groups).encode()).hexdigest()

    def to_values(self) -> dict[str, Any]:
        """Return what JSON can hold of them."""
        return {"groups": [list(group) for group in self.groups], "seed": self.seed}

    @classmethod
    def from_values(cls, values: Any, where: str) -> ContextTemplates:
        """Make them of what `to_values` returned, and a file may have held since.

        Args:
            values: The values.
            where: The file, for messages.

        Returns:
            The templates.

        Raises:
            PlaceholderError: They are none.
        """
        groups, seed = (values.get("groups"), values.get("seed")) if isinstance(values, dict) else (None, None)
        if not isinstance(groups, list) or not all(
            isinstance(group, list) and group and all(isinstance(text, str) for text in group) for group in groups
        ):
            raise PlaceholderError(f"{where}: the contexts' groups are {short(groups)}; expected lists of templates.")
        if seed is not None and type(seed) is not int:
            raise PlaceholderError(f"{where}: the contexts' seed is {short(seed)}; expected a whole number.")
        return cls(tuple(map(tuple, groups)), seed)

    @classmethod
    def bare(cls) -> ContextTemplates:
        """Return the bare prompt alone."""
        return cls((("{}",),))


def generate_contexts(em: EditableModel, tok: Any, seed: int) -> ContextTemplates:
    """Let the unedited model continue five openings to ten tokens each.

    Args:
        em: The model, unedited.
        tok: Its tokenizer; not changed.
        seed: Sampling seed; the caller's random streams are untouched.

    Returns:
        The bare prompt and five generated templates.
    """
    texts = []
    with as_found(em.model), forked_rng(em.model, seed), torch.no_grad():
        for opening in _OPENINGS:
            ids = tok(opening, return_tensors="pt", return_token_type_ids=False)["input_ids"].to(em.input_device)
            texts.append(_continued(em, tok, ids))
    # Braces would be taken for placeholders.
    templates = tuple(text.replace("{", " ").replace("}", " ") + ". {}" for text in texts)
    return ContextTemplates((("{}",), templates), seed)


def _continued(em: EditableModel, tok: Any, ids: torch.Tensor) -> str:
    new = max(1, _TOTAL_TOKENS - ids.shape[1])
    output = em.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=_TOP_K,
        top_p=1.0,
        temperature=1.0,
        min_new_tokens=new,
        max_new_tokens=new,
        pad_token_id=tok.pad_token_id if tok.pad_token_id is not None else tok.eos_token_id,
    )
    return str(tok.decode(output[0], skip_special_tokens=True)).strip()
