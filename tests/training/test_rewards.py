"""The reward of a sampled answer: the grade that the config names, for an answer with its end."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.runs import small
from tsallis_rl.objectives import Coefficients
from tsallis_rl.sampler.record import SAMPLED, Rollouts
from tsallis_rl.sampler.transcripts import answer_ends, truncated_answers
from tsallis_rl.tasks import hops
from tsallis_rl.training.control import initial_control
from tsallis_rl.training.setup import Setup, initial_state, prepare
from tsallis_rl.training.step import TrainingStep
from tsallis_rl.training.step_figures import signal_figures

TOKENIZER = hops.tokenizer()
END, PAD = TOKENIZER.stop_ids[0], TOKENIZER.pad
WIDTH = 6


def rollouts(*answers: list[int]) -> Rollouts:
    """One group of rollouts whose rationale is one token, with these answers [M]; an empty one never closed."""
    m = len(answers)
    targets = np.full((1, m, WIDTH), PAD, np.int32)
    for i, answer in enumerate(answers):
        targets[0, i, 1 : 1 + len(answer)] = answer
    ones = np.ones((1, m), np.int32)
    return Rollouts(
        prompt=np.ones((1, 3), np.int32), prompt_length=np.array([3], np.int32), inputs=targets, targets=targets,
        sampled=targets > 0, log_prob=np.zeros(targets.shape, np.float32), rationale_length=ones,
        closing=np.full((1, m), SAMPLED, np.int8), answer_start=ones,
        answer_length=np.array([[len(answer) for answer in answers]], np.int32), log_w=np.zeros((1, m), np.float32),
    )  # fmt: skip


def setup_of(**changes) -> Setup:
    return prepare(small("estimator=grpo,start=warm", rollouts__max_rationale=6, **changes))


def answers_to(setup: Setup, example: int) -> Rollouts:
    """The gold answer whole, cut off, padded, with text behind its end of sequence's place, another, and none."""
    (gold,) = TOKENIZER.encode(setup.splits["train"].examples[example].answer)
    other = TOKENIZER.encode("=")[0]
    return rollouts([gold, END], [gold], [gold, PAD, PAD], [gold, PAD, END], [other, END], [])


@pytest.mark.parametrize(("needs_end", "earned"), [(True, [1, 0, 0, 0, 0, 0]), (False, [1, 1, 1, 1, 0, 0])])
def test_an_answer_without_its_end_earns_its_reward_only_where_the_end_is_not_needed(needs_end, earned):
    setup = setup_of(rollouts__answer_needs_end=needs_end)
    made = answers_to(setup, 3)
    rewards, logged = TrainingStep(setup, {}).grade(made._replace(answer_length=jnp.asarray(made.answer_length)), [3])
    assert rewards.tolist() == [earned]
    assert {name: pytest.approx(float(value)) for name, value in logged.items()} == {
        "reward": sum(earned) / 6, "grader_errors": 0, "answer_truncated": 2 / 5,
    }  # fmt: skip


def test_groups_without_signal_are_counted_by_coefficients_and_by_rewards_apart():
    score = np.array([[0, 0], [0, 0], [1, -1], [0, np.nan]], np.float32)
    path = np.array([[0, 0], [0.5, 0], [0, 0], [0, 0]], np.float32)
    rewards = np.array([[1, 1], [0.3, 0.3], [0, 1], [0, 1]], np.float32)
    assert signal_figures(Coefficients(score, path), rewards) == {"idle_groups": 1, "equal_reward_groups": 2}
    assert signal_figures(Coefficients(score, path), None) == {"idle_groups": 1}


def test_ends_and_cuts_of_answers():
    made = rollouts([20, END], [20, 21], [PAD, END], [END], [20, PAD, END], [])
    assert answer_ends(made, TOKENIZER, (END,)).tolist() == [[True, False, False, True, False, False]]
    assert truncated_answers(made, (END,)).tolist() == [[False, True, False, False, False, False]]


def test_a_grade_that_fails_earns_nothing_and_is_counted(tmp_path, monkeypatch, capfd):
    (tmp_path / "own_reward.py").write_text("def reward(prediction, example):\n    return 2 / len(prediction) - 0.5")
    monkeypatch.syspath_prepend(tmp_path)
    setup = setup_of(task__reward="own_reward.reward")
    gold = TOKENIZER.encode("ann")[0]
    made = rollouts([gold, END], [END], [END], [])
    rewards, logged = TrainingStep(setup, {}).grade(made._replace(answer_length=jnp.asarray(made.answer_length)), [0])
    assert rewards.tolist() == [[pytest.approx(2 / 3 - 0.5), 0, 0, 0]] and float(logged["grader_errors"]) == 2
    assert capfd.readouterr().err.count("ZeroDivisionError") == 1


def test_a_transcript_shows_the_rewards_that_weighed_whatever_the_grader_says_the_next_time(tmp_path, monkeypatch):
    (tmp_path / "own_turns.py").write_text(
        "calls = []\ndef reward(prediction, example):\n    calls.append(0)\n    return len(calls) / 1000"
    )
    monkeypatch.syspath_prepend(tmp_path)
    setup = setup_of(task__reward="own_turns.reward", rollouts__answer_needs_end=False)
    state, control = initial_state(setup), initial_control(setup.config)
    one_step = TrainingStep(setup, state)
    weighed = one_step.sample_and_weigh(state, 1, np.arange(4), control)
    rows = one_step.transcript(weighed, 1, np.arange(2), control)
    assert [row["reward"] for row in rows] == pytest.approx(np.asarray(weighed.group["rewards"])[:2].ravel().tolist())
    assert all(row["estimator"] == setup.config.estimator.name and "q" not in row for row in rows)


def test_grades_that_fail_are_counted_where_rewards_are_only_compared(tmp_path, monkeypatch):
    (tmp_path / "own_failing.py").write_text("def reward(prediction, example):\n    raise ValueError(prediction)")
    monkeypatch.syspath_prepend(tmp_path)
    shadow = {"shadow__every": 1, "shadow__estimators": ("grpo@0",), "shadow__reference_rollouts": 4}
    changes = {"rollouts__max_rationale": 3, "train__prompts": 2, "task__reward": "own_failing.reward", **shadow}
    setup = prepare(small("estimator=garl,start=warm", **changes))
    state = initial_state(setup)
    found = TrainingStep(setup, state).compare(state, 0)
    assert 1 <= found["shadow/grader_errors"] <= 8 and found["shadow/grpo@0/cosine"] is None
