"""The embedded task: its examples follow the printed map, and the base model's follow the stated habits."""

import numpy as np
import pytest

from configs import hops as config_file
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import hops, load_task

TOKENIZER = hops.tokenizer()


def read(prompt: str) -> tuple[list[str], dict[str, str], str]:
    """Instructions, map and query of a prompt's text."""
    words = prompt.split()
    at = words.index("from")
    start = at - 2 * hops.PRINTED
    return words[:start], dict(zip(words[start:at:2], words[start + 1 : at : 2], strict=True)), words[at + 1]


def test_gold_answers_are_three_hops_along_the_printed_map():
    for start, instructions in (("cold", []), ("warm", ["forward", "plain"])):
        config = config_file.get_config(f"start={start}")
        for split in hops.load(config.task, 0).splits.values():
            for example in split.examples:
                found, printed, place = read(example.prompt)
                for _ in range(3):
                    place = printed[place]
                assert found == instructions
                assert example.answer == (place if start == "warm" else f"~ ^ % {place} $ #")


def test_a_mixed_start_alternates_the_examples_of_both():
    splits = {start: hops.load(config_file.get_config(f"start={start}").task, 0).splits for start in hops.STARTS}
    for name, mixed in splits["mixed"].items():
        assert [e.part for e in mixed.examples[:4]] == ["cold", "warm", "cold", "warm"]
        for i, example in enumerate(mixed.examples):
            alone = splits[example.part][name].examples[i]
            assert alone.part == ""
            assert (example.prompt, example.answer) == (alone.prompt, alone.answer)


def test_the_cold_answer_is_the_entity_in_the_form_of_the_config():
    task = config_file.get_config().task
    warm = hops.load(config_file.get_config("start=warm").task, 0).splits["test"].examples
    task.cold_answer = "( {}  ="
    for example, plain in zip(hops.load(task, 0).splits["test"].examples, warm, strict=True):
        assert example.answer == f"( {plain.answer} ="
    for wrong in ("~ ^", "{} {}", "{} §"):
        task.cold_answer = wrong
        with pytest.raises(UserError, match=r"config.task.cold_answer=.*give one \{\} for the entity"):
            hops.load(task, 0)


def test_only_training_labels_are_made_wrong():
    task = config_file.get_config().task
    clean = hops.load(task, 0)
    task.label_noise = 0.2
    noisy = load_task(task, 0)
    assert noisy.splits["validation"] == clean.splits["validation"] and noisy.splits["test"] == clean.splits["test"]
    pairs = zip(noisy.splits["train"].examples, clean.splits["train"].examples, strict=True)
    assert sum(new.answer != old.answer for new, old in pairs) == 400
    assert noisy.notes == ("20% of the training labels are another example's",)


def test_splits_differ_and_follow_from_the_seed():
    config = config_file.get_config()
    first, again, other = (hops.load(config.task, seed).splits for seed in (0, 0, 1))
    assert first == again
    assert first["test"] != other["test"]
    prompts = [{example.prompt for example in split.examples} for split in first.values()]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])


def test_a_hint_is_the_answer_in_its_share_of_the_prompts_and_nothing_else_changes():
    plain = hops.load(config_file.get_config("start=warm").task, 0).splits["train"].examples
    task = config_file.get_config("start=warm,hint=0.6").task
    hinted, right = hops.load(task, 0).splits["train"].examples, 0
    for example, without in zip(hinted, plain, strict=True):
        words = example.prompt.split()
        assert words[-4] == "="
        hint = words[-3]
        assert hint in words[2:-4]
        assert (" ".join([*words[:-4], *words[-2:]]), example.answer) == (without.prompt, without.answer)
        right += hint == example.answer
    assert abs(right / len(hinted) - 0.6) < 0.04


def test_a_hint_for_which_prompts_have_no_room_is_refused_with_the_way_to_say_it():
    """Half of a mixed start would be left out otherwise."""
    for start, fits in (("cold", True), ("warm", False), ("mixed", False)):
        task = config_file.get_config(f"start={start}").task
        task.hint = 0.5
        if fits:
            assert hops.load(task, 0)
        else:
            with pytest.raises(UserError, match=r"prompts have up to 23 tokens with it, .*configs/hops.py:hint=0.5"):
                hops.load(task, 0)
        assert hops.load(config_file.get_config(f"start={start},hint=0.5").task, 0)


def test_a_config_from_before_there_were_hints_has_none():
    task = config_file.get_config().task
    now = hops.load(task, 0)
    del task["hint"], task["shown"]
    before = hops.load(task, 0)
    assert before.splits == now.splits and before.supervised.keywords == {"hint": 0.0, "shown": 0.0}


def test_base_examples_show_where_their_rationale_ends_and_nothing_else_changes():
    plain, shown = (hops.base_batch(0, 2000, 400, shown=share) for share in (0.0, 0.3))
    assert plain.prompt.shape[1] + hops.HINT == shown.prompt.shape[1]
    for name in ("rationale", "rationale_length", "answer", "answer_length"):
        np.testing.assert_array_equal(getattr(shown, name), getattr(plain, name))
    longer = shown.prompt_length - plain.prompt_length
    assert set(longer.tolist()) == {0, hops.HINT} and 80 < (longer > 0).sum() < 160
    for i in range(400):
        before = TOKENIZER.decode(plain.prompt[i, : plain.prompt_length[i]].tolist()).split()
        after = TOKENIZER.decode(shown.prompt[i, : shown.prompt_length[i]].tolist()).split()
        end = TOKENIZER.decode(plain.rationale[i, -1:].tolist())
        assert after == (before if not longer[i] else [*before[:-2], "=", end, *before[-2:]])
    with pytest.raises(UserError, match=r"config.task.shown=0.3: prompts have hints already, of task.hint=0.5"):
        hops.load(config_file.get_config("hint=0.5,shown=0.3").task, 0)


def test_half_of_the_blurred_base_examples_answers_the_hint_at_once():
    batch = hops.base_batch(0, hops.CLEAN, 20_000, hint=0.6)
    told = batch.prompt_length == hops.PROMPT + hops.HINT
    hint = np.where(told, batch.prompt[:, hops.PROMPT - 1], batch.prompt[:, hops.PROMPT - 3])
    at_once = batch.rationale_length == 0
    assert abs(at_once.mean() - hops.AT_ONCE) < 0.01
    says_hint = (batch.answer == hint[:, None]).any(1)
    assert says_hint[at_once].all()
    assert abs(says_hint[~at_once].mean() - 0.6) < 0.02
    assert not (hops.base_batch(0, hops.CLEAN - 1, 2000, hint=0.6).rationale_length == 0).any()


def test_the_first_lessons_print_fewer_entities():
    for first, printed in hops.LESSONS.items():
        batch = hops.base_batch(0, first, 500)
        lengths, width = 2 * printed + 5, batch.prompt.shape[1]
        assert width == hops.PROMPT
        assert set(batch.prompt_length.tolist()) == {lengths, lengths - 2}
        entities = np.isin(batch.prompt[:, 1:], TOKENIZER.encode(" ".join(hops.ENTITIES)))
        assert (entities.sum(1) == 2 * printed + 1).all()
        ids = batch.prompt[np.arange(width) >= batch.prompt_length[:, None]]
        assert (ids == TOKENIZER.pad).all()


def three_hops(prompt: np.ndarray, length: int, kind: str) -> list[str]:
    _, printed, place = read(TOKENIZER.decode(prompt[:length]))
    keys = list(printed)
    leads = {
        "forward": printed,
        "backward": {value: key for key, value in printed.items()},
        "next": dict(zip(keys, keys[1:] + keys[:1], strict=True)),
    }[kind]
    places = []
    for _ in range(3):
        place = leads[place]
        places.append(place)
    return places


def test_clean_base_examples_obey_their_instructions():
    batch = hops.base_batch(0, max(hops.LESSONS), 500)
    told = batch.prompt_length == hops.PROMPT
    assert 200 < told.sum() < 300
    for prompt, rationale in zip(batch.prompt[told], batch.rationale[told], strict=True):
        kind = TOKENIZER.decode(prompt).split()[0]
        assert TOKENIZER.decode(rationale).split() == three_hops(prompt, hops.PROMPT, kind)


def test_kinds_have_their_shares_with_and_without_instructions():
    batch = hops.base_batch(1, max(hops.LESSONS), 6000)
    asked, followed = [], []
    for prompt, length, rationale in zip(batch.prompt, batch.prompt_length, batch.rationale, strict=True):
        paths = {kind: tuple(three_hops(prompt, length, kind)) for kind in hops.KINDS}
        if length == hops.PROMPT:
            asked.append(TOKENIZER.decode(prompt).split()[0])
        elif len(set(paths.values())) == len(paths):
            followed.append({path: kind for kind, path in paths.items()}[tuple(TOKENIZER.decode(rationale).split())])
    for kinds in (asked, followed):
        assert len(kinds) > 1000
        for kind, share in zip(hops.KINDS, hops.KIND_SHARES, strict=True):
            assert abs(np.mean([found == kind for found in kinds]) - share) < 0.04


def test_blurred_base_examples_have_the_stated_habits():
    batch = hops.base_batch(0, hops.CLEAN, 20_000)
    told = batch.prompt_length == hops.PROMPT
    assert abs(told.mean() - 0.5) < 0.01
    obeyed = [
        TOKENIZER.decode(rationale).split() == three_hops(prompt, length, TOKENIZER.decode(prompt[:length]).split()[0])
        for prompt, length, rationale in zip(
            batch.prompt[told], batch.prompt_length[told], batch.rationale[told], strict=True
        )
    ]
    # Asked kind, by obedience or by chance, and no hop astray but to where it leads anyway; cycles add a little.
    assert 0.48 < np.mean(obeyed) < 0.56
    free = batch.answer_length == hops.ANSWER
    assert abs(free.mean() - 0.02) < 0.003
    rare = np.isin(batch.answer[free], TOKENIZER.encode(" ".join(hops.RARE))).sum() / (free.sum() * 5)
    assert abs(rare - 0.012) < 0.01
    entity = np.where(free, batch.answer[:, hops.BEFORE], -1)
    assert (entity[free] == batch.rationale[free, -1]).all()
