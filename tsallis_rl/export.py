"""Writes a run's model as a Hugging Face folder.

    python -m tsallis_rl.export --checkpoint=runs/finq --out=models/finq --dtype=bfloat16
    python -m tsallis_rl.export --checkpoint=runs/finq --out=models/finq-adapter --adapter --step=100

--checkpoint is the folder of a run that started from a pretrained model. The best step by validation is written unless
--step names another. Adapters are merged, or with --adapter written as a peft folder, which config.model.adapter can
read too. Tensors are float32, as in training; --dtype chooses a shorter type, and the command then prints how much of
the training's change survives. README.md in the folder is a model card: settings, data, scores.
"""

from absl import flags

from tsallis_rl.config.command_line import command
from tsallis_rl.runs.object_store import fetched, local

FLAGS = flags.FlagValues()
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the run.", required=True, flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "Folder to write: a new or an empty one.", required=True, flag_values=FLAGS)
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; by default the best on validation.", flag_values=FLAGS)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["bfloat16", "float16", "float32"], "Type of the tensors written.", flag_values=FLAGS
)
ADAPTER = flags.DEFINE_bool("adapter", False, "Write the adapters alone, as a peft folder.", flag_values=FLAGS)


@command(FLAGS)
def main() -> None:
    """Writes the folder; prints its step and type, and how much of the change a shorter type keeps."""
    from tsallis_rl.exports.export import export  # here, so that --help and mistyped flags are answered at once
    from tsallis_rl.runs.devices import start_jax

    start_jax()
    out = local("--out", OUT.value)
    step, dtype, kept = export(fetched(CHECKPOINT.value), out, STEP.value, DTYPE.value, adapter=ADAPTER.value)
    if kept:
        print(kept.sentence(dtype))
    print(f"wrote step {step} in {dtype}: {out}")


if __name__ == "__main__":
    main()
