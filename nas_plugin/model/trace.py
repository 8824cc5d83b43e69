"""Running part of a model and putting it back as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _StopForward(Exception):
    """Ends a forward pass once the last wanted module has run."""


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states of a block's output, which is a tensor or a tuple depending on family and version.

    Args:
        output: What the block returned.

    Returns:
        Hidden states `(batch, positions, d_model)`.
    """
    hidden: Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """Return a block's output with its hidden states replaced, in the form it came in.

    Args:
        output: What the block returned.
        hidden: Hidden states to put there.

    Returns:
        A tensor or a tuple, as `output` was.
    """
    if isinstance(output, tuple | list):
        return type(output)([hidden, *output[1:]])
    return hidden


def input_device(model: Any) -> torch.device:
    """Return the device that takes token ids, wherever accelerate has put the model's parts.

    Args:
        model: The model.

    Returns:
        The device of the input embeddings; where these are offloaded, the one that they are brought to.
    """
    embeddings = model.get_input_embeddings()
    device: torch.device = embeddings.weight.device
    if device.type != "meta":
        return device
    hook = getattr(embeddings, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        brought_to = getattr(each, "execution_device", None)
        if brought_to is not None:
            return torch.device(brought_to)
    return device


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Evaluate with frozen parameters, then restore every train flag and `requires_grad` flag.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    training = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)


def forward_until(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    last: nn.Module,
    *,
    inputs: dict[nn.Module, Callable[[Tensor], None]] | None = None,
    outputs: dict[nn.Module, Callable[[Any], Any]] | None = None,
    cache: Any = None,
    **more: Any,
) -> Tensor:
    """Run a model up to one of its modules and stop there.

    Args:
        model: The model.
        input_ids: Token ids `(batch, positions)`, padded on the right.
        attention_mask: 1 for tokens, 0 for padding, `(batch, positions)`.
        last: Module after which to stop.
        inputs: Module -> function that is shown the module's first input.
        outputs: Module -> function that is shown the module's output and may return a replacement.
        cache: Cache to read and fill, or None to run without.
        **more: Further arguments of the model's forward.

    Returns:
        Hidden states that `last` returned, `(batch, positions, d_model)`.
    """
    final: list[Tensor] = []

    def by_rows(states: Any) -> Any:
        # OPT runs the tokens of all rows through its feed-forward layers as one long row.
        flat = isinstance(states, Tensor) and states.dim() == 2
        return states.unflatten(0, input_ids.shape) if flat else states

    def show_input(function: Callable[[Tensor], None]) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            function(by_rows(args[0] if args else next(iter(kwargs.values()))))

        return hook

    def show_output(function: Callable[[Any], Any]) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            rows = by_rows(output)
            replaced = function(rows)
            return replaced if rows is output or replaced is None else replaced.flatten(0, 1)

        return hook

    def stop(_module: nn.Module, _args: Any, output: Any) -> None:
        final.append(hidden_of(output))
        raise _StopForward

    with ExitStack() as hooks:
        for module, function in (inputs or {}).items():
            hooks.callback(module.register_forward_pre_hook(show_input(function), with_kwargs=True).remove)
        for module, function in (outputs or {}).items():
            hooks.callback(module.register_forward_hook(show_output(function)).remove)
        # Registered last, so that it sees what the other hooks made of the output.
        hooks.callback(last.register_forward_hook(stop).remove)
        try:
            model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                use_cache=cache is not None,
                **more,
            )
        except _StopForward:
            pass
    return final[0]


@contextmanager
def skipping(blocks: Sequence[nn.Module], entering: Any) -> Iterator[None]:
    """Let a model's first blocks hand on what the next one is to receive, without computing anything.

    The instances' `forward` is replaced, so that layer numbers, masks and rotary tables of the model stay as they are.

    Args:
        blocks: Blocks to skip, from the first one on.
        entering: Output of the last of them, in the form its successor expects.

    Yields:
        Nothing.
    """

    def hand_on(*_: Any, **__: Any) -> Any:
        return entering

    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = hand_on
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                del block.forward
            else:
                block.forward = own


@contextmanager
def forked_rng(model: nn.Module, seed: int) -> Iterator[None]:
    """Draw from a seed of one's own and leave the caller's random streams untouched.

    Args:
        model: The generators of all its devices are protected along with the CPU's.
        seed: Seed inside the block.

    Yields:
        Nothing.
    """
    devices = list({p.device: None for p in model.parameters() if p.device.type not in ("cpu", "meta")})
    kwargs: dict[str, Any] = {"device_type": devices[0].type} if devices else {}
    with torch.random.fork_rng(devices=devices, **kwargs):
        torch.manual_seed(seed)
        yield
