"""Write the hyperparameter files of the models in models.yaml: `python scripts/shipped_hparams.py`.

Files of other models in hparams/ are written by hand and left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nas_plugin.hparams.render import EDIT_BEHIND_NORM, METHODS, Recipe, early_layers, render
from nas_plugin.model.architectures import ARCHITECTURES
from nas_plugin.model.recognise import modules_of

ROOT = Path(__file__).resolve().parents[1]


def texts() -> dict[str, str]:
    """Make all files.

    Returns:
        Name below hparams/ -> text.
    """
    models = yaml.safe_load((ROOT / "scripts" / "models.yaml").read_text(encoding="utf-8"))
    return {f"NAS-{method}/{name}.yaml": _text(entry, method) for name, entry in models.items() for method in METHODS}


def _text(entry: dict[str, Any], method: str) -> str:
    said = entry["methods"].get(method) or entry["methods"]["else"]
    row = ARCHITECTURES[entry["family"]]
    edit = {**(EDIT_BEHIND_NORM if row.mlp_norm else {}), **entry.get("edit", {}), **said.get("edit", {})}
    head = "embed_out" if entry["family"] == "gpt_neox" else "lm_head"
    recipe = Recipe(
        entry["model"],
        entry["blocks"],
        entry.get("layers") or early_layers(entry["blocks"]),
        modules_of(row, head),
        edit,
    )
    return render(recipe, method, said["mark"], [line.replace("METHOD", method) for line in said["source"]])


def main() -> None:
    """Write what is not as it should be."""
    for name, text in texts().items():
        path = ROOT / "hparams" / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote hparams/{name}")


if __name__ == "__main__":
    main()
