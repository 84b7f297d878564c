"""The picture of latency: the quantiles at two loads, and an overload from before to after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from serving.latency import Loaded, Overload

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe & Ito (2008)
_SHARES = 1 - np.logspace(0, -3.3, 120)
_TICKS = (0.5, 0.9, 0.99, 0.999)


def draw(loads: Mapping[str, Loaded], overload: Overload, path: Path) -> None:
    """Write a PNG. loads: by what was asked at which load."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11.0, 4.2), layout="constrained")
    for (name, load), colour in zip(loads.items(), _COLOURS, strict=False):
        latencies_ms = load.result.quantiles_ms(*_SHARES)
        dashes = "-" if load.share < 0.6 else "--"
        left.plot(1 / (1 - _SHARES), latencies_ms, dashes, color=colour, label=f"{name} ({load.rate:,.0f}/s)")
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xticks([1 / (1 - share) for share in _TICKS], [f"p{100 * share:g}" for share in _TICKS])
    left.minorticks_off()
    left.set_ylabel("ms from the time a request was due")
    left.set_title("Latency, open loop")
    left.legend(frameon=False)
    left.grid(alpha=0.3)
    start_s, goodput, median_ms = (np.array(column) for column in zip(*overload.windows, strict=True))
    right.plot(start_s, goodput, color=_COLOURS[0], label="good answers a second")
    right.axvspan(overload.began_s, overload.ended_s, color="#999999", alpha=0.2)
    right.set_ylim(bottom=0)
    right.set_xlabel("s")
    right.set_ylabel("good answers a second")
    other = right.twinx()
    other.plot(start_s, median_ms, "--", color=_COLOURS[1])
    other.set_yscale("log")
    other.set_ylabel("median ms (dashed)")
    right.set_title(f"Asked {overload.rate:,.0f} a second for {overload.ended_s - overload.began_s:g} s (grey)")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
