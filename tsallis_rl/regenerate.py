"""Regenerates one rollout of a run, and prints it as JSON.

    python -m tsallis_rl.regenerate --run=runs/finq --step=7 --example=AMT/2012/page_121.pdf-1 --rollout=11
    python -m tsallis_rl.regenerate --run=runs/finq --step=0 --example=0 --rollout=0 > rollout.json

--example is the id that the page of rollouts shows. If no example of the batch has that id, it is the place in the
step's batch, from 0 (with config.train.refill, the group's `position` in rollouts/). The parameters of the step come
from the nearest sound checkpoint before it, or from the base model if there is none, by replaying the steps between.
"""

import json

from absl import flags

from tsallis_rl.config.command_line import command
from tsallis_rl.runs.object_store import fetched

FLAGS = flags.FlagValues()
RUN = flags.DEFINE_string("run", None, "Folder of the run.", required=True, flag_values=FLAGS)
STEP = flags.DEFINE_integer("step", None, "Training step.", required=True, flag_values=FLAGS)
EXAMPLE = flags.DEFINE_string(
    "example", None, "Its id, or its place in the step's batch, from 0.", required=True, flag_values=FLAGS
)
ROLLOUT = flags.DEFINE_integer("rollout", None, "Which of the group, from 0.", required=True, flag_values=FLAGS)


@command(FLAGS)
def main() -> None:
    """Prints the rollout."""
    from tsallis_rl.runs.devices import start_jax  # here, so that --help is answered at once
    from tsallis_rl.training.regeneration import regenerate

    start_jax()
    row = regenerate(fetched(RUN.value), STEP.value, EXAMPLE.value, ROLLOUT.value)
    print(json.dumps(row, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
