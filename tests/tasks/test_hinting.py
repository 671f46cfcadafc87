"""Prompts that show the answer: templates, chat messages, the embedded task's own form, and their encoding."""

import dataclasses

import numpy as np
import pytest

from configs import hops as config_file
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import Example, encode_split, hops
from tsallis_rl.tasks.hinting import TEMPLATE, hinted_split, show_answer
from tsallis_rl.tasks.markers import find_markers

TOKENIZER = hops.tokenizer()


def test_a_template_is_filled_once_whatever_prompt_and_answer_say():
    example = Example("0", "What is {answer}?", "{prompt}")
    assert show_answer(example, "{prompt} [{answer}] {other}") == "What is {answer}? [{prompt}] {other}"
    assert show_answer(Example("0", "2 + 2?", "4"), TEMPLATE).startswith("2 + 2?\n\nThe answer is 4. ")


def test_of_chat_messages_the_last_shows_the_answer():
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"})
    shown = show_answer(Example("0", messages, "4"), "{prompt} ({answer})")
    assert shown == (messages[0], {"role": "user", "content": "2 + 2? (4)"})


def test_the_embedded_task_prints_the_entity_before_the_query_in_every_start():
    for start in hops.STARTS:
        for example in hops.load(config_file.get_config(f"start={start}").task, 0).splits["test"].examples[:20]:
            words, shown = example.prompt.split(), hops.show_answer(example).split()
            (entity,) = {*example.answer.split()} & {*hops.ENTITIES}
            assert shown == [*words[:-2], "=", entity, "from", words[-1]]


def test_a_shown_answer_takes_the_place_of_the_hint_that_a_prompt_has():
    for example in hops.load(config_file.get_config("hint=0.5").task, 0).splits["test"].examples[:20]:
        words, shown = example.prompt.split(), hops.show_answer(example).split()
        (entity,) = {*example.answer.split()} & {*hops.ENTITIES}
        assert words[-4] == "=" and shown == [*words[:-3], entity, "from", words[-1]]


def test_a_hinted_split_has_the_examples_of_the_plain_one_in_its_order():
    config = config_file.get_config()
    task = hops.load(config.task, 0)
    some = dataclasses.replace(task.splits["test"], examples=task.splits["test"].examples[:30])
    markers = find_markers(config.task, TOKENIZER)
    plain = encode_split(some, TOKENIZER, markers, max_prompt=hops.PROMPT, max_answer=hops.ANSWER)
    for template, more in (("auto", hops.HINT), ("{answer} from {prompt}", 7)):
        hinted = hinted_split(plain, task, template, TOKENIZER, markers, widths=4)
        assert [head.id for head in hinted.heads] == [head.id for head in plain.heads]
        np.testing.assert_array_equal(hinted.prompt_length, plain.prompt_length + more)
        np.testing.assert_array_equal(hinted.answer_at(range(30)), plain.answer_at(range(30)))
        assert hinted.max_prompt == hinted.prompt_length.max()
    with pytest.raises(UserError, match=r"template='.*': the tokeniser of task hops has no word 'is'; use its words"):
        hinted_split(plain, task, "{prompt} {answer} is …", TOKENIZER, markers, widths=4)
