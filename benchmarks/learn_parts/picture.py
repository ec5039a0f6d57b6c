"""The curves as an SVG: a column of panels a family, pass@1 above pass@8, the mean over seeds and their range."""

from __future__ import annotations

import altair as alt
import vl_convert
from learn_parts.figures import FAMILIES, Run, over_seeds

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#5b5b5b")
FONT = "Liberation Sans"
WIDTH, HEIGHT = 210, 190


def svg(runs: list[Run]) -> str:
    """The picture; a method without a run is left out."""
    there = {run.method for run in runs}
    columns = [
        alt.vconcat(*(_panel(runs, family, shown, name) for name in ("pass@1", "pass@8")))
        for family, names in FAMILIES.items()
        if (shown := [name for name in names if name in there])
    ]
    chart = alt.hconcat(*columns).resolve_scale(color="independent")
    chart = chart.configure(font=FONT, aria=False, background="white").configure_view(stroke=None)
    found: str = vl_convert.vegalite_to_svg(chart.to_dict())
    return found + "\n"


def _panel(runs: list[Run], family: str, methods: list[str], name: str) -> alt.LayerChart:
    rows = [
        {"method": method, "round": at, "mean": spread.mean, "low": spread.low, "high": spread.high}
        for method in methods
        for at, spread in enumerate(over_seeds(runs, method, name))
    ]
    top = name == "pass@1"
    legend = alt.Legend(
        title=None, orient="bottom", columns=3, symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=2
    )
    colour = alt.Color("method:N", scale=alt.Scale(domain=methods, range=list(COLOURS)), legend=legend)
    base = alt.Chart(alt.Data(values=rows), width=WIDTH, height=HEIGHT)
    x = alt.X("round:Q", title=None if top else "round", axis=alt.Axis(tickMinStep=1, format="d", grid=False))
    scale = alt.Scale(domain=[0, 0.9] if top else [0.2, 1.0], clamp=True)
    line = base.mark_line().encode(x=x, y=alt.Y("mean:Q", title=name, scale=scale), color=colour)
    band = base.mark_area(opacity=0.2).encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour)
    return (band + line).properties(title=family if top else "")
