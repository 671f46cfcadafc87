"""The commitment over steps and over examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsallis_rl.objectives import ESTIMATORS, SCHEDULES, coefficients, scheduled_q

LOG_P = jnp.array([-40.0, -5.0, 0.0, -jnp.inf])


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", {0: 0.8, 50: 0.8, 1000: 0.8}),
        ("step", {0: 0.8, 99: 0.8, 100: 0.2, 1000: 0.2}),
        ("linear", {0: 0.8, 50: 0.5, 100: 0.2, 1000: 0.2}),
        ("cosine", {0: 0.8, 25: 0.5 + 0.3 * np.cos(np.pi / 4), 50: 0.5, 100: 0.2, 1000: 0.2}),
    ],
)
def test_schedules_take_these_values(schedule, at):
    for step, want in at.items():
        got = scheduled_q(schedule, step, LOG_P, q=0.8, q_end=0.2, schedule_steps=100)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        assert got.shape == LOG_P.shape


def test_per_example_commits_fully_to_the_unlikely_and_not_to_the_mastered():
    got = scheduled_q("per_example", 7, LOG_P, q=1.0, q_end=0.0, schedule_nats=20.0)
    np.testing.assert_allclose(got, [1.0, 0.25, 0.0, 1.0], rtol=1e-6)


def test_one_step_schedule_from_1_to_0_is_fine_tuning_then_reinforcement():
    log_w = jnp.array([[-1.0, -2.0]])
    run = jax.jit(lambda step: scheduled_q("step", step, jnp.zeros(1), q=1.0, q_end=0.0, schedule_steps=10))
    early, late = (
        coefficients(ESTIMATORS["garl"], {"baseline": "none"}, {"log_w": log_w, "q": run(step)}).path
        for step in (9, 10)
    )
    np.testing.assert_allclose(early * 2, jax.nn.softmax(log_w), rtol=1e-6)
    np.testing.assert_allclose(late, jnp.exp(log_w) / 2, rtol=1e-6)


def test_one_compilation_serves_every_schedule_and_every_q():
    log_w = jnp.array([[-1.0, -2.0, -3.0], [-4.0, -2.0, -9.0]])
    traces = []

    @jax.jit
    def compiled(q: jax.Array) -> jax.Array:
        traces.append(q)
        return coefficients(ESTIMATORS["garl"], {}, {"log_w": log_w, "q": q}).score

    for schedule in SCHEDULES:
        for step in (0, 3):
            for q in (1.0, 0.7):
                q_now = scheduled_q(schedule, step, jnp.array([-4.0, -2.0]), q=q, q_end=0.1, schedule_steps=9)
                assert np.isfinite(compiled(q_now)).all()
    assert len(traces) == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_numbers_of_a_schedule_are_traced(schedule):
    traces = []

    @jax.jit
    def compiled(step: int, q: float, q_end: float, steps: int, nats: float) -> jax.Array:
        traces.append(step)
        return scheduled_q(schedule, step, LOG_P, q=q, q_end=q_end, schedule_steps=steps, schedule_nats=nats)

    for numbers in ((0, 1.0, 0.0, 10, 20.0), (5, 0.75, 0.25, 100, 7.0)):
        np.testing.assert_allclose(
            compiled(*numbers),
            scheduled_q(
                schedule, numbers[0], LOG_P,
                q=numbers[1], q_end=numbers[2], schedule_steps=numbers[3], schedule_nats=numbers[4],
            ),
            rtol=1e-6,
        )  # fmt: skip
    assert len(traces) == 1
