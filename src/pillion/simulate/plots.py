"""What came of it, as a picture."""

from __future__ import annotations

from pathlib import Path

from pillion.simulate.report import Report

_STEPS = "▁▂▃▄▅▆▇█"


class PlotError(Exception):
    """There can be no picture: says why."""


def line(rates: list[float], width: int = 30) -> str:
    """Rates in [0, 1] as a row of bars, the mean of several in one where there are more than `width`."""
    groups = [rates[len(rates) * n // width : len(rates) * (n + 1) // width] for n in range(width)]
    means = [sum(group) / len(group) for group in groups if group]
    return "".join(_STEPS[min(len(_STEPS) - 1, int(mean * len(_STEPS)))] for mean in means)


def save(report: Report, path: Path) -> None:
    """Hits over time and times to the first token, as PNG. Raises `PlotError`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError(
            "plots as PNG need matplotlib: python -m pip install 'pillion[plots]', or look at the terminal's"
        ) from error
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for name, found in report.policies.items():
        rates = found.hits_over_time
        times = [report.seconds * (part + 0.5) / len(rates) for part in range(len(rates))]
        left.plot(times, rates, label=f"{name} {100 * found.hit_rate:.1f} %")
    left.axhline(
        report.belady, color="grey", linestyle=":", label=f"Belady's bound {100 * report.belady:.1f} %"
    )
    left.set(xlabel="seconds", ylabel="resident hits", ylim=(0, 1))
    left.legend(loc="lower right", fontsize="small")
    names = list(report.policies)
    for shift, which in ((-0.2, "p50"), (0.2, "p99")):
        values = [report.policies[name].ttft_ms[which] for name in names]
        bars = right.bar([n + shift for n in range(len(names))], values, 0.4, label=which)
        right.bar_label(bars, fmt="{:.0f}")
    right.set(ylabel="time to first token, ms", yscale="log")
    right.margins(y=0.2)
    right.set_xticks(range(len(names)), names)
    right.legend(fontsize="small")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise PlotError(f"{path}: {error.strerror}") from error
