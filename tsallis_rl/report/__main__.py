"""Reports on a run or a sweep, finished or not.

    python -m tsallis_rl.report runs/finq
    python -m tsallis_rl.report runs/sweep-hops

Writes report.html, one page that opens without a server, the figures as report/NAME.png, and a page beside every
rollouts/step_….jsonl and evaluations/validation_….jsonl: what was sampled, as text. Runs of a sweep are pooled over
seeds alone, task by task and start by start; the paper's claims are judged across both.
"""

from pathlib import Path

from absl import flags

from tsallis_rl.config.command_line import command
from tsallis_rl.runs.object_store import local

FLAGS = flags.FlagValues()


@command(FLAGS, words=["run_or_sweep_dir"])
def main(folder: str) -> None:
    """Writes the pages and says where they are."""
    print(f"report: {report(local('RUN_OR_SWEEP_DIR', folder))}")


def report(folder: Path) -> Path:
    """Writes everything and returns the page.

    Raises:
      UserError: the folder is neither a run nor a sweep.
    """
    from tqdm import tqdm

    from tsallis_rl.report.figures import draw
    from tsallis_rl.report.page import write_page
    from tsallis_rl.report.rollout_page import write_pages
    from tsallis_rl.report.runs import read

    runs = read(folder)
    pages = {}
    for run in tqdm(runs, desc="rollouts", dynamic_ncols=True, disable=None):
        if run.config:
            what = f"{run.setting}, {run.method}, seed {run.config['seed']}"
            pages[run.folder] = write_pages(run.folder, what, folder / "report.html")
    return write_page(folder, runs, draw(runs, folder / "report"), pages)


if __name__ == "__main__":
    main()
