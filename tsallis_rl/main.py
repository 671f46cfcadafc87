"""Trains one experiment: python -m tsallis_rl.main --config=configs/finq.py:q=0.75 --workdir=runs/finqa

Without --config it runs the embedded cold start, configs/hops.py. Any field is overridden by
--config.section.field=value. The same command again goes on where the run stopped. --distributed joins the other
processes of a pod; the scripts in launch/ set it.
"""

import math
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from tsallis_rl.config import command_line as settings
from tsallis_rl.runs.cache import cache_folder, fingerprint
from tsallis_rl.runs.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder, or gs:// or s3://…; by default runs/NAME.")
PLAN = flags.DEFINE_bool("plan", False, "Print what a step holds in each device's memory, and train nothing.")
DEVICES = flags.DEFINE_integer("devices", None, "With --plan: plan for this many devices; by default those here.", 1)
MEMORY = flags.DEFINE_float("memory", None, "With --plan: GiB of one device; by default that of those here.")
SHOW_CONFIG = flags.DEFINE_bool("show_config", False, "Print every setting with its meaning, and train nothing.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes, which share the folder of the run.")


def main(_: Sequence[str]) -> None:
    """Trains, then says what the run reached and where to look."""
    if SHOW_CONFIG.value:
        from tsallis_rl.config.listing import listing  # here, as below

        print(listing(flags.FLAGS.config))
        return
    import jax  # here, so that --help and a mistyped flag are answered at once

    from tsallis_rl.heap import give_back_after_compiling
    from tsallis_rl.report.curves import draw
    from tsallis_rl.runs.mirror import run_folder
    from tsallis_rl.runs.processes import is_first, join
    from tsallis_rl.runs.signals import Interrupted
    from tsallis_rl.training.loop import train

    if DISTRIBUTED.value:
        join()
    jax.config.update("jax_compilation_cache_dir", str(cache_folder("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    give_back_after_compiling()

    config = flags.FLAGS.config
    for flag in (DEVICES, MEMORY):
        if flag.value is not None and not PLAN.value:
            raise UserError(f"--{flag.name}={flag.value}: it belongs to --plan; give both or neither")
    if PLAN.value:
        print(planned(config))
        return
    name = f"{config.task.name}-{config.task.start}-{config.estimator.name}-q{config.estimator.q:g}"
    given = WORKDIR.value or f"runs/{name}-{fingerprint(config.to_json())}"
    try:
        with run_folder(given, jax.process_count()) as (workdir, saved):
            records = train(config, workdir, saved)
            if is_first():
                print(summary(records))
                print(f"\nfigures:  {draw(workdir, records)}")
                print(f"rollouts: {workdir / 'rollouts'}\nmetrics:  {workdir / 'metrics.jsonl'}")
    except Interrupted as stop:
        print(f"stopped by {stop}: the state is saved in {given}, the same command goes on", file=sys.stderr)
        sys.exit(128 + stop.signum)


def planned(config: ConfigDict) -> str:
    """The table of --plan, of a config that a run on these devices would accept."""
    import jax

    from tsallis_rl.training import memory_plan as plan
    from tsallis_rl.training.loop import prepare

    if MEMORY.value is not None and not 0 < MEMORY.value < math.inf:
        raise UserError(f"--memory={MEMORY.value:g}: choose GiB above 0")
    devices = DEVICES.value or jax.device_count()
    setup = prepare(config, devices)
    limit = int(MEMORY.value * plan.GIB) if MEMORY.value else plan.device_memory()
    joint_length = len(setup.tokenizer.encode(setup.task.joint))
    return plan.report(config, setup.arch, joint_length, devices, limit)


def summary(records: Sequence[dict]) -> str:
    """The test figures of the base model and of the best checkpoint, as a table."""
    before, after = [record for record in records if "eval/test/pass@1" in record]
    names = [name for name in before if name.startswith("eval/test/") and ("/pass@" in name or "/maj@" in name)]
    lines = [f"{'test':<10}{'before':>10}{'after':>10}"]
    for name in names:
        short = name.removeprefix("eval/test/").replace("pass@", "p@").replace("maj@", "m@")
        lines.append(f"{short:<10}{before[name]:>10.3f}{after[name]:>10.3f}")
    lines.append(f"(after: step {after['eval/test/checkpoint_step']}, the best on validation)")
    return "\n".join(lines)


if __name__ == "__main__":
    settings.run(main)
