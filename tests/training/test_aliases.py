"""Sums over several right answers, compared with the learner's log-probabilities of each one after the rationales."""

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from tests.support.backends import close
from tests.support.reference import learner_log_probs
from tests.support.rollouts import sample
from tests.support.runs import small
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.encoding import encode_aliases
from tsallis_rl.training.aliases import draw
from tsallis_rl.training.checks import check
from tsallis_rl.training.control import initial_control
from tsallis_rl.training.setup import initial_state, prepare
from tsallis_rl.training.step import TrainingStep

log_probs = jax.jit(learner_log_probs, static_argnums=2)
CHANGES = {"base__steps": 0, "rollouts__max_rationale": 6, "task__max_answer": 4}


def replaced(rollouts, ids: list[list[int]]):
    """Rollouts [P, M, T] with the answer ids[p] behind every rationale that closed."""
    inputs, targets, length = (np.array(x) for x in (rollouts.inputs, rollouts.targets, rollouts.answer_length))
    for p, m in np.argwhere(length > 0):
        start, answer = rollouts.answer_start[p, m], ids[p]
        targets[p, m, start : start + len(answer)] = answer
        inputs[p, m, start + 1 : start + len(answer)] = answer[:-1]
        length[p, m] = len(answer)
    return rollouts._replace(inputs=inputs, targets=targets, answer_length=length)


def test_a_step_sums_over_aliases_and_each_rollout_holds_one_of_the_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="aliases=True: no training example of task hops has an alias that is an"):
        prepare(small("estimator=garl,start=warm", rollouts__aliases=True, **CHANGES))
    setup = prepare(small("estimator=garl,start=warm", **CHANGES))
    setup.config.rollouts.aliases = True
    train, state, control = setup.splits["train"], initial_state(setup), initial_control(setup.config)
    words = setup.tokenizer.decode(range(8, 14)).split()
    for i, head in enumerate(train.heads):
        several = (words[0], head.answer, " ".join(words[1:3]), " ".join(words * 2), words[0])
        train.heads[i] = head._replace(aliases=several if i % 2 else ())
    step = TrainingStep(setup, state)
    indices = step.batches(0)[0]
    aliases = [encode_aliases(train, i, setup.tokenizer, setup.markers) for i in indices]
    assert [list(map(len, found)) for found in aliases] == [[2, 3] if i % 2 else [] for i in indices]

    plain = jax.device_get(step.sample(state.params, 0, np.arange(4))[0])
    answers = [[[*train.answers.row(i).tolist()], *found] for i, found in zip(indices, aliases, strict=True)]
    scores = []
    for k in range(3):
        other = replaced(plain, [found[k] if k < len(found) else found[0] for found in answers])
        log_w = np.where(other.path_mask, log_probs(state.params, other, setup.arch), 0.0).sum(-1)
        there = np.array([[k < len(found)] for found in answers]) & (plain.answer_length > 0)
        scores.append(np.where(there, log_w, -np.inf))
    weighed = jax.device_get(step.sample_and_weigh(state, 0, np.arange(4), control))
    np.testing.assert_allclose(weighed.rollouts.log_w, logsumexp(scores, axis=0), atol=close(1e-4))
    held = weighed.rollouts
    kinds = set()
    for p, m in np.argwhere(held.answer_length > 0):
        start = held.answer_start[p, m]
        kinds.add(answers[p].index(held.targets[p, m, start : start + held.answer_length[p, m]].tolist()))
    assert len(kinds) > 1
    own = np.where(held.path_mask | held.score_mask, log_probs(state.params, held, setup.arch), 0.0)
    np.testing.assert_allclose(np.where(own != 0, held.log_prob, 0.0), own, atol=close(1e-4))


def test_every_answer_is_drawn_with_its_share_of_the_sum():
    rollouts = sample(num_rollouts=4)
    closed = np.asarray(rollouts.answer_length) > 0
    start = rollouts._replace(log_w=np.where(closed, np.log(0.05), -np.inf), answer_length=1 * closed)
    counts, n = np.zeros(3), 0
    one = jax.jit(jax.vmap(lambda key: take_two(start, key)))
    held = np.asarray(one(jax.random.split(jax.random.key(0), 500)))[:, closed]
    counts, n = np.array([(held == k).sum() for k in (1, 2, 3)]), held.size
    shares = np.array([0.05, 0.03, 0.02]) / 0.1
    assert (np.abs(counts / n - shares) < 4 * np.sqrt(shares * (1 - shares) / n)).all()


def take_two(start, key):
    found = start
    for length, w in ((2, 0.03), (3, 0.02)):
        other = start._replace(answer_length=length * (start.answer_length > 0))
        log_prob = np.log(w) / length * np.ones(start.targets.shape)
        found = draw(found, other, log_prob, jax.random.split(jax.random.fold_in(key, length), len(start.prompt)))
    return found.answer_length


@pytest.mark.parametrize(
    ("estimator", "changes", "said"),
    [
        ("grpo", {}, "estimator grpo reads the rewards of sampled answers; leave it at False"),
        ("nover", {}, "estimator nover reads gold_length, of the gold answer alone; leave it at False"),
        (
            "garl",
            {"shadow__every": 1},
            "the gradient comparison .* scores the gold answer alone; leave one of the two off",
        ),
    ],
)
def test_a_sum_over_aliases_is_refused_where_it_would_not_be_read(estimator, changes, said):
    with pytest.raises(UserError, match=f"config.rollouts.aliases=True: .*{said}"):
        check(small(f"estimator={estimator},start=warm", rollouts__aliases=True, **CHANGES, **changes), 1)
