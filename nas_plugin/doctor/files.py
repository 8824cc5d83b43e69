"""A hyperparameter file, and the model, statistics and anchor that it names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nas_plugin.doctor.environment import disk, memory_of, nearest
from nas_plugin.doctor.finding import Finding, gigabytes, ok, problem, warning
from nas_plugin.doctor.kept import anchor, statistics
from nas_plugin.errors import NasPluginError
from nas_plugin.hparams import DEMO_MODEL, NASHparams
from nas_plugin.model.editable import EditableModel

# Loaded whole, to compare its weights with what is kept for it.
_SMALL = 50_000_000
_TEXT_FILES = (".txt", ".json", ".jsonl")
_UNLOADABLE = (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError)


def files(name: str, model: str | None, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at all of it; what depends on something that is missing is left out.

    Args:
        name: A shipped name or a path.
        model: Folder or name of the model, or "demo"; by default that of the hyperparameters.
        settings: Hyperparameters that replace those of the file.

    Yields:
        A finding each.
    """
    from nas_plugin.evaluation.runner.load import load_hparams, model_name

    named = {} if model is None else {"model_name": model_name(model)}
    try:
        hparams = load_hparams(name, {**named, **settings})
    except NasPluginError as error:
        yield problem("file", error.message, "Correct it; nas-edit doctor then goes on.")
        return
    yield ok(
        "file", f"NAS-{hparams.method}{'' if hparams.use_nas else ' (use_nas: false)'}, layers {list(hparams.layers)}"
    )
    yield _text(hparams)
    config, finding = _config(hparams)
    yield finding
    if config is None:
        return
    em, finding = _shape(config, hparams)
    yield finding
    tok, finding = _tokenizer(hparams)
    yield finding
    if em is None:
        return
    yield from _memory(config, hparams)
    if hparams.stats_dir is not None:
        yield _writable(Path(hparams.stats_dir))
    fingerprint = _fingerprint(em, hparams)
    yield statistics(em, hparams, fingerprint)
    if hparams.use_nas and tok is not None:
        yield anchor(em, tok, hparams, fingerprint)


def _config(hparams: NASHparams) -> tuple[Any, Finding]:
    """Read the model's configuration, and look for its weights, without a network."""
    name = str(hparams.model_name)
    if name == DEMO_MODEL:
        from nas_plugin.demo import load_demo

        return load_demo()[0].config, ok("model", "the embedded model")
    from transformers import AutoConfig

    local = Path(name).expanduser()
    if not local.exists() and (name.startswith((".", "/", "~", "\\")) or name.count("/") > 1):
        return None, problem("model", f"there is no folder {name}", "Correct model_name, or give --model.")
    if local.is_dir() and _here(name, "config.json") is None:
        # Transformers 4.57 would guess a family from the folder's name.
        return None, problem("model", f"{name} holds no config.json", "Give the folder that save_pretrained wrote.")
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except _UNLOADABLE as error:
        if local.exists():
            return None, problem("model", f"{name}: {str(error)[:200]}", "Give the folder that save_pretrained wrote.")
        download = "The first use downloads it, if this machine has a network and, for a gated model, a login."
        return None, warning("model", f"{name} is not on this machine", download)
    weights = next(filter(None, (_here(name, file) for file in _WEIGHTS)), None)
    if weights is None:
        return config, warning("model", f"{name}: configuration here, weights not", "The first use downloads them.")
    return config, ok("model", f"{name} ({type(config).__name__}), in {Path(weights).parent}")


_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def _here(name: str, file: str) -> str | None:
    """Find a file of a model in its folder, or in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    local = Path(name).expanduser()
    if local.is_dir():
        return str(local / file) if (local / file).is_file() else None
    found = try_to_load_from_cache(name, file)
    return found if isinstance(found, str) else None


def _shape(config: Any, hparams: NASHparams) -> tuple[EditableModel | None, Finding]:
    """Build the model without numbers and find its modules."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        em = EditableModel(model, hparams, without_numbers=True)
    except NasPluginError as error:
        return None, problem("modules", error.message, f"See {error.entry}.")
    except _UNLOADABLE as error:
        return None, problem("modules", f"{str(error)[:200]}", "The model must be a causal language model.")
    width = " x ".join(map(str, em.matrix(em.layers[0]).shape))
    return em, ok("modules", f"{', '.join(em.parameter_names.values())} ({width}); loss at block {em.loss_layer}")


def _tokenizer(hparams: NASHparams) -> tuple[Any, Finding]:
    name = str(hparams.model_name)
    if name == DEMO_MODEL:
        from nas_plugin.demo import load_demo

        tok: Any = load_demo()[1]
    else:
        from transformers import AutoTokenizer

        try:
            tok = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except _UNLOADABLE as error:
            return None, warning("tokenizer", f"not on this machine: {str(error)[:150]}", "The first use downloads it.")
    if not tok.is_fast:
        advice = "Load the fast one; a slow one works where it decodes a text back to itself."
        return tok, warning("tokenizer", f"{type(tok).__name__} gives no character offsets", advice)
    if tok.pad_token is not None:
        return tok, ok("tokenizer", f"{type(tok).__name__}, pad token {tok.pad_token!r}")
    if tok.eos_token is None:
        return tok, warning("tokenizer", "neither pad token nor end-of-text token", "Set tok.pad_token; EasyEdit pads.")
    advice = "A tokenizer that you load yourself needs it: tok.pad_token = tok.eos_token."
    return tok, ok("tokenizer", f"no pad token; {tok.eos_token!r} is used for it", advice)


def _memory(config: Any, hparams: NASHparams) -> Iterator[Finding]:
    import torch

    from nas_plugin.easyedit.prepare import working_device
    from nas_plugin.memory import estimate_memory

    try:
        estimate = estimate_memory(config, hparams, batch_size=hparams.batch_size)
    except NasPluginError as error:
        yield warning("memory", error.message, "Nothing is estimated.")
        return
    device = torch.device(working_device(hparams.device))
    needed = estimate.peak + (estimate.host if device.type == "cpu" else 0)
    there = memory_of(device)
    says = (
        f"about {gigabytes(needed)} on {device.type} (most while it is in the phase {estimate.largest.name!r}), of "
        f"{gigabytes(there) if there else 'an unknown amount'}"
    )
    if there and needed > there and not hparams.model_parallel:
        yield warning(
            "memory", says, "Use torch_dtype: bfloat16, fewer layers, model_parallel: true, or a larger device."
        )
    else:
        yield ok("memory", says)
    if hparams.stats_dir is not None:
        yield disk(Path(hparams.stats_dir), estimate.disk, "disk for stats_dir")


def _writable(folder: Path) -> Finding:
    there = nearest(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return problem("stats_dir", f"{folder}: {there} cannot be written into", "Set stats_dir to a folder of yours.")
    return ok("stats_dir", f"{folder} ({'writable' if there == folder.absolute() else 'will be made'})")


def _text(hparams: NASHparams) -> Finding:
    source = str(hparams.mom2_dataset)
    if source.endswith(_TEXT_FILES) and not Path(source).is_file():
        return problem("mom2_dataset", f"there is no file {source}", "Correct mom2_dataset.")
    return ok("mom2_dataset", source)


def _fingerprint(em: EditableModel, hparams: NASHparams) -> str | None:
    """Identify the weights if they are few enough to be loaded in passing."""
    from nas_plugin.evaluation.runner.load import load_model
    from nas_plugin.model.fingerprint import weights_fingerprint

    name = str(hparams.model_name)
    count = sum(parameter.numel() for parameter in em.model.parameters())
    if count > _SMALL or not (name == DEMO_MODEL or Path(name).expanduser().is_dir()):
        return None
    try:
        return weights_fingerprint(load_model(hparams)[0])
    except (NasPluginError, *_UNLOADABLE):
        return None  # said before
