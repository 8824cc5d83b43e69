"""Models that carry a PEFT adapter: where their modules are, and what an edit cannot be combined with.

PEFT is never imported here: a model that carries an adapter was made with it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from nas_plugin.errors import AdapterError


def unwrapped(model: Any) -> Any:
    """Return the model inside a `PeftModel`: its adapters are modules of it, which it calls itself.

    Args:
        model: A model, wrapped or not.

    Returns:
        The model that holds the modules under their own names; the same one if nothing wraps it.

    Raises:
        AdapterError: The adapter is a prompt, which only the wrapper calls.
    """
    if not (_is_peft(model) and hasattr(model, "get_base_model")):
        return model
    prompts = [name for name, config in model.peft_config.items() if getattr(config, "is_prompt_learning", False)]
    if prompts:
        raise AdapterError(
            f"the adapter {prompts[0]!r} is a prompt ({model.peft_config[prompts[0]].peft_type}), which the model inside the "
            "PeftModel knows nothing of; edit the base model, or use an adapter of another type."
        )
    return model.get_base_model()


def adapted_modules(model: nn.Module) -> list[str]:
    """Return the names of the modules that an adapter was put around.

    Args:
        model: A model.

    Returns:
        Their names in the unwrapped model.
    """
    return [name for name, module in unwrapped(model).named_modules() if is_adapted(module)]


def is_adapted(module: nn.Module) -> bool:
    """Tell whether a module is one of PEFT's around another."""
    return _is_peft(module) and hasattr(module, "base_layer")


def _is_peft(module: Any) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"
