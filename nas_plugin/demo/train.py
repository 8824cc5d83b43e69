"""Train the embedded demo model from nothing: `python -m nas_plugin.demo.train --out DIR`.

The same seed gives the same world, and on the same machine the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence

import torch
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from nas_plugin.demo.words import RELATIONS, SPECIAL_TOKENS
from nas_plugin.demo.world import World

logger = logging.getLogger(__name__)

REST_WEIGHT = 0.1
"""Weight in the loss of every token that is no object of a fact."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Shape of the model and how it is trained.

    Attributes:
        n_layer: Number of decoder blocks.
        n_embd: Hidden size.
        n_head: Attention heads.
        n_inner: Inner width of the MLP, the input width of the edited matrix.
        n_positions: Longest sequence.
        epochs: Passes over the world.
        batch_size: Documents a step.
        lr: Peak learning rate of the one-cycle schedule.
        weight_decay: AdamW's weight decay on matrices.
        near_sighted: Share of training steps in which the first block sees only two tokens.
        seed: Seed of the initial weights and of the order of documents.
    """

    n_layer: int = 2
    n_embd: int = 64
    n_head: int = 4
    n_inner: int = 256
    n_positions: int = 64
    epochs: int = 20
    batch_size: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.01
    near_sighted: float = 0.8
    seed: int = 0


def build_tokenizer(world: World, folder: pathlib.Path) -> PreTrainedTokenizerFast:
    """Write the world's tokenizer and load it.

    Args:
        world: The world whose words are to be told apart.
        folder: Where the files go.

    Returns:
        The tokenizer as users will load it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(world.tokenizer_json() + "\n", encoding="utf-8")
    # Written by hand, because what one major version of transformers saves, the other does not load.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **SPECIAL_TOKENS,
        "model_max_length": Recipe.n_positions,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return PreTrainedTokenizerFast.from_pretrained(folder)


def build_model(recipe: Recipe, tok: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Make the untrained model.

    Args:
        recipe: Its shape.
        tok: Decides the vocabulary and the special token ids.

    Returns:
        A model with seeded random weights.
    """
    torch.manual_seed(recipe.seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tok),
            n_layer=recipe.n_layer,
            n_embd=recipe.n_embd,
            n_head=recipe.n_head,
            n_inner=recipe.n_inner,
            n_positions=recipe.n_positions,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tok.bos_token_id,
            eos_token_id=tok.eos_token_id,
            pad_token_id=tok.pad_token_id,
        )
    )


class _SubjectProbe(torch.nn.Module):
    """Asks the first block, at the end of every name, for all that is true of the person; dropped after training.

    Facts then settle where the name is complete, which is where editors write, and in minutes instead of an hour.
    """

    table: torch.Tensor
    truth: torch.Tensor

    def __init__(self, world: World, tok: PreTrainedTokenizerFast, width: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(width, len(tok))
        people = {tuple(tok.convert_tokens_to_ids(person.split())): i for i, person in enumerate(world.people)}
        table = torch.full((len(tok), len(tok)), -1)
        for (first, last), i in people.items():
            table[first, last] = i
        self.register_buffer("table", table)
        objects = tok.convert_tokens_to_ids([fact.obj for fact in world.facts])
        self.register_buffer("truth", torch.tensor(objects).view(len(world.people), len(RELATIONS)))

    def forward(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        person = self.table[ids[:, :-1], ids[:, 1:]]
        named = person >= 0
        log_probs = self.head(hidden[:, 1:][named]).log_softmax(-1)
        return -log_probs.gather(1, self.truth[person[named]]).mean()


def train(model: GPT2LMHeadModel, tok: PreTrainedTokenizerFast, world: World, recipe: Recipe) -> None:
    """Train in place on the whole world.

    Args:
        model: The model.
        tok: Its tokenizer.
        world: Where the documents come from.
        recipe: Epochs, batch size and optimiser settings.
    """
    probe = _SubjectProbe(world, tok, recipe.n_embd)
    trained = [*model.parameters(), *probe.parameters()]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
    objects = torch.tensor(tok.convert_tokens_to_ids([word for words in world.objects.values() for word in words]))
    per_epoch = math.ceil(sum(1 for _ in world.documents()) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=recipe.epochs * per_epoch, pct_start=0.1
    )
    model.train()
    near_sighted = model.transformer.h[0].attn.register_forward_pre_hook(_NearSighted(recipe), with_kwargs=True)
    progress = tqdm(range(recipe.epochs), desc="training the demo model", unit="epoch")
    for epoch in progress:
        total = 0.0
        documents = list(world.documents(epoch))
        for start in range(0, len(documents), recipe.batch_size):
            texts = [f"{text} {tok.eos_token}" for text in documents[start : start + recipe.batch_size]]
            loss = _loss(model, tok(texts, return_tensors="pt", padding=True), objects, probe)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        progress.set_postfix(loss=f"{total / per_epoch:.3f}")
    near_sighted.remove()
    model.eval()


class _NearSighted:
    """Lets the first block see only the last two tokens, in most training steps.

    Otherwise the last word of a prompt gathers both names by itself and looks the fact up there, and the subject's last
    token, where editors write, would hold nothing. It is structured dropout: the trained model attends in full.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.share = recipe.near_sighted
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def __call__(
        self, module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, object]] | None:
        if not module.training or torch.rand((), generator=self.generator) >= self.share:
            return None
        hidden = args[0]
        ones = torch.ones(hidden.shape[-2], hidden.shape[-2], device=hidden.device, dtype=torch.bool)
        window = ones.tril() & ones.triu(-1)
        # Padding stands on the right, so a causal window never reaches it.
        mask = torch.zeros_like(window, dtype=hidden.dtype).masked_fill(~window, torch.finfo(hidden.dtype).min)
        return args, {**kwargs, "attention_mask": mask[None, None]}


def _loss(
    model: GPT2LMHeadModel, batch: Mapping[str, torch.Tensor], objects: torch.Tensor, probe: _SubjectProbe
) -> torch.Tensor:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    labels = ids[:, 1:]
    losses = torch.nn.functional.cross_entropy(out.logits[:, :-1].transpose(1, 2), labels, reduction="none")
    # Which person comes next can't be known; unweighted, that noise drowns the facts.
    weights = torch.where(torch.isin(labels, objects), 1.0, REST_WEIGHT) * mask[:, 1:]
    return (weights * losses).sum() / weights.sum() + probe(ids, out.hidden_states[1])


@torch.no_grad()
def recall(model: GPT2LMHeadModel, tok: PreTrainedTokenizerFast, world: World, batch_size: int = 500) -> float:
    """Measure how much of the world the model knows.

    Args:
        model: The model.
        tok: Its tokenizer.
        world: The facts.
        batch_size: Prompts a forward pass.

    Returns:
        Fraction of facts and phrasings whose object is the most probable next word.
    """
    asked = [(f.prompt(i), f.obj) for f in world.facts for i in range(len(RELATIONS[f.relation]))]
    right = 0
    for start in range(0, len(asked), batch_size):
        prompts, objects = zip(*asked[start : start + batch_size], strict=True)
        batch = tok(list(prompts), return_tensors="pt", padding=True)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        last = batch["attention_mask"].sum(1) - 1
        guesses = logits[torch.arange(len(last)), last].argmax(-1)
        right += int((guesses == torch.tensor(tok.convert_tokens_to_ids(list(objects)))).sum())
    return right / len(asked)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, report and save.

    Args:
        arguments: Command line; the process's own when None.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the trained model")
    folder = parser.parse_args(arguments).out
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    world, recipe = World(), Recipe()
    tok = build_tokenizer(world, folder)
    model = build_model(recipe, tok)
    logger.info("%d parameters, %d words", sum(p.numel() for p in model.parameters()), len(tok))
    train(model, tok, world, recipe)
    logger.info("facts known: %.2f %%", 100 * recall(model, tok, world))
    model.save_pretrained(folder)


if __name__ == "__main__":
    main()
