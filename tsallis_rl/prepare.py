"""Makes what the runs of a config share, once: python -m tsallis_rl.prepare --config=configs/hops.py

The prepared data set, the tokeniser and the base model; runs that start together then find them in the cache.
"""

from collections.abc import Sequence

from absl import flags

from tsallis_rl.config import command_line as settings


def main(_: Sequence[str]) -> None:
    """Checks the config and fills the cache."""
    import jax  # here, so that --help and a mistyped flag are answered at once

    from tsallis_rl.runs.cache import cache_folder
    from tsallis_rl.training.base_model import base_parameters
    from tsallis_rl.training.loop import prepare

    jax.config.update("jax_compilation_cache_dir", str(cache_folder("compiled")))
    config = flags.FLAGS.config
    setup = prepare(config)
    base_parameters(config, setup.task, setup.tokenizer, setup.arch, setup.mesh)


if __name__ == "__main__":
    settings.run(main)
