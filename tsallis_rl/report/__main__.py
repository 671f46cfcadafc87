"""Reports on a run or a sweep, finished or not.

    python -m tsallis_rl.report runs/finq
    python -m tsallis_rl.report runs/sweep-hops
    python -m tsallis_rl.report runs/finq --watch

Writes report.html, one page that opens without a server, the figures as report/NAME.png, and beside every
rollouts/step_….jsonl and evaluations/validation_….jsonl a page with the sampled texts. Runs of a sweep are pooled only
over seeds, separately for each task and start; the paper's claims are judged across tasks and starts.

--watch keeps the pages current while the run continues, and serves them at http://127.0.0.1:8765 until Ctrl-C; an open
page updates itself. You can start it before the run. Only browsers on this machine can reach it: for a remote machine,
run `ssh -L 8765:127.0.0.1:8765 HOST` on yours, and open the same address there.
"""

from collections.abc import Hashable
from functools import partial
from pathlib import Path

from absl import flags

from tsallis_rl.config.command_line import command
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import local

FLAGS = flags.FlagValues()
WATCH = flags.DEFINE_boolean("watch", False, "Keep the pages current and serve them.", flag_values=FLAGS)
PORT = flags.DEFINE_integer(
    "port", None, "With --watch: port to serve at; 0: any free one. By default 8765, or the next free one.",
    lower_bound=0, upper_bound=65535, flag_values=FLAGS,
)  # fmt: skip


@command(FLAGS, words=["run_or_sweep_dir"])
def main(folder: str) -> None:
    """Writes the pages and prints where they are."""
    from tsallis_rl.report.watch import watch

    path = local("RUN_OR_SWEEP_DIR", folder)
    if WATCH.value:
        try:
            watch(path, PORT.value, partial(report, path, {}))
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the pages stay as they are") from None
    elif PORT.value is not None:
        raise UserError(f"--port={PORT.value} is read with --watch; give that too, or leave it out")
    else:
        print(f"report: {report(path)}")


def report(folder: Path, written: dict[Path, Hashable] | None = None) -> Path:
    """Writes everything and returns the page.

    Args:
      folder: the folder of the run or the sweep.
      written: if given, records what each page was made of, so that a later call skips unchanged pages; then no
        progress is shown.

    Raises:
      UserError: the folder is neither a run nor a sweep.
    """
    from tsallis_rl.report.figures import draw
    from tsallis_rl.report.page import write_page
    from tsallis_rl.report.rollout_page import write_pages
    from tsallis_rl.report.runs import read
    from tsallis_rl.runs.progress import Bar

    runs = read(folder)
    pages = {}
    for run in Bar(runs, desc="rollouts", called="runs", disable=written is not None):
        if run.config:
            what = f"{run.setting}, {run.method}, seed {run.config['seed']}"
            pages[run.folder] = write_pages(run.folder, what, folder / "report.html", written)
    return write_page(folder, runs, draw(runs, folder / "report"), pages)


if __name__ == "__main__":
    main()
