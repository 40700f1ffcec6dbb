"""Time several ways of doing one thing in turn, so that a busy machine slows all alike, and print ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Rounds:
    """Seconds of each way, one per round."""

    seconds: Mapping[str, Sequence[float]]

    def ratios(self, way: str, reference: str) -> list[float]:
        """Return the time of one way over that of another by round, ascending."""
        return sorted(a / b for a, b in zip(self.seconds[way], self.seconds[reference], strict=True))


def run_in_turn(ways: Mapping[str, Callable[[], object]], num_rounds: int) -> Rounds:
    """Run every way once unmeasured, then all of them in each round, in alternating order."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(num_rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
    return Rounds(seconds)


def ratio_table(title: str, rounds: Rounds, comparisons: Sequence[tuple[str, str]]) -> str:
    """Format for each (way, reference) the median ratio, its range over the rounds, and median seconds."""
    names = [f"{way} / {reference}" for way, reference in comparisons]
    width = max(map(len, names))
    num_rounds = len(next(iter(rounds.seconds.values())))
    lines = [f"{title} · median of {num_rounds} rounds", "", f"{'':{width}}   ratio   lowest – highest   seconds"]
    for name, (way, reference) in zip(names, comparisons, strict=True):
        ratios = rounds.ratios(way, reference)
        spent = " / ".join(f"{median(rounds.seconds[each]):.3f}" for each in (way, reference))
        lines.append(f"{name:{width}}  {median(ratios):6.2f}   {ratios[0]:6.2f} – {ratios[-1]:<7.2f}   {spent}")
    return "\n".join(lines)
