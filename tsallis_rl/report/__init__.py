"""What runs showed, for people: `python -m tsallis_rl.report RUN_OR_SWEEP_DIR`."""
