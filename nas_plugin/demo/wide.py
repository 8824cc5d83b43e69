"""Make a demo model with many more keys than edits: `python -m nas_plugin.demo.wide --out DIR`.

The shipped model has 256 dimensions of keys at the edited layer, fewer than a stream of 300 edits needs: whatever one edit
writes, others disturb. Large models have some 14,000. This one is trained in the same world at twice the hidden size, and then
its MLPs get units with random input weights and no output: it computes what it computed, but its keys span 4,096
dimensions.
"""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from nas_plugin.demo.train import Recipe, build_model, build_tokenizer, recall, train
from nas_plugin.demo.world import World

logger = logging.getLogger(__name__)

WIDTH = 4096
_SPREAD, _SHIFT = 2.0, 2.0
"""Standard deviation of the new units' inputs, and how far below zero their mean lies: few are on for any one subject."""
_TEXTS = 200


@torch.no_grad()
def widen(
    model: GPT2LMHeadModel, tok: PreTrainedTokenizerFast, texts: Sequence[str], width: int = WIDTH, seed: int = 0
) -> None:
    """Give every MLP more hidden units, in place; the function the model computes stays the same.

    Args:
        model: A model of the demo's kind.
        tok: Its tokenizer.
        texts: What the units' inputs are scaled on.
        width: Hidden units afterwards.
        seed: Of the random input weights.
    """
    generator = torch.Generator().manual_seed(seed)
    for block in model.transformer.h:
        mlp = block.mlp
        d_in, d_hidden = mlp.c_fc.weight.shape
        rows = _inputs(model, tok, mlp, texts)  # (tokens, d_in)
        mean = rows.mean(0)
        size = (rows - mean).square().sum(1).mean().sqrt()
        weight = torch.randn(d_in, width - d_hidden, generator=generator) * _SPREAD / size
        wide_in, wide_out = Conv1D(width, d_in), Conv1D(d_in, width)
        wide_in.weight.copy_(torch.cat([mlp.c_fc.weight, weight], 1))
        wide_in.bias.copy_(torch.cat([mlp.c_fc.bias, -(mean @ weight) - _SHIFT]))
        wide_out.weight.copy_(torch.cat([mlp.c_proj.weight, torch.zeros(width - d_hidden, d_in)]))
        wide_out.bias.copy_(mlp.c_proj.bias)
        mlp.c_fc, mlp.c_proj = wide_in, wide_out
    # As a file has it: one width for all.
    model.config.n_inner = width


def _inputs(model: GPT2LMHeadModel, tok: PreTrainedTokenizerFast, mlp: torch.nn.Module, texts: Sequence[str]) -> Tensor:
    """Collect what goes into an MLP, `(tokens, d_in)`."""
    seen: list[Tensor] = []
    handle = mlp.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].reshape(-1, inputs[0].shape[-1]))
    )
    for text in texts:
        model(input_ids=tok(text, return_tensors="pt")["input_ids"])
    handle.remove()
    return torch.cat(seen)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, widen and save; text for second moments goes beside the model.

    Args:
        arguments: Command line; the process's own when None.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the model and moment-texts.json")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of documents")
    parser.add_argument("--epochs", type=int, default=14, help="passes over the world")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    world, recipe = World(), Recipe(n_embd=128, n_inner=512, epochs=given.epochs, seed=given.seed)
    tok = build_tokenizer(world, given.out)
    model = build_model(recipe, tok)
    train(model, tok, world, recipe)
    widen(model, tok, world.moment_texts()[:_TEXTS], seed=given.seed)
    logger.info("facts known: %.2f %%", 100 * recall(model, tok, world))
    model.save_pretrained(given.out)
    # Of all people: in a world this small, text that leaves out the edited ones says nothing about their keys.
    (given.out / "moment-texts.json").write_text(json.dumps([*world.documents()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
