"""Which examples a step trains on."""

import numpy as np
import pytest

from tests.support.paths import OFFICIAL
from tests.support.prompt_lengths import TASKS, official_lengths
from tsallis_rl.config.schema import FIELDS
from tsallis_rl.tasks.prompt_widths import fit_widths
from tsallis_rl.training.data_order import DataOrder, Lengths

UNEVEN = np.random.default_rng(0).integers(20, 4000, 103)


def batches(parts, batch: int, seed: int, steps: int, lengths: Lengths | None = None) -> np.ndarray:
    return np.array([DataOrder(parts, batch, seed, lengths).batch(step) for step in range(steps)])


def test_batches_go_through_the_data_once_an_epoch_in_an_order_of_seed_and_epoch():
    seen = batches([""] * 10, 4, seed=3, steps=5).ravel()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert (seen[:10] != seen[10:]).any()
    np.testing.assert_array_equal(DataOrder([""] * 10, 4, seed=3).batch(2), seen[8:12])
    assert (batches([""] * 10, 4, seed=4, steps=5).ravel() != seen).any()
    assert len(DataOrder([""] * 3, 8, seed=0).batch(0)) == 8


def test_every_batch_holds_the_parts_in_the_proportions_of_the_split():
    halves = ["cold", "warm"] * 20
    for step in range(10):
        assert sorted(i % 2 for i in DataOrder(halves, 8, seed=0).batch(step)) == [0] * 4 + [1] * 4
    tenth = ["rare"] * 3 + [""] * 27
    counts = [(DataOrder(tenth, 10, seed=1).batch(step) < 3).sum() for step in range(3)]
    assert counts == [1, 1, 1]


@pytest.mark.parametrize("batch", [1, 8, 16, 103, 200])
@pytest.mark.parametrize("window", [1, 3, 64])
def test_batches_of_like_lengths_still_go_through_the_data_once_an_epoch(batch, window):
    steps = 309 // batch + 1
    seen = batches([""] * 103, batch, seed=0, steps=steps, lengths=Lengths(UNEVEN, window)).ravel()
    for epoch in range(len(seen) // 103):
        assert sorted(seen[103 * epoch : 103 * (epoch + 1)]) == list(range(103))


def test_batches_of_like_lengths_come_in_an_order_of_seed_and_epoch_and_hold_neighbours():
    lengths = Lengths(UNEVEN, 64)
    found = batches([""] * 103, 8, seed=0, steps=26, lengths=lengths)
    spread = [np.ptp(UNEVEN[indices]) for indices in found]
    assert max(spread) < 1000  # the two that straddle epochs, behind steps 12 and 25, included
    assert np.mean([np.ptp(UNEVEN[indices]) for indices in batches([""] * 103, 8, 0, 26)]) > 2500
    firsts = [UNEVEN[indices[0]] for indices in found]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)
    assert (UNEVEN[found[0]] != np.sort(UNEVEN[found[0]])).any()  # within a batch, the order is drawn as well
    assert {tuple(sorted(x)) for x in found[:12]} != {tuple(sorted(x)) for x in found[13:25]}
    assert (batches([""] * 103, 8, seed=1, steps=26, lengths=lengths) != found).any()


def test_parts_are_mixed_the_same_whatever_their_lengths():
    parts = ["cold", "warm", "warm"] * 34
    lengths = np.where(np.array(parts) == "cold", 100, 900) + np.random.default_rng(0).integers(0, 90, 102)
    for step in range(20):
        plain, sorted_by_length = (DataOrder(parts, 6, 0, given).batch(step) for given in (None, Lengths(lengths, 8)))
        assert [parts[i] for i in plain] == [parts[i] for i in sorted_by_length]


@pytest.mark.skipif(not OFFICIAL.exists(), reason="no excerpts of the official files in ../shared/data")
@pytest.mark.parametrize("batch", [8, 16])
@pytest.mark.parametrize("task", TASKS)
def test_less_than_15_percent_is_padding_where_prompts_are_as_long_as_the_papers_tasks_have_them(task, batch):
    lengths = official_lengths(task)
    widths = np.array(fit_widths(lengths, FIELDS["rollouts.prompt_widths"].default, 4096))

    def padding(window: int, steps: int) -> float:
        order = Lengths(lengths, window) if window else None
        found = [lengths[DataOrder([""] * len(lengths), batch, 0, order).batch(step)] for step in range(steps)]
        return float(np.mean([1 - x.mean() / widths[np.searchsorted(widths, x.max())] for x in found]))

    assert padding(FIELDS["train.length_window"].default, len(lengths) // batch) < 0.14
    assert padding(0, 50) > 0.25
