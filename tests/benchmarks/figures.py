"""The medians of the rounds, and their ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from .bars import EVERY_PEER, ONE_SECOND, Bar, Measure
from .benchmark import Benchmark


@dataclass
class Figures:
    """The answers of one way in all rounds, or the reason for its failure."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def samples_ms(self) -> list[float]:
        """All latencies."""
        return [sample for answer in self.answers for sample in answer.get("samples_ms", ())]

    @property
    def wall_us(self) -> float:
        """Wall time an event, the median of the rounds."""
        return self._median("wall_s")

    @property
    def cpu_us(self) -> float:
        """CPU time an event, the median of the rounds."""
        return self._median("cpu_s")

    def value(self, measure: Measure) -> float:
        """Return the figure of a measure; NaN if it was not measured."""
        if measure == "rate":
            return 1e6 / self.wall_us if self.wall_us > 0 else math.nan
        if measure == "cpu":
            return self.cpu_us
        return percentile(self.samples_ms, 50 if measure == "p50" else 99)

    def spread(self) -> tuple[float, float]:
        """Return the least and the greatest wall time of a round, in µs an event."""
        found = [1e6 * answer["wall_s"] / answer["events"] for answer in self.answers if "wall_s" in answer]
        return (min(found), max(found)) if found else (math.nan, math.nan)

    def _median(self, name: str) -> float:
        found = [1e6 * answer[name] / answer["events"] for answer in self.answers if name in answer]
        return median(found) if found else math.nan


@dataclass
class Result:
    """The result of a benchmark: figures by way."""

    benchmark: Benchmark
    figures: dict[str, Figures]
    rounds: int
    skipped: str = ""

    def ratio(self, bar: Bar) -> float:
        """Return the ratio of a bar; NaN if one figure is missing."""
        if bar.way not in self.figures:
            return math.nan
        return _divide(self.figures[bar.way].value(bar.measure), self._against(bar))

    def _against(self, bar: Bar) -> float:
        if bar.against == ONE_SECOND:
            return 1000.0
        if bar.against != EVERY_PEER:
            return self.figures.get(bar.against, Figures()).value(bar.measure)
        names = [way.name for way in self.benchmark.ways if way.kind == "peer"]
        values = [self.figures[name].value(bar.measure) for name in names]
        # A peer that was not measured might be the best one.
        return math.nan if any(map(math.isnan, values)) else min(values, default=math.nan)


def percentile(samples: Sequence[float], percent: int) -> float:
    """Return a percentile, by linear interpolation between the samples."""
    if len(samples) < 2:
        return samples[0] if samples else math.nan
    return quantiles(samples, n=100, method="inclusive")[percent - 1]


def _divide(value: float, by: float) -> float:
    return value / by if by > 0 else math.nan
