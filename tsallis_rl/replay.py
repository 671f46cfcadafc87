"""Saved rollouts through any estimator: python -m tsallis_rl.replay --run=DIR --step=50 --estimators=garl@0.25,paft@1

Needs no model: the log-weights (and rewards, where answers were sampled) in the run's rollouts/ decide the
coefficients, its seed the draws. NAME@Q sets the commitment; NAME alone takes the one that was in force at that step.
Other options are those of the run's config.estimator. Prints a table; --out=FILE.jsonl keeps every rollout with all its
coefficients.
"""

import argparse
from collections.abc import Sequence

from absl import logging

from tsallis_rl.runs.errors import one_sentence
from tsallis_rl.runs.object_store import fetched, local
from tsallis_rl.training.replay import load, replay, table, write


def main(arguments: Sequence[str] | None = None) -> None:
    """Replays and prints."""
    parser = argparse.ArgumentParser(prog="python -m tsallis_rl.replay", allow_abbrev=False)
    parser.add_argument("--run", required=True, help="folder of the run")
    parser.add_argument("--step", type=int, required=True, help="a step whose rollouts were saved")
    parser.add_argument("--estimators", default="garl@0,garl@0.25,garl@0.5,garl@0.75,garl@1,paft@0.75,paft@1")
    parser.add_argument("--out", help="JSON lines of every rollout with its coefficients")
    given = parser.parse_args(arguments)
    logging.set_verbosity(logging.WARNING)
    with one_sentence():
        out = local("--out", given.out) if given.out else None
        saved = load(fetched(given.run), given.step)
        replayed = {name: replay(saved, name) for name in given.estimators.split(",")}
        print(table(saved, replayed))
        if out:
            write(out, saved, replayed)


if __name__ == "__main__":
    main()
