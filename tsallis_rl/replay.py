"""Replays saved rollouts: the coefficients that other estimators would have given them.

    python -m tsallis_rl.replay --run=runs/finq --step=50 --estimators=garl@0.25,paft@1
    python -m tsallis_rl.replay --run=runs/finq --step=50 --out=coefficients.jsonl

Needs no model: the log-weights (and rewards, if answers were sampled) in the run's rollouts/ decide the coefficients,
and its seed decides the draws. NAME@Q sets the commitment; NAME alone uses the run's commitment at that step. Other
options are those of the run's config.estimator. Prints a table; --out=FILE.jsonl also writes every rollout with all its
coefficients.
"""

from absl import flags

from tsallis_rl.config.command_line import command
from tsallis_rl.runs.object_store import fetched, local

FLAGS = flags.FlagValues()
RUN = flags.DEFINE_string("run", None, "Folder of the run.", required=True, flag_values=FLAGS)
STEP = flags.DEFINE_integer("step", None, "A step whose rollouts were saved.", required=True, flag_values=FLAGS)
ESTIMATORS = flags.DEFINE_list(
    "estimators", "garl@0,garl@0.25,garl@0.5,garl@0.75,garl@1,paft@0.75,paft@1", "NAME or NAME@Q.", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", None, "JSON lines of every rollout with its coefficients.", flag_values=FLAGS)


@command(FLAGS)
def main() -> None:
    """Replays and prints."""
    from tsallis_rl.runs.devices import start_jax  # here, so that --help is answered at once
    from tsallis_rl.training.replay import check_out, load, replay, table, write

    start_jax()
    out = local("--out", OUT.value) if OUT.value else None
    run = fetched(RUN.value)
    if out:
        check_out(out, run)
    saved = load(run, STEP.value)
    replayed = {name: replay(saved, name) for name in ESTIMATORS.value}
    print(table(saved, replayed))
    if out:
        write(out, saved, replayed)


if __name__ == "__main__":
    main()
