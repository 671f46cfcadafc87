"""Estimators by name, from a config's section; what is refused, and how; adding one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.groups import group_of
from tsallis_rl import objectives
from tsallis_rl.objectives import ESTIMATORS, Coefficients, Estimator, check, weigh
from tsallis_rl.runs.errors import UserError

SECTION = {"name": "garl", "q": 0.75, "normalize": True}
LOG_W = np.array([[-1.0, -2.0, -0.5, -9.0], [-3.0, -np.inf, -4.0, -3.0]], np.float32)
REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]], np.float32)


def keys() -> jax.Array:
    return jax.random.split(jax.random.key(0), 2)


def test_every_estimator_runs_from_its_name_on_the_same_rollouts():
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def by_name_and_by_hand(key: jax.Array, log_w: jax.Array, rewards: jax.Array) -> tuple[dict, dict]:
        group = group_of(log_w, rewards, key=key)
        weighed = {name: weigh(SECTION | {"name": name}, group, jnp.int32(3)) for name in ESTIMATORS}
        given = group | {"q": 0.75}
        return weighed, {name: row.function(**{n: given[n] for n in row.needs}) for name, row in ESTIMATORS.items()}

    weighed, by_hand = by_name_and_by_hand(keys(), LOG_W, REWARDS)
    for name, row in ESTIMATORS.items():
        check(SECTION | {"name": name}, 4)
        got, measured = weighed[name]
        np.testing.assert_allclose(got, by_hand[name], rtol=1e-6, atol=1e-8, err_msg=name)
        has_q = row.q is not None or "q" in row.needs
        assert measured.get("q") == ((0.75 if row.q is None else row.q) if has_q else None), name
        assert row.source
        assert ("rewards" in row.needs) == (row.answer == "sampled")
        assert row.rationale or not np.any(got.score)


def test_sft_reads_the_answer_once_in_total():
    score, path = objectives.sft(LOG_W)
    assert not np.any(score)
    np.testing.assert_allclose(path.sum(-1), 1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "gral"}, "'gral' is not known: choose from garl, paft"),
        ({"q": 1.5}, "q=1.5 is outside [0, 1]"),
        ({"schedule": "sine"}, "schedule='sine': choose from constant, step, linear, cosine"),
        ({"baseline": "mean"}, "baseline='mean': choose from loo, none"),
        ({"correction": "bootstrap"}, "correction='bootstrap': choose from none, jackknife"),
        ({"name": "paft", "resampling": "stratified"}, "resampling='stratified': choose from categorical, systematic"),
        ({"name": "paft", "num_draws": -2}, "num_draws=-2"),
        ({"name": "pkpo", "k": 33}, "k=33: choose from 1 to the 32 rollouts a prompt, or raise num_rollouts"),
        ({"name": "pkpo", "baseline": "mean"}, "baseline='mean': choose from loo, none"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_accepted(change, said):
    with pytest.raises(UserError) as refusal:
        check(SECTION | change, 32)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"name": "rb_rloo"},
        {"name": "rloo"},
        {"name": "log_likelihood"},
        {"name": "jepo"},
        {"name": "latro"},
        {"name": "garl_per_token"},
        {"name": "hard_continuum"},
        *({"name": name} for name in ("grpo", "dr_grpo", "maxrl", "curverl", "rlpr", "nover")),
        {"baseline": "none", "correction": "jackknife"},
    ],
)
def test_one_rollout_has_no_others_to_be_compared_with(change):
    with pytest.raises(UserError, match="at least 2 rollouts a prompt, found 1"):
        check(SECTION | change, 1)
    check(SECTION | {"baseline": "none"}, 1)


def test_integer_and_boolean_rewards_are_the_numbers_they_say():
    for reward in (objectives.grpo, objectives.rloo, objectives.raft):
        for dtype in (bool, np.uint8, np.int32):
            np.testing.assert_array_equal(reward(REWARDS.astype(dtype)), reward(REWARDS))


# Unchecked, each of these returns coefficients: of more groups than there are, or of rewards taken for log-weights.
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: objectives.garl(LOG_W, np.full((2, 1), 0.5)), r"q has shape \(2, 1\).*broadcastable to \(2,\)"),
        (lambda: objectives.garl(LOG_W[0], np.full(3, 0.5)), r"q has shape \(3,\).*broadcastable to \(\)"),
        (lambda: objectives.paft(keys(), LOG_W[0], 0.5), r"keys have shape \(2,\): expected one key, or one per group"),
        (lambda: objectives.garl(REWARDS.astype(int), 0.5), r"dtype int.*: expected floats \[..., M\]"),
        (lambda: objectives.sft(REWARDS > 0), r"dtype bool: expected floats"),
        (
            lambda: objectives.coefficients(ESTIMATORS["grpo"], {}, {"log_w": LOG_W, "rewards": REWARDS[:, 0]}),
            r"rewards have shape \(2,\): expected that of log_w, \(2, 4\)",
        ),
        (
            lambda: objectives.coefficients(ESTIMATORS["grpo"], {}, {"log_w": LOG_W, "key": keys()}),
            "estimator grpo needs rewards: the group has log_w, key",
        ),
        (
            lambda: weigh(SECTION, {"key": keys()[0], "log_w": jnp.asarray(LOG_W[0])}, jnp.int32(0)),
            r"log_w and keys have shapes \(4,\) and \(\): expected \[P, M\] and \[P\]",
        ),
        (
            lambda: weigh(SECTION, {"key": keys()[:1], "log_w": jnp.asarray(LOG_W)}, jnp.int32(0)),
            r"shapes \(2, 4\) and \(1,\)",
        ),
    ],
)
def test_arrays_that_would_be_misread_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_an_estimator_is_a_function_and_a_row(monkeypatch):
    """The README's example."""

    def tempered(log_w: jax.Array, *, temperature: float = 1.0) -> Coefficients:
        """Weights w^(1/temperature), normalised over the group."""
        share = jax.lax.stop_gradient(jax.nn.softmax(log_w / temperature, axis=-1))
        return Coefficients(score=share, path=share)

    row = Estimator("tempered", tempered, answer="gold", source="README")
    monkeypatch.setitem(ESTIMATORS, row.name, row)

    settings = {"name": "tempered", "q": 1.0, "temperature": 2.0}
    check(settings, num_rollouts=4)
    got, _ = weigh(settings, {"key": keys(), "log_w": jnp.asarray(LOG_W)}, jnp.int32(0))
    np.testing.assert_allclose(got.path, jax.nn.softmax(LOG_W / 2.0, axis=-1), rtol=1e-6)
    assert row.needs == ("log_w",)
    assert row.options == ("temperature",)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "maxrl", "raft"])
def test_rewards_without_an_axis_of_rollouts_are_refused(name):
    with pytest.raises(ValueError, match=r"rewards have shape \(\) .* expected numbers \[\.\.\., M\]"):
        getattr(objectives, name)(1.0)
