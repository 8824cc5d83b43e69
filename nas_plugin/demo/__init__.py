"""The embedded demo: a synthetic world and a tiny model that knows all of it."""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DEMO_MODEL_NAME = "nas-demo"


def load_demo(dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load the embedded model and its tokenizer from the installed package.

    Args:
        dtype: Floating-point type of the weights; float32 when None.

    Returns:
        The model in evaluation mode, on the CPU, and its tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    source = importlib.resources.files(__name__) / "model"
    bars = logging.is_progress_bar_enabled()
    # Half a megabyte needs no progress bar.
    logging.disable_progress_bar()
    try:
        with importlib.resources.as_file(source) as folder:
            tok = PreTrainedTokenizerFast.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    model.to(torch.float32 if dtype is None else dtype).eval()
    model.config._name_or_path = DEMO_MODEL_NAME
    return model, tok
