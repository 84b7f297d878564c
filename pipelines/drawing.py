"""How every picture is made: one drawing function gives an SVG for a page and a PNG.

Colours are those of Okabe & Ito (2008), which a colour-blind person tells apart. In the SVG all that is not data takes
the colour of the text around it, so that it reads on a light page and on a dark one.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, GREY = COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F",
)  # fmt: skip
_INK = "#010203"  # stands for "the colour of the text" until the SVG is written
_PAPER_INK = "#222222"


class Picture(NamedTuple):
    """name: of a file. title, text: what it shows. svg: an element for a page. png: an image."""

    name: str
    title: str
    text: str
    svg: str
    png: bytes


def picture(name: str, title: str, text: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> Picture:
    """Return what `draw` draws on axes of a size in inches; the same drawing gives the same bytes."""
    png = _rendered(size, draw, ink=_PAPER_INK, kind="png")
    svg = _rendered(size, draw, ink=_INK, kind="svg").decode("utf-8")
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Ids are unique within a page only if each picture has its own.
    svg = svg.replace('id="', f'id="{name}-').replace('="#', f'="#{name}-').replace("url(#", f"url(#{name}-")
    return Picture(name, title, text, svg, png)


def edge(axes: Axes) -> Any:  # Any: a colour as matplotlib gives it
    """Return the ink of this rendering."""
    return axes.spines["left"].get_edgecolor()


def _rendered(size: tuple[float, float], draw: Callable[[Axes], None], *, ink: str, kind: str) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A fixed salt and no date: the same comparison gives the same bytes.
    style: dict[Any, Any] = {"svg.hashsalt": "fraud", "svg.fonttype": "path", "font.size": 10.5, "axes.edgecolor": ink}
    style |= {"text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        file = io.BytesIO()
        if kind == "svg":
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        else:
            figure.savefig(file, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return file.getvalue()
