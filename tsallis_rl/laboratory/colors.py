"""Gives each q, floor, mixture and estimator one colour in every figure, whatever else is drawn.

Colours of q go from dark to light and from violet to yellow, so that they differ in grey print and for colour-blind
readers; all contrast with white by 3:1 or more. Estimators without q have blues, greens and greys. Markers show q as
well; dashes tell estimators apart.
"""

import zlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

Entry = TypeVar("Entry")

COLORS_OF_Q = {0.0: "#150a35", 0.25: "#57179e", 0.5: "#a31f73", 0.75: "#d1402c", 1.0: "#bd8900"}  # others: mixed
MARKERS_OF_Q = {0.0: "o", 0.25: "s", 0.5: "^", 0.75: "D", 1.0: "v"}  # others: the nearest one's
COLORS_OF_TAU = {"floor": ("#08306b", "#3593cf"), "mixture": ("#00441b", "#3a9a58")}  # at τ = SMALLEST_TAU and at 1
SMALLEST_TAU = 1e-5
MARKERS_OF_TAU = {"floor": "P", "mixture": "X"}
COLORS_OF_ESTIMATORS = {
    "grpo": "#0072b2", "sft": "#009e73", "rloo": "#3a8bd0", "dr_grpo": "#00838f", "maxrl": "#1f3a93", "raft": "#5f7d00",
    "pkpo": "#66788a", "curverl": "#2e7d32", "log_likelihood": "#7a6a53", "jepo": "#4d4d4d", "latro": "#858585",
    "rlpr": "#005f56", "nover": "#8a8f00",
}  # fmt: skip
DASHES = {"garl": "-", "paft": "--", "grpo": "-.", "sft": ":"}
_OTHER_DASHES = ((0, (5, 1, 1, 1, 1, 1)), (0, (3, 1, 1, 1)), (0, (7, 2)), (0, (2, 1)))
_OTHER_MARKERS = ("P", "X", "*", "h", "<", ">")


def color_of_q(q: float) -> str:
    """Looks up the colour of a q as "#rrggbb", interpolated from its neighbours' if it has none of its own."""
    anchors = list(COLORS_OF_Q)
    return _mixed(float(q), anchors, [COLORS_OF_Q[x] for x in anchors])


def color_of_tau(commitment: str, tau: float) -> str:
    """Looks up the colour of a floor or a mixture at τ: lighter at larger τ, along log τ."""
    return _mixed(float(np.log(max(tau, SMALLEST_TAU))), [float(np.log(SMALLEST_TAU)), 0.0], COLORS_OF_TAU[commitment])


def color_of_estimator(name: str) -> str:
    """Looks up the colour of an estimator without q; the name of an unknown one selects a colour."""
    return COLORS_OF_ESTIMATORS.get(name) or _by_name(name, list(COLORS_OF_ESTIMATORS.values()))


def style_of_q(q: float) -> dict[str, Any]:
    """Makes the style of a q's line: colour, marker, and a solid line."""
    nearest = min(MARKERS_OF_Q, key=lambda anchor: abs(anchor - q))
    return {"color": color_of_q(q), "marker": MARKERS_OF_Q[nearest], "linestyle": "-"}


def style_of_tau(commitment: str, tau: float) -> dict[str, Any]:
    """Makes the style of the line of a floor or a mixture at τ."""
    return {"color": color_of_tau(commitment, tau), "marker": MARKERS_OF_TAU[commitment], "linestyle": "-"}


def style_of(estimator: str, q: float | None = None, commitment: str = "power", tau: float = 1.0) -> dict[str, Any]:
    """Makes the style of an estimator's line: its own dash, with the colour and marker of its commitment.

    Args:
      estimator: its name.
      q: of the power, or None for an estimator without q, which has a colour of its own.
      commitment: power, floor or mixture.
      tau: of the floor or mixture.
    """
    if commitment in COLORS_OF_TAU:
        style = style_of_tau(commitment, tau)
    elif q is not None:
        style = style_of_q(q)
    else:
        style = {"color": color_of_estimator(estimator), "marker": _by_name(estimator, _OTHER_MARKERS)}
    return style | {"linestyle": DASHES.get(estimator) or _by_name(estimator, _OTHER_DASHES)}


def _mixed(x: float, anchors: Sequence[float], colors: Sequence[str]) -> str:
    """Interpolates colours, channel by channel."""
    channels = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in colors])
    return "#" + "".join(f"{round(float(np.interp(x, anchors, channel))):02x}" for channel in channels.T)


def _by_name(name: str, entries: Sequence[Entry]) -> Entry:
    """Chooses an entry by the name's checksum, the same in every process."""
    return entries[zlib.crc32(name.encode(errors="replace")) % len(entries)]
