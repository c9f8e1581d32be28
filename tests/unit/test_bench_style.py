"""Legends stay inside their figure, however long the labels are."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from evospec.bench.style import legend_below


@pytest.mark.parametrize("length", [4, 30, 60])
def test_legends_fit_their_figure(length: int) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for number in range(6):
        axes.plot([0, 1], [0, number], label=str(number) * length)
    legend_below(figure, columns=4)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 6
    assert legend.get_window_extent().width <= figure.bbox.width
