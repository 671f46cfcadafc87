"""One rollout of a run again, alone: python -m tsallis_rl.regenerate --run=runs/finq --step=7 --example=3 --rollout=11

--example is the place in the step's batch. The parameters of the step come from the nearest sound checkpoint before
it, by replaying the steps between (from the base model, where no checkpoint is that old). Prints the rollout as JSON.
"""

import argparse
import json
from collections.abc import Sequence

from absl import logging

from tsallis_rl.runs.errors import one_sentence
from tsallis_rl.runs.object_store import fetched


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rollout."""
    parser = argparse.ArgumentParser(prog="python -m tsallis_rl.regenerate", allow_abbrev=False)
    parser.add_argument("--run", required=True, help="folder of the run")
    parser.add_argument("--step", type=int, required=True, help="training step")
    parser.add_argument("--example", type=int, required=True, help="place in the step's batch, from 0")
    parser.add_argument("--rollout", type=int, required=True, help="which of the group, from 0")
    given = parser.parse_args(arguments)
    logging.set_verbosity(logging.WARNING)
    from tsallis_rl.training.regeneration import regenerate  # here, so that --help is answered at once

    with one_sentence():
        row = regenerate(fetched(given.run), given.step, given.example, given.rollout)
        print(json.dumps(row, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
