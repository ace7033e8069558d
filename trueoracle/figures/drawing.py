"""The figure that every drawing is made on: it shows itself in a notebook."""

from __future__ import annotations

import base64
import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["ShownFigure", "new_figure", "png_source"]


class ShownFigure(Figure):
    """A matplotlib figure that a notebook shows, though pyplot has never heard of it."""

    def _repr_png_(self) -> bytes:
        return _png(self)


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of ``size`` inches, laid out so that nothing overlaps."""
    figure = ShownFigure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_source(figure: Figure) -> str:
    """The figure as the source of a picture in HTML."""
    return f"data:image/png;base64,{base64.b64encode(_png(figure)).decode()}"


def _png(figure: Figure) -> bytes:
    held = io.BytesIO()
    settings: dict[str, Any] = {"metadata": {"Software": None}}  # the same bytes each time
    figure.savefig(held, format="png", dpi=110, **settings)
    return held.getvalue()
