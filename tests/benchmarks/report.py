# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table, all ways side by side, and the targets held against what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.benchmarks.sources import Sources

__all__ = ["HEADINGS", "Figures", "table", "targets", "targets_of_mariadb"]

#: The ways by name, in the order of the table's columns.
HEADINGS = {
    "extract": "borg extract",
    "overlayfs": "overlayfs, server's defaults",
    "tuned": "overlayfs, tuned",
    "block": "block",
}

#: What was measured, in seconds, bytes and numbers per second: by way, then by the key of a row.
Figures = dict[str, dict[str, float]]

MEGA = 1e6
NOTHING = "-"


@dataclass(frozen=True)
class Row:
    """One line of the table: how the figures of `key` are shown."""

    key: str
    label: str
    digits: int = 0
    unit: float = 1

    def cell(self, figures: Mapping[str, float]) -> str:
        """The figure as text, a dash where there is none."""
        if self.key not in figures:
            return NOTHING
        return f"{figures[self.key] / self.unit:,.{self.digits}f}".replace(",", " ")


def rows(sources: Sources) -> tuple[Row, ...]:
    """The lines of the table, in the order of a session's life."""
    small, large, crashed = (
        f"{source.size / 1e9:.1f} GB" for source in (sources.small, sources.large, sources.crashed)
    )
    return (
        Row("ready small", f"ready, {small}, closed cleanly (s)", 2),
        Row("ready large", f"ready, {large}, closed cleanly (s)", 2),
        Row("server small", "of which the server, small (s)", 2),
        Row("server large", "of which the server, large (s)", 2),
        Row("ready crashed", f"ready, {crashed}, {sources.crashed.wal >> 20} MB of logs to replay (s)", 2),
        Row("first row", "first row by primary key, cold (s)", 3),
        Row("disk crashed", "on disk when ready, with logs to replay (MB)", 1, MEGA),
        Row("disk large", "on disk when ready, closed cleanly (MB)", 1, MEGA),
        Row("disk row", "on disk after the first row (MB)", 1, MEGA),
        Row("disk scan", "on disk after a full scan (MB)", 1, MEGA),
        Row("scan cold", f"full scan of {sources.large.table_size / 1e9:.1f} GB, cold (MB/s)", 0, MEGA),
        Row("scan warm", "full scan, warm (MB/s)", 0, MEGA),
        Row("stream", "`borg extract --stdout` of the same files (MB/s)", 0, MEGA),
        Row("read cold", "reading one file of them in sequence, cold (MB/s)", 0, MEGA),
        Row("read warm", "reading it in sequence, warm (MB/s)", 0, MEGA),
        Row("random cold 1", "random 8 KiB reads, cold, one reader (per s)"),
        Row("random cold 4", "random 8 KiB reads, cold, four readers (per s)"),
        Row("random warm", "random 8 KiB reads, warm, one reader (per s)"),
        Row("select", "pgbench, select-only, warm (tps)"),
        Row("select native", "native directory in between (tps)"),
        Row("write", "pgbench, read-write, warm (tps)"),
        Row("write native", "native directory in between (tps)"),
        Row("layer peak", "memory of the layer, highest (MB)", 0, MEGA),
        Row("borg large", "CPU seconds of borg when ready", 1),
        Row("layer large", "CPU seconds of the layer when ready", 1),
        Row("borg scan", "CPU seconds of borg after row and cold scan", 1),
        Row("layer scan", "CPU seconds of the layer after row and cold scan", 1),
        Row("play", "the whole `ansible-playbook` start (s)", 1),
        Row("play overhead", "of which neither borg, mounting nor the server (s)", 1),
    )


def table(sources: Sources, figures: Figures) -> str:
    """All that was measured, as a Markdown table that reads well as it is."""
    ways = [way for way in HEADINGS if way in figures]
    known = [row for row in rows(sources) if any(row.key in figures[way] for way in ways)]
    body = [[row.label, *(row.cell(figures[way]) for way in ways)] for row in known]
    return _aligned(["", *(HEADINGS[way] for way in ways)], body)


def targets_of_mariadb(sources: Sources, figures: Figures) -> str:
    """The targets of MariaDB (issue 12)."""
    block, extract = figures.get("block", {}), figures.get("extract", {})
    return _verdicts(
        _most("ready after a crash, by extract + start", block, "ready crashed", 0.8, of=extract),
        _most(
            "on disk then, by the data's size", block, "disk crashed", 0.01, of={"disk crashed": sources.crashed.size}
        ),
        _most("ready, large and closed cleanly, without mounting (s)", block, "server large", 1.2),
        _most("the same, large by small", block, "server large", 1.3, of=block, by="server small"),
        _most("on disk when ready, closed cleanly (MB)", _in_megabytes(block), "disk large", 1.0),
        _most("first row by primary key, cold (s)", block, "first row", 0.1),
        _most("the whole play, small (s)", block, "play", 5.0),
    )


def _in_megabytes(figures: Mapping[str, float]) -> dict[str, float]:
    return {key: value / MEGA for key, value in figures.items()}


def targets(sources: Sources, figures: Figures) -> str:
    """The project's targets (issue 3), each with the figure that it is about and whether that passes."""
    large, crashed = sources.large, sources.crashed
    block, extract = figures.get("block", {}), figures.get("extract", {})
    return _verdicts(
        _most("ready, large and closed cleanly (s)", block, "ready large", 2.0),
        _most("ready, large by small", block, "ready large", 1.3, of=block, by="ready small"),
        _most("ready with WAL, by extract + start", block, "ready crashed", 1 / 3, of=extract),
        _most("first row by primary key, cold (s)", block, "first row", 0.3),
        _most("on disk when ready, by the cluster's size", block, "disk large", 0.02, of={"disk large": large.size}),
        _most(
            "the same with WAL, less what its replay changes",
            {key: value - crashed.replayed for key, value in block.items() if key == "disk crashed"},
            "disk crashed",
            0.02,
            of={"disk crashed": crashed.size},
        ),
        _least("cold full scan, by `borg extract --stdout`", block, "scan cold", 1.0, of=block, by="stream"),
        _least("the same, aim", block, "scan cold", 1.5, of=block, by="stream"),
        _least("select-only pgbench, warm, by native", block, "select", 0.9, of=block, by="select native"),
        _least("read-write pgbench, by native", block, "write", 0.75, of=block, by="write native"),
        _most("memory of the layer (MB)", _in_megabytes(block), "layer peak", 150.0),
        _most("the play's own overhead (s)", block, "play overhead", 5.0),
    )


def _verdicts(*rules: Verdict) -> str:
    body = [[rule.label, rule.figure, rule.bound, rule.verdict] for rule in rules]
    return _aligned(["target", "measured", "wanted", ""], body)


@dataclass(frozen=True)
class Verdict:
    """One target, in words."""

    label: str
    figure: str
    bound: str
    verdict: str


def _most(
    label: str,
    figures: Mapping[str, float],
    key: str,
    bound: float,
    *,
    of: Mapping[str, float] | None = None,
    by: str | None = None,
) -> Verdict:
    value = _figure(figures, key, of, by or key)
    return Verdict(label, _text(value), f"≤ {_text(bound)}", _word(None if value is None else value <= bound))


def _least(
    label: str, figures: Mapping[str, float], key: str, bound: float, *, of: Mapping[str, float], by: str
) -> Verdict:
    value = _figure(figures, key, of, by)
    return Verdict(label, _text(value), f"≥ {_text(bound)}", _word(None if value is None else value >= bound))


def _figure(figures: Mapping[str, float], key: str, of: Mapping[str, float] | None, by: str) -> float | None:
    """The figure, or its ratio to another; None where one of them was not measured."""
    if key not in figures:
        return None
    if of is None:
        return figures[key]
    return figures[key] / of[by] if by in of else None


def _text(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _word(passed: bool | None) -> str:
    return "not measured" if passed is None else "pass" if passed else "MISS"


def _aligned(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return f"| {' | '.join([cells[0].ljust(widths[0]), *padded])} |"

    rule = f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (width + 1) + ':' for width in widths[1:])}|"
    return "\n".join([line(header), rule, *map(line, body)])
