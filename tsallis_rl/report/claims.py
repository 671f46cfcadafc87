"""Lists the tables and claims of arXiv 2604.25907 on Qwen3-0.6B as data; `tsallis_rl.report.orderings` judges them.

docs/method.md §6.
"""

from typing import NamedTuple

SETS = {"finqa": "FinQA", "hotpotqa": "HotPotQA", "musique": "MuSiQue"}  # task.name -> the paper's name
FIGURES = ("p@1", "p@n", "m@n")  # n = 16 in the paper
BASE = "base"  # in place of an estimator: the model before training
LOW, HIGH = (0.0, 0.25, 0.5), (0.75, 1.0)


class Arm(NamedTuple):
    """The runs that a claim is about, or a row of the paper's tables.

    Attributes:
      start: cold or warm.
      estimator: a row of tsallis_rl.objectives.ESTIMATORS, or BASE.
      q: its commitment; None if it has none, or for a claim about every q.
    """

    start: str
    estimator: str
    q: float | None = None

    @property
    def method(self) -> str:
        """The name in sentences and tables."""
        name = "the base model" if self.estimator == BASE else self.estimator.upper()
        return name if self.q is None else f"{name} q = {self.q:g}"


class Claim(NamedTuple):
    """A statement of the paper.

    Attributes:
      kind: the rule that judges it, a key of `orderings.RULES`.
      arms: the arms it is about.
      figure: one of FIGURES, or the property of a run that has the step.
      sets: the sets for which the paper states it, keys of SETS; empty if it names none, so that any task can judge it.
      by: a step.
      paper: the paper's numbers, if they are not those of PAPER.
    """

    kind: str
    arms: tuple[Arm, ...]
    figure: str = ""
    sets: tuple[str, ...] = ()
    by: int = 0
    paper: str = ""


def cold(estimator: str, q: float | None = None) -> Arm:
    """Makes an arm with a cold start."""
    return Arm("cold", estimator, q)


def warm(estimator: str, q: float | None = None) -> Arm:
    """Makes an arm with a warm start."""
    return Arm("warm", estimator, q)


def _only_m(finqa: float, hotpotqa: float, musique: float) -> dict[str, tuple[float | None, ...]]:
    return {"finqa": (None, None, finqa), "hotpotqa": (None, None, hotpotqa), "musique": (None, None, musique)}


# Test figures in percent: arm -> {set: p@1, p@16, m@16}.
PAPER: dict[Arm, dict[str, tuple[float | None, ...]]] = {
    cold("grpo"): {"finqa": (0.0, 0.0, 0.0)},
    cold("garl", 0.0): {"finqa": (0.0, 0.0, 0.0)},
    cold("garl", 0.25): {"finqa": (0.0, 0.0, 0.0)},
    cold("garl", 0.5): {"finqa": (0.0, 0.0, 0.0)},
    cold("garl", 0.75): {"finqa": (30.5, 61.1, 38.3), "hotpotqa": (53.5, 74.1, 57.2), "musique": (26.8, 58.9, 34.8)},
    cold("garl", 1.0): {"finqa": (21.9, 58.7, 33.5), "hotpotqa": (48.7, 75.5, 56.6), "musique": (21.6, 58.1, 32.5)},
    warm(BASE): _only_m(12.6, 22.2, 8.9),
    # From the paper's first version; the second's gain of 13.9 over GRPO on HotPotQA implies 34.0 there.
    warm("grpo"): {"finqa": (18.9, 48.4, 26.9), "hotpotqa": (29.1, 55.1, 33.5), "musique": (13.6, 37.3, 15.8)},
    warm("garl", 0.0): _only_m(38.3, 21.6, 9.1),
    warm("garl", 0.25): _only_m(38.7, 22.9, 24.3),
    warm("garl", 0.75): _only_m(37.6, 46.8, 19.7),
    warm("paft", 0.25): _only_m(26.6, 47.0, 9.0),
    warm("paft", 0.75): _only_m(28.6, 47.9, 22.4),
}

_FIGURE_3 = "FinQA: q = 1 at once, q = 0.75 near step 35, q ≤ 0.5 flat"
_TRAINED = [arm for arm in PAPER if arm.start == "warm" and arm.estimator != BASE]

# A claim of kind "compare" only names the two arms; PAPER decides which is ahead, set by set. If one arm is ahead on
# every set, the claim names no sets.
CLAIMS = (
    *(Claim("zero", (cold(estimator, q),), "p@1") for estimator, q in (("grpo", None), *(("garl", q) for q in LOW))),
    *(Claim("leaves", (cold("garl", q),), "p@1") for q in HIGH),
    *(Claim("compare", (cold("garl", 0.75), cold("garl", 1.0)), figure) for figure in FIGURES),
    Claim("in order", (cold("garl"),), "advantage_step", paper=_FIGURE_3),
    Claim("in order", (cold("garl"),), "escape_step", paper="theory"),
    *(Claim("undefined", (cold("paft", q),), paper="since P ≈ 0") for q in HIGH),
    *(Claim("compare", (cold("garl", 0.75), arm), "m@n") for arm in _TRAINED),
    *(Claim("compare", (cold("garl", 0.75), warm("grpo")), figure) for figure in FIGURES[:2]),
    *(Claim("compare", (arm, warm(BASE)), "m@n") for arm in _TRAINED),
    *(Claim("compare", (arm, warm("grpo")), "m@n") for arm in _TRAINED if arm.estimator != "grpo"),
    Claim("compare", (warm("paft", 0.75), warm("garl", 0.75)), "m@n"),
    Claim("compare", (warm("paft", 0.25), warm("garl", 0.25)), "m@n"),
    Claim("compare", (warm("paft", 0.25), warm("paft", 0.75)), "m@n"),
    Claim("holds", (warm("paft"),), paper="HotPotQA, q = 0.25: reaches 0.536 on validation and holds it"),
    Claim("falls", (warm("grpo"),), sets=("hotpotqa",), paper="0.374 on validation near step 100, 0.050 at the end"),
    Claim("zero by", (warm("garl", 0.2),), sets=("hotpotqa",), by=150, paper="0.411 near step 100, 0 by 150"),
    Claim("zero by", (warm("garl", 0.25),), sets=("hotpotqa",), by=100, paper="0.306 near step 50, 0 by 100"),
    Claim("zero by", (warm("garl", 0.75),), sets=("hotpotqa",), by=100, paper="0.468 near step 50, 0 by 100"),
)
