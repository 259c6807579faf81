"""The two tables of ``python -m privfedrl.testing.isolation``.

Guarantee: ``ok`` is true exactly if every pitfall was noticed through the channels that its row
names, and nothing was noticed in a sound or shipped trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from privfedrl.testing.isolation import LintReport, lint_trainer
from privfedrl.testing.isolation_pitfalls import PITFALLS, Pitfall
from privfedrl.testing.isolation_shipped import SHIPPED, Shipped

__all__ = ["Examination", "Verdict", "examine", "judge_pitfall", "judge_shipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One row of a table.

    Attributes:
        name: of the trainer. number: of the pitfall; None for a shipped trainer.
        expected, found: channels, sorted; both empty for what is clean and should be.
        moved: in units of what is charged for one unit. worlds: pairs compared.
        first: the first finding in words, empty if there is none.
    """

    name: str
    number: int | None
    expected: tuple[str, ...]
    found: tuple[str, ...]
    moved: float
    worlds: int
    first: str

    @property
    def ok(self) -> bool:
        """What was found is what was expected."""
        return self.found == self.expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """Both tables."""

    pitfalls: tuple[Verdict, ...]
    shipped: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """The linter found what is there, and nothing else."""
        return all(row.ok for row in (*self.pitfalls, *self.shipped))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a movement that could not be measured is null."""
        return {
            "ok": self.ok,
            "pitfalls": [_row(row) for row in self.pitfalls],
            "shipped": [_row(row) for row in self.shipped],
        }

    def to_text(self) -> str:
        """Two tables and one line of summary."""
        caught = sum(bool(row.expected) and row.ok for row in self.pitfalls)
        seeded = sum(bool(row.expected) for row in self.pitfalls)
        clean = sum(row.ok for row in self.shipped)
        return "\n\n".join(
            [
                _table(
                    ("#", "pitfall", "caught by", "moved by (C)", ""),
                    [
                        (str(row.number), row.name, _channels(row), f"{row.moved:.3f}", _mark(row))
                        for row in self.pitfalls
                    ],
                ),
                _table(
                    ("shipped trainer", "found", "moved by (C)", ""),
                    [
                        (row.name, _channels(row), f"{row.moved:.3f}", _mark(row))
                        for row in self.shipped
                    ],
                ),
                f"{caught} of {seeded} seeded leaks caught, "
                f"{clean} of {len(self.shipped)} shipped combinations clean",
            ]
        )


def examine(
    *,
    effort: str = "default",
    pitfalls: Sequence[Pitfall] = PITFALLS,
    shipped: Sequence[Shipped] = SHIPPED,
) -> Examination:
    """Lint all rows of both tables with ``effort``."""
    return Examination(
        pitfalls=tuple(judge_pitfall(row, effort=effort) for row in pitfalls),
        shipped=tuple(judge_shipped(row, effort=effort) for row in shipped),
    )


def judge_pitfall(pitfall: Pitfall, *, effort: str = "default") -> Verdict:
    """Lint one seeded trainer."""
    report = lint_trainer(pitfall.make(), effort=effort)
    return _verdict(
        f"{pitfall.where}: {pitfall.leak}",
        report,
        number=pitfall.number,
        expected=tuple(sorted(channel.value for channel in pitfall.channels)),
    )


def judge_shipped(shipped: Shipped, *, effort: str = "default") -> Verdict:
    """Lint one combination of the shipped trainer."""
    return _verdict(shipped.name, lint_trainer(shipped.make(), step=shipped.step, effort=effort))


def _verdict(
    name: str, report: LintReport, *, number: int | None = None, expected: tuple[str, ...] = ()
) -> Verdict:
    first = "; ".join(f"{pair}: {leak.message}" for pair, leak in report.leaks[:1])
    return Verdict(
        name=name,
        number=number,
        expected=expected,
        found=tuple(sorted(channel.value for channel in report.channels)),
        moved=report.moved,
        worlds=report.worlds,
        first=first,
    )


def _row(verdict: Verdict) -> dict[str, Any]:
    moved = verdict.moved if verdict.moved == verdict.moved else None
    return {**asdict(verdict), "moved": moved, "ok": verdict.ok}


def _channels(row: Verdict) -> str:
    return ", ".join(row.found) or "clean"


def _mark(row: Verdict) -> str:
    if row.ok:
        return "ok"
    return f"NOT AS EXPECTED ({', '.join(row.expected) or 'clean'}) {row.first}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
