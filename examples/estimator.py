"""An estimator of your own in one file: a group's rollouts share one gradient by their tempered weights.

    python -m tsallis_rl.main --config=hops:estimator=examples.estimator.tempered --config.estimator.temperature=4

Its name and its option are saved in the run's config.json. The same command continues the run; other commands find the
estimator from there, wherever its module can be imported. A copy of this file in the working directory as
my_estimator.py gives my_estimator.tempered.

    python -m tsallis_rl.replay --run=RUN --step=0 --estimators=examples.estimator.tempered,iwae,garl@0.75
    python -m tsallis_rl.sweep --estimators=examples.estimator.tempered,iwae --seeds=1

Temperature 1 is `iwae` without its factor 1/M; test p@1 of the cold start ends at 0.996, with one seed. Temperature 4
treats rationales almost alike: log P̂ still rises from −45 to −2.2 and the answer's format is learnt, but p@1 ends at
0.14.
"""

import jax
import jax.numpy as jnp
from jax import Array

from tsallis_rl.objectives import Coefficients, Estimator


def by_tempered_weight(log_w: Array, *, temperature: float = 1.0) -> Coefficients:
    """Divides one gradient among the rollouts of a group by w^(1/temperature): log_w [..., M] → [..., M].

    Positional arguments name what the estimator needs of a group: key, log_w, q, or what the loop measures of rollouts.
    Keyword-only arguments are options, read from config.estimator; each has a default.
    """
    share = jnp.nan_to_num(jax.nn.softmax(log_w / temperature, axis=-1))  # if no rollout has a weight, every share is 0
    return Coefficients(score=share, path=share)


tempered = Estimator("tempered", by_tempered_weight, answer="gold", source="w^(1/temperature), normalised")
