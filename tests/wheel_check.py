"""Run by `make wheel-test` with `python -I` in an environment that holds nothing but the installed wheel."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path


def main() -> None:
    """Check that an installed package carries its files, and that its parts work without a source checkout.

    Raises:
        SystemExit: something is missing; the message says what.
    """
    import nas_plugin
    from nas_plugin.evaluation.capability import shipped_tasks
    from nas_plugin.evaluation.report import write_report
    from nas_plugin.hparams import shipped_folder, shipped_names

    package = Path(nas_plugin.__file__).resolve().parent
    checks = {
        "the package comes from the environment": Path(sys.prefix).resolve() in package.parents,
        "the version is the distribution's": metadata.version("nas-plugin") == nas_plugin.__version__,
        "the hyperparameter files lie inside the package": shipped_folder() == package / "_hparams",
        "there are six methods times 21 models": len(shipped_names()) == 126,
        "the capability tasks are there": len(shipped_tasks()) == 7,
        "the report's templates are there": callable(write_report) and any(package.rglob("*.html*")),
        "types are declared": (package / "py.typed").is_file(),
        "the pilot facts are there": any((package / "data").glob("*.json")),
        "the command is there": any(e.name == "nas-edit" for e in metadata.entry_points(group="console_scripts")),
    }
    for name in shipped_names():
        method = name.split("/")[0].replace("-", "")
        getattr(nas_plugin, f"{method}Hparams").from_hparams(name)

    from nas_plugin.demo import load_demo

    model, tokenizer = load_demo()
    logits = model(**tokenizer("the", return_tensors="pt")).logits
    checks["the demo model runs"] = bool(logits.isfinite().all())
    checks["EasyEdit is not needed"] = "easyeditor" not in sys.modules

    failed = [what for what, right in checks.items() if not right]
    if failed:
        raise SystemExit("The wheel is incomplete. Not true: " + "; ".join(failed))
    sys.stdout.write(f"wheel of nas-plugin {nas_plugin.__version__}: {len(checks)} checks passed\n")


if __name__ == "__main__":
    main()
