"""Measures the estimators against the exact answer.

    python -m tsallis_rl.laboratory --out=runs/laboratory
    python -m tsallis_rl.laboratory --out=runs/laboratory --studies=escape,noise

Writes figures, tables and index.html into the folder, in under a minute on two CPU cores; --studies selects studies.
"""

from absl import flags

from tsallis_rl.config.command_line import command
from tsallis_rl.runs.cache import writing
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.object_store import local

FLAGS = flags.FlagValues()
OUT = flags.DEFINE_string("out", None, "Folder for figures, tables and index.html.", required=True, flag_values=FLAGS)
STUDIES = flags.DEFINE_list("studies", [], "Which studies to run; all if empty.", flag_values=FLAGS)


@command(FLAGS)
def main() -> None:
    """Runs the chosen studies and prints the page's path."""
    import jax  # here, so that --help and a mistyped flag are answered at once

    from tsallis_rl.laboratory.figures import DRAWINGS, draw
    from tsallis_rl.laboratory.floor_figures import FLOOR_DRAWINGS
    from tsallis_rl.laboratory.floors import FLOOR_STUDIES
    from tsallis_rl.laboratory.flows import FLOW_STUDIES
    from tsallis_rl.laboratory.gradients import GRADIENT_STUDIES
    from tsallis_rl.laboratory.page import write_page, write_table
    from tsallis_rl.laboratory.proposals import PROPOSAL_STUDIES
    from tsallis_rl.runs.progress import Bar

    available = {run.__name__: run for run in GRADIENT_STUDIES + PROPOSAL_STUDIES + FLOW_STUDIES + FLOOR_STUDIES}
    if unknown := [name for name in STUDIES.value if name not in available]:
        raise UserError(f"--studies: no study {', '.join(unknown)}; choose from {', '.join(available)}")
    drawings = DRAWINGS | FLOOR_DRAWINGS
    folder = local("--out", OUT.value)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    studies = []
    for name in Bar(STUDIES.value or available, "studies", called="studies"):
        study = available[name]()
        write_table(study, folder)
        draw(study, drawings[name], folder)
        studies.append(study)
        print(f"\n{study.title}\n  {study.measured}")
    print(f"\npage: {write_page(studies, folder)}")


if __name__ == "__main__":
    main()
