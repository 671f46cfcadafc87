"""Trains one experiment.

    python -m tsallis_rl.main --config=hops:q=0.5 --config.train.steps=100
    python -m tsallis_rl.main --config=finq:q=0.75,model=tiny --workdir=runs/finqa

--config is a file, or the name of one in configs/; the default is hops, the embedded cold start. Override any field by
--config.section.field=value; --show_config lists them. The same command again continues where the run stopped.
--distributed joins the other processes of a pod; the scripts in launch/ set it.
"""

import sys

from absl import flags
from ml_collections import ConfigDict

from tsallis_rl.config.command_line import command, started_with
from tsallis_rl.runs.errors import UserError

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder, or s3:// or gs://; by default runs/NAME.", flag_values=FLAGS)
SHOW_CONFIG = flags.DEFINE_bool(
    "show_config", False, "Print every setting with its meaning, and train nothing.", flag_values=FLAGS
)
PREPARE = flags.DEFINE_bool(
    "prepare", False, "Fill the cache (data set, tokeniser, base model), and train nothing.", flag_values=FLAGS
)
PLAN = flags.DEFINE_bool(
    "plan", False, "Print what a step holds in each device's memory, and train nothing.", flag_values=FLAGS
)
DEVICES = flags.DEFINE_integer(
    "devices", None, "With --plan: plan for this many devices; by default those here.", 1, flag_values=FLAGS
)
MEMORY = flags.DEFINE_float(
    "memory", None, "With --plan: GiB of one device; by default that of those here.", flag_values=FLAGS
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes of one run.", flag_values=FLAGS)


@command(FLAGS, config=True)
def main(config: ConfigDict) -> None:
    """Trains, or does what --show_config, --plan or --prepare asks for instead."""
    from tsallis_rl.config.listing import listing  # here and below, so that a mistyped flag is reported at once
    from tsallis_rl.runs.devices import start_jax
    from tsallis_rl.runs.processes import join

    for flag in (DEVICES, MEMORY):
        if flag.value is not None and not PLAN.value:
            raise UserError(f"--{flag.name}={flag.value}: it belongs to --plan; give both or neither")
    if SHOW_CONFIG.value:
        print(listing(config))
        return
    if DISTRIBUTED.value:
        join()
    start_jax()
    if PLAN.value:
        from tsallis_rl.training.planned import planned

        print(planned(config, DEVICES.value, MEMORY.value))
    elif PREPARE.value:
        from tsallis_rl.training.setup import fill_cache

        fill_cache(config)
    else:
        run(config)


def run(config: ConfigDict) -> None:
    """Trains, then prints what the run reached and where to look."""
    import jax

    from tsallis_rl.config.naming import default_workdir
    from tsallis_rl.report.summary import draw_curves, summary
    from tsallis_rl.runs.mirror import run_folder
    from tsallis_rl.runs.processes import is_first
    from tsallis_rl.runs.signals import Interrupted
    from tsallis_rl.training.loop import train
    from tsallis_rl.training.telling import next_commands

    given = WORKDIR.value or default_workdir(config)
    try:
        with run_folder(given, jax.process_count()) as (workdir, saved):
            records = train(config, workdir, saved)
            if is_first():
                print(summary(records))
                print(f"\nfigures:  {draw_curves(workdir, config, records)}")
                print(f"rollouts: {workdir / 'rollouts'}\nanswers:  {workdir / 'evaluations'}")
                print(f"metrics:  {workdir / 'metrics.jsonl'}\n")
                print(next_commands(given, config, started_with(), jax.process_count()))
    except Interrupted as stop:
        print(f"stopped by {stop}: the state is saved in {given}, the same command continues it", file=sys.stderr)
        sys.exit(128 + stop.signum)


if __name__ == "__main__":
    main()
