"""What the shipped task files refer to: the paper's reading of generated answers, weighted F1, correlation."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

UNPARSABLE = -1
# The paper's code keeps the first ten records of a file for few-shot examples and measures the next hundred.
SHOTS, MEASURED = 10, 100


def weighted_f1(pairs: Iterable[tuple[int, int]]) -> float:
    """Average F1 over classes, weighted by how often a class is the right one.

    Args:
        pairs: (right class, predicted class); a predicted class that is never right has no weight of its own.

    Returns:
        Between 0 and 1; 0 for a class that is never predicted.
    """
    from sklearn.metrics import f1_score

    right, predicted = zip(*pairs, strict=True)
    return float(f1_score(right, predicted, average="weighted", zero_division=0.0))


def mcc(pairs: Iterable[tuple[int, int]]) -> float:
    """Compute Matthews' correlation coefficient.

    Args:
        pairs: (right class, predicted class).

    Returns:
        Between -1 and 1; 0 where all right or all predicted classes are the same.
    """
    from sklearn.metrics import matthews_corrcoef

    right, predicted = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        # Of a single class it warns, though 0 is what the coefficient is defined to be then.
        warnings.simplefilter("ignore", UserWarning)
        return float(matthews_corrcoef(right, predicted))


def paper_records(records: Any) -> Any:
    """Leave the records that the paper's code measures.

    Args:
        records: A `datasets.Dataset`.

    Returns:
        Its records 11 to 110, or as many as there are.
    """
    return records.select(range(min(SHOTS, len(records)), min(SHOTS + MEASURED, len(records))))


@dataclass(frozen=True)
class ReadAnswer:
    """Reading a generated answer as the paper's code does: the first word of a list that occurs in it, in any case.

    Attributes:
        words: (word in lower case, class), in the order in which they are looked for.
        marker: What ends the prompt; if generated again, only what follows counts.
        label: Field that holds the right class.
        classes: Value of that field -> class, where it is not the class itself.
    """

    words: tuple[tuple[str, int], ...]
    marker: str | None
    label: str = "label"
    classes: Mapping[Any, int] = field(default_factory=dict)

    def __call__(self, record: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """Score one record.

        Args:
            record: The record.
            results: The generated text, without the prompt, as the only entry.

        Returns:
            Values for lm-eval to aggregate.
        """
        text = results[0]
        if self.marker is not None:
            text = text.split(self.marker)[-1]
        found = [number for word, number in self.words if word in text.lower()]
        value = record[self.label]
        pair = self.classes.get(value, value), found[0] if found else UNPARSABLE
        return {"f1": pair, "mcc": pair, "unparsable": not found}


read_sst2 = ReadAnswer((("positive", 1), ("negative", 0)), "Sentiment :")
read_yes_no = ReadAnswer((("yes", 1), ("no", 0)), "Answer:")
read_rte_inverted = ReadAnswer((("false", 0), ("true", 1)), "answer:")
read_rte_train = ReadAnswer(
    (("true", 1), ("false", 0)), "True or False? Answer:", classes={"entailment": 1, "not_entailment": 0}
)
read_mmlu = ReadAnswer((("a\n", 0), ("b\n", 1), ("c\n", 2), ("d\n", 3)), None, label="answer")
