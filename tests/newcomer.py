"""A newcomer's path, run by `make newcomer` in an environment that holds the installed wheel, PEFT and EasyEdit's wheel.

`nas-edit doctor`; the quickstart in EasyEdit; 100 edits in a kept session; export as a whole model, as edits and as adapters;
each read again in a new process, whose logits are compared with those of the session.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

EDITS = 100
FEW = 8  # so few that factors take less room than the matrix
CUT = 8
PROMPTS = 20


def main() -> None:
    """Go through all stages, each in a process of its own.

    Raises:
        SystemExit: A stage failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run(folder, "nas-edit", "doctor")
        _run(folder, "nas-edit", "hparams", "copy", "NAS-AlphaEdit/nas-demo", "mine.yaml")
        _run(folder, "nas-edit", "doctor", "mine.yaml")
        _stage(folder, "easyedit")
        _stage(folder, "edit", "many", str(EDITS))
        _stage(folder, "edit", "few", str(FEW))
        for kept, form, out, *more in (
            ("many", "full", "whole"),
            ("many", "edits", "shared"),
            ("few", "edits", "factors"),
            ("many", "lora", "adapter"),
            ("many", "lora", "cut", "--rank", str(CUT)),
        ):
            _run(folder, "nas-edit", "export", kept, "--model", "demo", "--to", form, "--out", out, *more)
        _run(folder, "nas-edit", "apply", "shared", "--model", "demo", "--out", "applied")
        for kept, out in (("many", "whole"), ("many", "applied"), ("many", "shared"), ("few", "factors")):
            _stage(folder, "reload", kept, out)
        for out in ("adapter", "cut"):
            _stage(folder, "adapter", out)


def easyedit() -> None:
    """Edit the embedded model through EasyEdit, as the README does; its wheel asks for an accelerator and gets the CPU."""
    sys.path.insert(0, str(Path(__file__).parent / "easyedit"))
    from cpu_redirect import accelerators_are_cpu

    from nas_plugin import NASAlphaEditHparams, Preloaded, apply_edits, commit_edits, export_edits, session_of
    from nas_plugin.demo import load_demo
    from nas_plugin.easyedit.host import load_host
    from nas_plugin.evaluation.streams import load_stream

    with accelerators_are_cpu(load_host().is_wheel):
        from easyeditor import BaseEditor

        hparams = NASAlphaEditHparams.from_hparams("mine.yaml")
        model, tok = load_demo()
        hparams.model_name = Preloaded(model, tok, "nas-demo")
        editor = BaseEditor.from_hparams(hparams)
        first, second = (case.requests[0] for case in load_stream("demo", limit=2).cases)
        metrics, _, _ = editor.edit(
            prompts=[first.prompt],
            subject=[first.subject],
            target_new=[first.target],
            ground_truth=["?"],
            sequential_edit=True,
        )
        _check("the edit takes in EasyEdit's own measure", float(metrics[0]["post"]["rewrite_acc"][0]), 1.0, 0.0)
        report = commit_edits(editor, [second])
        _check("an edit committed without EasyEdit's evaluation", float(report.committed), 1.0, 0.0)
        export_edits(session_of(editor), "from-easyedit", "edits")
        applied = apply_edits(load_demo()[0], "from-easyedit")
        _check("edits exported from EasyEdit and read again, bit for bit", float(applied.exact), 1.0, 0.0)
        _check("how many", float(applied.about.edits), 2.0, 0.0)


def edit(kept: str, count: str) -> None:
    """Edit facts in a kept session, and note the logits of the unedited and the edited model.

    Args:
        kept: Folder to keep it in.
        count: How many facts.
    """
    from nas_plugin import EditSession, NASAlphaEditHparams
    from nas_plugin.demo import load_demo
    from nas_plugin.evaluation.streams import load_stream

    model, tok = load_demo()
    save_file(_logits(model, tok), "before.safetensors")
    with EditSession(model, tok, NASAlphaEditHparams.from_hparams("mine.yaml"), keep=kept) as session:
        for case in load_stream("demo", limit=int(count)).cases:
            session.edit(list(case.requests))
    save_file(_logits(model, tok), f"{kept}.safetensors")
    sys.stdout.write(f"{count} edits\n")


def reload(kept: str, out: str) -> None:
    """Read an export that promises every bit and compare its logits with those of the session.

    Args:
        kept: The session.
        out: Folder of its export.

    Raises:
        SystemExit: They differ, or factors were asked for and it has none.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nas_plugin import apply_edits
    from nas_plugin.demo import load_demo

    model, tok = load_demo()
    if (Path(out) / "edits.safetensors").exists():
        apply_edits(model, out)
        matrix = max(parameter.numel() * 4 for parameter in model.parameters())
        smaller = (Path(out) / "edits.safetensors").stat().st_size < matrix / 2
        _check(f"{out}: smaller than half its matrix", float(smaller), float(out == "factors"), 0.0)
    else:
        model, tok = AutoModelForCausalLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    wanted = load_file(f"{kept}.safetensors")["logits"]
    _check(f"{out}: logits", float((_logits(model, tok)["logits"] - wanted).abs().max()), 0.0, 0.0)


def adapter(out: str) -> None:
    """Load an adapter with PEFT itself: it keeps of the change what it says, and one of the whole rank gives the logits.

    Args:
        out: Folder of the adapter.

    Raises:
        SystemExit: It does not.
    """
    from peft import PeftModel

    from nas_plugin import apply_edits
    from nas_plugin.demo import load_demo

    base, tok = load_demo()
    unedited = {name: value.detach().clone() for name, value in base.named_parameters()}
    stated = apply_edits(load_demo()[0], out).share
    merged = PeftModel.from_pretrained(base, out).merge_and_unload()
    whole = load_file("whole/model.safetensors")
    energy = kept = 0.0
    for name, parameter in merged.named_parameters():
        if name in whole and not torch.equal(whole[name], unedited[name]):
            change, adapted = (value.double() - unedited[name].double() for value in (whole[name], parameter.detach()))
            energy += float(change.square().sum())
            kept += float(adapted.square().sum())
    _check(f"{out}: share of the change that is kept, against {stated:.6f} stated", kept / energy, stated, 1e-5)
    wanted, before = load_file("many.safetensors")["logits"], load_file("before.safetensors")["logits"]
    off = float((_logits(merged, tok)["logits"] - wanted).norm() / (wanted - before).norm())
    # A cut adapter is promised its share and nothing about logits: what they are off by is said, not checked.
    _check(f"{out}: logits off, as a share of what the edits moved", off, off if stated < 1 - 1e-6 else 0.0, 1e-4)


def _logits(model: Any, tok: Any) -> dict[str, torch.Tensor]:
    from nas_plugin.evaluation.streams import load_stream

    torch.set_num_threads(1)
    requests = [case.requests[0] for case in load_stream("demo", limit=PROMPTS).cases]
    found = []
    with torch.no_grad():
        for request in requests:
            tokens = tok(request.prompt, return_tensors="pt")["input_ids"]
            found.append(model(input_ids=tokens).logits[0, -1])
    return {"logits": torch.stack(found).contiguous()}


def _check(what: str, got: float, wanted: float, within: float) -> None:
    if not abs(got - wanted) <= within:
        raise SystemExit(f"{what}: {got}, not {wanted} within {within}")
    sys.stdout.write(f"{what}: {got:g}\n")
    sys.stdout.flush()


def _run(folder: Path, command: str, *arguments: str) -> None:
    program = Path(sys.executable).parent / command
    sys.stdout.write(f"$ {command} {' '.join(arguments)}\n")
    sys.stdout.flush()
    done = subprocess.run([program, *arguments], cwd=folder, check=False)
    if done.returncode:
        raise SystemExit(f"{command} {' '.join(arguments)} ended with {done.returncode}")


def _stage(folder: Path, *arguments: str) -> None:
    _run(folder, Path(sys.executable).name, "-I", str(Path(__file__).resolve()), *arguments)


if __name__ == "__main__":
    stages = {"easyedit": easyedit, "edit": edit, "reload": reload, "adapter": adapter}
    if len(sys.argv) == 1:
        main()
    else:
        stages[sys.argv[1]](*sys.argv[2:])
