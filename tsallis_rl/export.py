"""Writes a run's model as a Hugging Face folder: python -m tsallis_rl.export --checkpoint=runs/finq --out=models/finq

--checkpoint is the folder of a run that started from a pretrained model; its best step by validation is written unless
--step names another. Tensors have the type that the pretrained ones have unless --dtype names another.
"""

from absl import flags

from tsallis_rl.config.command_line import command
from tsallis_rl.runs.object_store import fetched, local

FLAGS = flags.FlagValues()
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the run.", required=True, flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "Folder to write; must not exist or be empty.", required=True, flag_values=FLAGS)
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; by default the best on validation.", flag_values=FLAGS)
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float16", "float32"], "Type of the tensors written.", flag_values=FLAGS
)


@command(FLAGS)
def main() -> None:
    """Writes the folder and says which step and type it has."""
    from tsallis_rl.models.export import export  # here, so that --help and a mistyped flag are answered at once

    out = local("--out", OUT.value)
    step, dtype = export(fetched(CHECKPOINT.value), out, STEP.value, DTYPE.value)
    print(f"wrote step {step} in {dtype}: {out}")


if __name__ == "__main__":
    main()
