"""The few widths to which prompts are padded."""

import itertools

import numpy as np
import pytest

from tests.support.paths import OFFICIAL
from tests.support.prompt_lengths import TASKS, official_lengths
from tsallis_rl.tasks import prompt_widths
from tsallis_rl.tasks.encoding import EncodedSplit
from tsallis_rl.tasks.prompt_widths import fit_widths, share_widths
from tsallis_rl.tasks.token_rows import TokenRows

EVEN = np.arange(100, 4000, 7)


def padded(lengths: np.ndarray, widths: tuple[int, ...]) -> int:
    """Counts the tokens of prompts that are padded to the next width, by themselves."""
    return np.asarray(widths)[np.searchsorted(widths, lengths)].sum()


def test_no_other_widths_as_few_pad_less(monkeypatch):
    monkeypatch.setattr(prompt_widths, "PADDING_SHARE", 0.0)
    monkeypatch.setattr(prompt_widths, "PADDING_TOKENS", 0)
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths, most = rng.integers(1, rng.integers(2, 640), rng.integers(1, 20)), int(rng.integers(1, 5))
        widest = int(rng.integers(lengths.max(), 700))
        found = fit_widths(lengths, most, widest)
        *below, last = np.unique(np.minimum(-(-lengths // 64) * 64, widest))
        sets = itertools.combinations(below, min(most - 1, len(below)))
        assert padded(lengths, found) == min(padded(lengths, (*chosen, last)) for chosen in sets)
        assert len(found) <= most


def test_widths_are_multiples_of_64_and_no_wider_than_the_longest_prompt_needs():
    assert fit_widths(EVEN, 1, 4096) == (4032,)
    assert fit_widths(EVEN, 1, 4000) == (4000,)
    widths = fit_widths(EVEN, 6, 4096)
    assert len(widths) == 6 and widths[-1] == 4032 and not any(width % 64 for width in widths)
    assert fit_widths(EVEN, 6, 9999, longest=5000)[-1] == 5056
    assert len(fit_widths(EVEN, 6, 9999, longest=5000)) == 6


def test_another_width_is_taken_only_where_it_spares_much():
    assert fit_widths(np.array([9, 60, 128]), 6, 4096) == (128,)
    assert fit_widths(np.array([29, 31]), 6, 31) == (31,)
    assert fit_widths(np.full(9, 4000), 6, 4096) == (4032,)
    assert fit_widths(np.array([300, 300, 2000, 2000]), 6, 4096) == (320, 2048)


@pytest.mark.parametrize(("train", "widths"), [((), (128,)), ((80, 100), (128,)), ((9,), (64, 128))])
def test_splits_may_be_empty_or_have_one_example(train, widths):
    def split(lengths: tuple[int, ...]) -> EncodedSplit:
        rows = TokenRows.of([0] * length for length in lengths)
        return EncodedSplit(rows, rows, [None] * len(lengths), [None] * len(lengths), {}, 4096, 4)

    found = share_widths({"train": split(train), "validation": split(()), "test": split((100,))}, 8, 4096)
    assert {of.widths for of in found.values()} == {widths} and found["test"].max_prompt == widths[-1]


@pytest.mark.skipif(not OFFICIAL.exists(), reason="no excerpts of the official files in ../shared/data")
@pytest.mark.parametrize("task", TASKS)
def test_prompts_of_the_papers_tasks_need_at_most_eight_widths(task):
    lengths = official_lengths(task)
    widths = fit_widths(lengths, 8, 4096)
    assert 1 - lengths.sum() / padded(lengths, widths) < 0.12 and len(widths) <= 8
