"""Shows finished and running runs as pages and figures: `python -m tsallis_rl.report RUN_OR_SWEEP_DIR`."""
