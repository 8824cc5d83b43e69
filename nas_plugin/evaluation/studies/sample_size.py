"""The anchor against the number of pilots (paper, A.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

from nas_plugin.errors import RunError
from nas_plugin.evaluation.report.content import Row, Table, number
from nas_plugin.evaluation.studies.pilots import Pilots, drawn, pilot_pool
from nas_plugin.evaluation.studies.shared import Advance, Setting, Study, Trial, moments_of
from nas_plugin.evaluation.studies.written import plus_minus
from nas_plugin.request import EditRequest


@dataclass(frozen=True)
class SampleSize(Study):
    """Anchors of nested samples of pilots, several times.

    Attributes:
        size: Numbers of pilots, ascending.
        seeds: Number of samples, with seeds 0, 1, ...
    """

    name: ClassVar[str] = "sample-size"
    title: ClassVar[str] = "Anchor sample size"
    size: tuple[int, ...] = (5, 10, 25, 50, 100)
    seeds: int = 20

    @property
    def units(self) -> int:
        """Units of work for one editor."""
        return 1

    def run(self, setting: Setting, method: str, advance: Advance = lambda _: None) -> dict[str, Any]:
        """Solve every pilot once, and take the anchors of the parts.

        Args:
            setting: On what.
            method: The editor.
            advance: Told when all is done.

        Returns:
            "pool" (facts there are), "solved" (facts solved), "clock" and "seconds" it took, and "sizes": what `anchors_of`
            returned by size.

        Raises:
            RunError: A sample would be larger than the pool.
        """
        trial = Trial(setting, method)
        pool = pilot_pool(trial.hparams.nas_pilots)
        if self.size[-1] > len(pool):
            raise RunError(
                f"{self.size[-1]} pilots were asked for and nas_pilots {trial.hparams.nas_pilots!r} has {len(pool)}; ask for "
                "fewer (--size), or name a file with more."
            )
        samples = [drawn(pool, self.size[-1], seed) for seed in range(self.seeds)]
        trial.plain.prepare()
        name, clock = trial.clock
        started = clock()
        pilots = Pilots(trial.plain, tuple(dict.fromkeys(fact for sample in samples for fact in sample)))
        seconds = clock() - started
        advance(1)
        return {
            "pool": len(pool),
            "solved": len(pilots.requests),
            "clock": name,
            "seconds": seconds,
            "sizes": {str(size): anchors_of(pilots, [sample[:size] for sample in samples]) for size in self.size},
        }

    def tables(self, results: Mapping[str, Mapping[str, Any]]) -> list[Table]:
        """Lay out the sizes; see `Study.tables`."""
        columns = ("editor, pilots", "raw mean", "trimmed mean", "std of the norms", "standard error", "seconds")
        clocks = ", ".join(sorted({result["clock"] for result in results.values()}))
        pools = sorted({result["pool"] for result in results.values()})
        text = (
            f"Mean ± standard deviation over {self.seeds} samples of N pilots from {', '.join(map(str, pools))} facts, without "
            "replacement: the deviation vanishes as N comes to the number of facts. Std of the norms: within a sample, mean over "
            "the samples; from it the standard error of the raw mean, as if there were facts without end. Trimmed: without the "
            f"largest 5 %, rounded down. Seconds of {clocks}: N times that of one of the facts, which were solved once."
        )
        return [Table(self.title, columns, tuple(_rows(method, result) for method, result in results.items()), text)]


def anchors_of(pilots: Pilots, samples: Sequence[Sequence[EditRequest]]) -> dict[str, Any]:
    """Take the anchor of each sample.

    Args:
        pilots: Solved facts.
        samples: Samples of the same size.

    Returns:
        "raw" and "trimmed": mean, standard deviation and count over the samples, and "values"; "spread": mean over the samples
        of the standard deviation of norms within one.
    """
    anchors = [pilots.anchor_of(sample) for sample in samples]
    raw, trimmed = [anchor.raw_mean for anchor in anchors], [anchor.trimmed_mean for anchor in anchors]
    return {
        "raw": {**moments_of(raw), "values": raw},
        "trimmed": {**moments_of(trimmed), "values": trimmed},
        "spread": fmean(anchor.spread for anchor in anchors),
    }


def _rows(method: str, result: Mapping[str, Any]) -> tuple[Row, ...]:
    each = result["seconds"] / result["solved"]
    return tuple(
        Row(
            f"{method}, {size}",
            (
                plus_minus(at["raw"], 2),
                plus_minus(at["trimmed"], 2),
                number(at["spread"], 2),
                # The spread is that of a population: N - 1 makes up for it.
                number(at["spread"] / (int(size) - 1) ** 0.5 if int(size) > 1 else None, 2),
                number(each * int(size), 2),
            ),
        )
        for size, at in result["sizes"].items()
    )
