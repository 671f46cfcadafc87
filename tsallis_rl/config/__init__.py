"""Settings of an experiment: what config files and command lines may say."""

from tsallis_rl.config.schema import Choice, answers_config, base_config, paper_config, parse_argument

__all__ = ["Choice", "answers_config", "base_config", "paper_config", "parse_argument"]
