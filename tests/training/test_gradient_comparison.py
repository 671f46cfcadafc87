"""The gradient comparison, checked against gradients taken prompt by prompt; comparing changes nothing in the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.rollouts import ARCH, BATCH, PARAMS, SAMPLING, A, P
from tests.support.runs import small, without_clocks
from tsallis_rl import objectives
from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.sampler import RolloutShape, roll_out
from tsallis_rl.sampler.keys import ESTIMATOR, REFERENCE, TRAIN, example_keys
from tsallis_rl.training.gradient_comparison import GradientComparison, Moments, compare, moments
from tsallis_rl.training.learner import read_prompts, surrogate
from tsallis_rl.training.loop import train
from tsallis_rl.training.packing import one_row_each
from tsallis_rl.training.weighed import WeighedRollouts

M, STEP = 4, 3


def config(*estimators: str, reference: int = 2 * M):
    settings = base_config()
    settings.rollouts.num_rollouts, settings.rollouts.max_rationale, settings.task.max_answer = M, 6, A
    settings.shadow.every, settings.shadow.estimators = 1, estimators
    settings.shadow.reference_rollouts = reference
    return settings


def rolled(purpose: int, max_answer: int = 0):
    keys = example_keys(0, purpose, STEP, np.arange(P))
    shape = RolloutShape(ARCH, num_rollouts=M, max_rationale=6, max_answer=max_answer)
    return roll_out(PARAMS, BATCH, keys, SAMPLING, shape).rollouts


@jax.jit
def _of_prompt(rollouts, coefficients):
    rows = one_row_each(rollouts, coefficients)

    def loss(params):
        return surrogate(params, read_prompts(params, rows, ARCH), rows, ARCH)[0]

    return jax.grad(loss)(PARAMS)


def per_prompt(rollouts, coefficients) -> np.ndarray:
    """Gradients [P, number of parameters] in float64, each from its prompt alone."""
    rows = []
    for p in range(P):
        grads = _of_prompt(*jax.tree.map(lambda x: x[p : p + 1], (rollouts, coefficients)))  # noqa: B023
        rows.append(np.concatenate([np.asarray(g, np.float64).ravel() for g in jax.tree.leaves(grads)]))
    return np.stack(rows)


def reward(rollouts):
    return (rollouts.targets.sum(-1) % 2).astype(np.float32)


def quantities(rollouts, names):
    return {"rewards": reward(rollouts)} if "rewards" in names else {}


def test_cosines_norm_ratios_and_variances_are_those_of_gradients_taken_one_by_one():
    names = ("garl@0.5", "paft@1", "grpo@0")
    found = GradientComparison(config(*names), ARCH, SAMPLING)(PARAMS, BATCH, STEP, quantities)

    gold, sampled = rolled(TRAIN), rolled(TRAIN, A)
    keys = example_keys(0, ESTIMATOR, STEP, np.arange(P))
    gradients = {
        "garl@0.5": per_prompt(gold, objectives.garl(gold.log_w, 0.5, normalize=False)),
        "paft@1": per_prompt(gold, objectives.paft(keys, gold.log_w, 1.0, normalize=False)),
        "grpo@0": per_prompt(sampled, objectives.grpo(reward(sampled))),
    }
    chunks = [rolled(REFERENCE), rolled(REFERENCE + 1)]
    log_w = np.concatenate([chunk.log_w for chunk in chunks], axis=1)
    references = {}
    for q in (0.5, 1.0, 0.0):
        whole = objectives.garl(log_w, q, baseline="none", normalize=False)
        halves = [jax.tree.map(lambda x: x[:, k * M : (k + 1) * M], whole) for k in range(2)]  # noqa: B023
        references[q] = sum(per_prompt(*pair) for pair in zip(chunks, halves, strict=True)).mean(0)

    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    for name, rows in gradients.items():
        mean, reference = rows.mean(0), references[float(name.partition("@")[2])]
        variance = rows.var(axis=0, ddof=1).sum()
        signal = mean @ mean - variance / P
        expected = {
            "cosine": cosine(mean, reference),
            "norm_ratio": np.sqrt((mean @ mean) / (reference @ reference)),
            "noise_scale": variance / signal if signal > 0 else None,
        }
        for measure, value in expected.items():
            if value is None:
                assert found[f"shadow/{name}/{measure}"] is None
            else:
                np.testing.assert_allclose(found[f"shadow/{name}/{measure}"], value, rtol=2e-4, err_msg=name + measure)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            expected = cosine(gradients[a].mean(0), gradients[b].mean(0))
            np.testing.assert_allclose(found[f"shadow/{a}/cosine/{b}"], expected, atol=1e-4)


def test_moments_compare_by_hand():
    def of(x: float, y: float, square: float, scale: float) -> Moments:
        return Moments({"x": np.array([x, y], np.float32)}, np.float32(square), np.float32(scale))

    found = {"garl@1": of(3, 4, 50, 2), "paft@1": of(0, 0, 0, 0), "em@1": of(3, 4, 90, 2)}
    references = dict.fromkeys(found, of(0, 5, 25, 1))
    measured = compare(found, references, prompts=3)
    assert measured["shadow/garl@1/cosine"] == pytest.approx(4 / 5)
    assert measured["shadow/garl@1/norm_ratio"] == pytest.approx(2 * 5 / 5)
    variance = (50 - 25) * 3 / 2
    assert measured["shadow/garl@1/noise_scale"] == pytest.approx(variance / (25 - variance / 3))
    assert measured["shadow/em@1/noise_scale"] is None  # (90 − 25)/2 is above 25: it may all be noise
    assert measured["shadow/paft@1/cosine"] is measured["shadow/paft@1/noise_scale"] is None
    assert measured["shadow/garl@1/cosine/paft@1"] is None
    assert compare(found, references, prompts=1)["shadow/garl@1/noise_scale"] is None


def test_a_batch_with_one_gradient_tells_no_noise_scale():
    """‖ḡ‖² is then exactly tr Σ/P, and what is left of it is rounding."""
    for seed in range(20):
        gradient = np.random.default_rng(seed).normal(size=5000).astype(np.float32)
        alone = Moments({"x": jnp.array(gradient / 4)}, jnp.linalg.norm(gradient) ** 2 / 4, np.float32(1))
        assert compare({"a@0": alone}, {"a@0": alone}, prompts=4)["shadow/a@0/noise_scale"] is None


def test_the_noise_scale_of_many_batches_is_the_one_they_were_drawn_with():
    """Gradients N(μ, I) in 50 dimensions with ‖μ‖² = 2, so tr Σ/‖μ‖² = 25; tr Σ/‖ḡ‖² would be 14 at P = 32."""
    rng = np.random.default_rng(0)
    mean = np.full(50, 0.2)
    scales = []
    for _ in range(400):
        rows = rng.normal(mean, 1.0, (32, 50))
        of_batch = Moments({"x": rows.mean(0)}, (rows**2).sum(1).mean(), np.float64(1))
        scales.append(compare({"garl@1": of_batch}, {"garl@1": of_batch}, prompts=32)["shadow/garl@1/noise_scale"])
    assert np.median(scales) == pytest.approx(25, rel=0.1)


def test_one_estimator_under_two_names_is_parallel_to_itself():
    found = GradientComparison(config("garl@0", "rb_rloo@0"), ARCH, SAMPLING)(PARAMS, BATCH, STEP, quantities)
    assert found["shadow/garl@0/cosine/rb_rloo@0"] == pytest.approx(1.0, abs=1e-5)
    for measure in ("cosine", "norm_ratio", "noise_scale"):
        assert found[f"shadow/garl@0/{measure}"] == pytest.approx(found[f"shadow/rb_rloo@0/{measure}"], rel=1e-5)


def test_tiny_gradients_keep_their_direction_and_their_size():
    gold = rolled(TRAIN)
    whole = objectives.garl(gold.log_w, 1.0)
    large, tiny = (
        moments(PARAMS, WeighedRollouts(gold, jax.tree.map(lambda x: x * s, whole)), arch=ARCH)  # noqa: B023
        for s in (1.0, 2.0**-100)
    )
    np.testing.assert_allclose(tiny.scale, large.scale * 2.0**-100, rtol=1e-6)
    np.testing.assert_allclose(tiny.square, large.square, rtol=1e-6)
    assert float(large.square) > 0


def test_a_run_that_is_looked_at_trains_as_one_that_is_not(tmp_path):
    changes = {"shadow__every": 2, "shadow__estimators": ("garl@0.75",), "shadow__reference_rollouts": 8}
    watched = train(small(**changes), tmp_path / "watched")
    alone = train(small(), tmp_path / "alone")
    shadows = [{name for name in record if name.startswith("shadow/")} for record in watched]
    assert [r["step"] for r, names in zip(watched, shadows, strict=True) if names] == [0, 2]
    rest = [{k: v for k, v in r.items() if k not in names} for r, names in zip(watched, shadows, strict=True)]
    assert without_clocks(rest) == without_clocks(alone)


def test_a_name_that_is_no_shadow_is_refused():
    for wrong in ("garl", "garlic@0", "garl@2", "garl@x", "sft@1"):
        with pytest.raises(UserError, match=r"config.shadow.estimators: .* is not NAME@Q with Q in \[0, 1\]"):
            GradientComparison(config(wrong), ARCH, SAMPLING)
    with pytest.raises(UserError, match=r"reference_rollouts=6 is not a multiple of config.rollouts.num_rollouts=4"):
        GradientComparison(config("garl@0", reference=6), ARCH, SAMPLING)
