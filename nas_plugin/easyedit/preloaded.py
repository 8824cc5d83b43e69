"""A model and tokenizer that EasyEdit takes as they are, without guessing from a name."""

from __future__ import annotations

from typing import Any

from nas_plugin.errors import PadTokenError

# EasyEdit looks for these inside the name and would treat a decoder as something else.
_MISLEADING = ("t5", "gpt-3.5")


class Preloaded(tuple[Any, Any]):
    """A loaded model and its tokenizer, for the field `model_name` of the hyperparameters.

    EasyEdit loads a model by looking for family names in its path, in float32, and knows few families. It unpacks a tuple as
    it is, but then calls string methods on it; this tuple has them and answers with its name. So any causal language model of
    transformers, in any dtype, attention implementation or device map, can be edited:

        hparams = NASAlphaEditHparams.from_hparams("NAS-AlphaEdit/llama3-8b", model_name=Preloaded(model, tok))

    Copies, also deep ones, are the same object, and it pickles as its name: a model is not duplicated by accident.
    """

    name: str

    def __new__(cls, model: Any, tok: Any, name: str | None = None) -> Preloaded:
        """Join a model and its tokenizer.

        Args:
            model: A causal language model.
            tok: Its tokenizer, with a pad token. It is not changed.
            name: What EasyEdit should take for the model's name; by default where the model was loaded from.

        Returns:
            Both.

        Raises:
            PadTokenError: The tokenizer has no pad token; EasyEdit's evaluator pads.
        """
        if tok.pad_token is None:
            raise PadTokenError(
                "The tokenizer has no pad token, and EasyEdit's evaluator pads. "
                "Set one first, for example `tok.pad_token = tok.eos_token`."
            )
        self = super().__new__(cls, (model, tok))
        self.name = name if name is not None else _name_of(model)
        return self

    @property
    def model(self) -> Any:
        """The model."""
        return self[0]

    @property
    def tok(self) -> Any:
        """The tokenizer."""
        return self[1]

    def __getattr__(self, attribute: str) -> Any:
        # Only reached for what a tuple lacks: lower, split, startswith, ...
        if attribute.startswith("__") or attribute == "name":
            raise AttributeError(attribute)
        return getattr(self.name, attribute)

    def __contains__(self, item: object) -> bool:
        return item in self.name if isinstance(item, str) else any(item is part for part in self)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Preloaded({self.name!r})"

    # The identity of the two objects, not their content: comparing models is meaningless and their hash may not exist.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preloaded) and self[0] is other[0] and self[1] is other[1]

    def __hash__(self) -> int:
        return hash((id(self[0]), id(self[1])))

    def __copy__(self) -> Preloaded:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Preloaded:
        return self

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return str, (self.name,)


def _name_of(model: Any) -> str:
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", "") or type(model).__name__
    name = getattr(config, "_name_or_path", "") or kind
    return kind if any(word in name.lower() for word in _MISLEADING) else name
