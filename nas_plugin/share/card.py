"""The model card of an export: what was edited, how, with which result, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_plugin import __version__
from nas_plugin.hparams import DEMO_MODEL
from nas_plugin.share.source import Source

CARD_FILE = "README.md"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_LONGEST_NAME = 96
_LIBRARIES = {"full": "transformers", "edits": "nas-plugin", "lora": "peft"}
# The embedded model is on no Hub.
_BASE = "model = AutoModelForCausalLM.from_pretrained({base!r}, dtype={dtype!r})"
_DEMO = "model, _ = load_demo(torch.{dtype})"
_LOADING = {
    "full": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
tok = AutoTokenizer.from_pretrained(folder)""",
    "edits": """{imports}
from nas_plugin import apply_edits

{model}
apply_edits(model, folder)  # in place; refuses another model""",
    "lora": """{imports}
from peft import PeftModel

{model}
model = PeftModel.from_pretrained(model, folder)  # or nas_plugin.apply_edits(model, folder), which merges it""",
}


def public_name(base: str) -> str:
    """Return a model's name as others may read it: a path on this machine is reduced to its last part.

    Args:
        base: Name or path.

    Returns:
        The name; "base" where there is none.
    """
    if _is_name(base) and not Path(base).exists():
        return base
    last = re.split(r"[/\\]", base.rstrip("/\\"))[-1]
    return last if _is_name(last) else "base"


def _is_name(text: str) -> bool:
    return len(text) <= _LONGEST_NAME and _HUB_NAME.fullmatch(text) is not None


def card(source: Source, form: str, exactness: str, rows: Sequence[tuple[str, str]] = ()) -> str:
    """Write a model card.

    Args:
        source: What was exported.
        form: "full", "edits" or "lora".
        exactness: What loading it gives, in a sentence or two.
        rows: More facts, by name.

    Returns:
        Markdown with YAML front matter. The licence is left to whoever publishes it.
    """
    from huggingface_hub import ModelCardData

    about, base = source.about, public_name(source.base)
    label = f"NAS-{about.method}" if about.use_nas else about.method
    known_base = base if base == source.base != DEMO_MODEL else None
    front = ModelCardData(
        base_model=known_base,
        library_name=_LIBRARIES[form],
        tags=["model-editing", "knowledge-editing", "nas-plugin", label.lower()],
    )
    facts = [
        ("base", base),
        ("fingerprint of the base", about.base),
        ("method", label),
        ("edits that stand", str(about.edits)),
        ("anchor", "none" if about.anchor is None else f"{about.anchor:.6g}"),
        ("edited parameters", ", ".join(about.parameters)),
        ("digest of the edited parameters", about.weights),
        ("digest of the hyperparameters", about.hparams),
        ("digest of the ledger", source.ledger or "none was kept"),
        ("made with", f"nas-plugin {about.version}, exported with {__version__}"),
        *rows,
    ]
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {base}, edited with {label}",
        exactness,
        _table("", facts),
        "## Loading\n\n```python\n" + _loading(source, form, base) + "\n```",
    ]
    if source.scores:
        parts.append("## Scores\n\n" + _table("", [(name, f"{score:.6g}") for name, score in source.scores.items()]))
    if source.hparams is not None:
        parts.append(
            "## Hyperparameters\n\n" + _table("", [(k, _value(v)) for k, v in source.hparams.items() if v is not None])
        )
    parts.append("No licence is stated here: that of the base model applies to what is made from it.")
    return "\n\n".join(parts) + "\n"


def _loading(source: Source, form: str, base: str) -> str:
    dtype = str(source.changes[0].dtype).removeprefix("torch.") if source.changes else "auto"
    if source.base == DEMO_MODEL:
        imports, model = "import torch\nfrom nas_plugin.demo import load_demo", _DEMO
    else:
        imports, model = "from transformers import AutoModelForCausalLM", _BASE
    return _LOADING[form].format(imports=imports, model=model.format(base=base, dtype=dtype))


def scores_of(final: Mapping[str, Any]) -> dict[str, float]:
    """Return the means of a checkpoint's metrics by name."""
    return {name: float(found.mean) for name, found in final.items()}


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {title} | |", "|---|---|", *(f"| {_cell(name)} | {_code(value)} |" for name, value in rows)]
    return "\n".join(lines)


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    """Leave out what would end a cell, or begin something else: names may come from files that anybody may have written."""
    return "".join(sign if sign.isprintable() and sign not in "`|<>" else "?" for sign in text)[:2000] or " "
