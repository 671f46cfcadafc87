"""Evaluates a checkpoint of a run, or a model before any training, on a split of its task.

    python -m tsallis_rl.evaluate --run=runs/finqa --k=1,4,16
    python -m tsallis_rl.evaluate --config=hotpotqa:model=models/Qwen3-0.6B --split=validation --examples=50

Settings are the run's, or the config's. --config.evaluate.temperature, top_p, top_k and greedy set how answers are
sampled, independently of how training sampled rationales; any other field can be set too.

pass@k is the chance that one of k answers is right, maj@k that their majority is. Both are estimated without bias from
config.evaluate.samples answers, with 95% bootstrap intervals over examples. The gain from rationales is log P̂ minus
log p(gold) of the same model with thinking closed at once. Writes summary.json, examples.jsonl (gold answer, log P̂,
gain and figures of each), samples.jsonl (each sampled answer with its rationale and grades) and page.html, for people
to read.
"""

from absl import flags
from ml_collections import ConfigDict

from tsallis_rl.config.command_line import command
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import fetched, is_remote, local
from tsallis_rl.runs.paths import plain_number

FLAGS = flags.FlagValues()
RUN = flags.DEFINE_string("run", None, "Folder of the run; instead of --config.", flag_values=FLAGS)
STEP = flags.DEFINE_string("step", "best", "The run's checkpoint: best, latest or a step.", flag_values=FLAGS)
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which examples.", flag_values=FLAGS)
K = flags.DEFINE_list("k", [], "For pass@k and maj@k; by default 1 and config.evaluate.samples.", flag_values=FLAGS)
EXAMPLES = flags.DEFINE_integer(
    "examples", None, "Size of a deterministic subset; 0 = all; by default config.evaluate.examples.", 0,
    flag_values=FLAGS,
)  # fmt: skip
OUT = flags.DEFINE_string(
    "out", None, "Folder to write; by default RUN/evaluations/NAME or evaluations/MODEL/NAME.", flag_values=FLAGS
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes.", flag_values=FLAGS)


@command(FLAGS, config=True, saved=RUN.name)
def main(config: ConfigDict) -> None:
    """Evaluates, writes the files, and prints the figures."""
    ks, step, run = _ks(K.value), _step(STEP.value), RUN.value
    if run is None and FLAGS["step"].present:
        raise UserError(f"--step={step}: it belongs to --run; a model before training has no steps")
    if run is not None and is_remote(run) and not OUT.value:
        raise UserError(f"--run={run}: nothing is written into an object store; name a folder by --out")
    # Here, so that --help and mistyped flags are answered at once.
    from tsallis_rl.report.rollout_page import write_evaluation_page
    from tsallis_rl.runs.devices import start_jax
    from tsallis_rl.runs.processes import from_first, join
    from tsallis_rl.training.model_evaluation import Request, evaluate

    if DISTRIBUTED.value:
        join()
    start_jax()
    if EXAMPLES.value is not None:
        config.evaluate.examples = EXAMPLES.value
    out = local("--out", OUT.value) if OUT.value else None
    result = evaluate(config, Request(fetched(run) if run else None, step, SPLIT.value, ks, out))
    page = result.folder / "page.html"
    from_first(lambda: write_evaluation_page(page, result.answers, result.title, result.table))
    print(f"\n{result.title}\n{result.table}\n\nanswers to read: {page}\nfiles:           {result.folder}")


def _ks(given: list[str]) -> tuple[int, ...]:
    """Reads --k."""
    if not all(plain_number(k) for k in given):
        raise UserError(f"--k={','.join(given)}: give numbers from 1 up, as in --k=1,4,16")
    return tuple(int(k) for k in given)


def _step(given: str) -> str:
    """Reads --step."""
    if given not in ("best", "latest") and plain_number(given) is None:
        raise UserError(f"--step={given}: choose best, latest or the number of a step")
    return given


if __name__ == "__main__":
    main()
