"""Users' own records: answers of every kind, chat messages, columns with other names."""

import pytest

from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.own_records import own_examples, read_columns
from tsallis_rl.tasks.record_files import DECODER


def task(**fields):
    made = base_config().task
    made.update({"start": "cold", "columns": "", "answer_after": "", **fields})
    return made


def examples(*records, **fields):
    return own_examples([(f"mine.jsonl, line {i}", record) for i, record in enumerate(records, 1)], task(**fields))


@pytest.mark.parametrize(
    ("answer", "gold", "others"),
    [
        (5, "5", ()),
        (2.5, "2.5", ()),
        (-0.0, "0", ()),
        (" 2.50 ", "2.50", ()),
        (["New York", "NYC"], "New York", ("NYC",)),
        ([18, "18.0"], "18", ("18.0",)),
        ([" ", "a"], "a", ()),
    ],
)
def test_an_answer_may_be_text_a_number_or_a_list_whose_rest_are_aliases(answer, gold, others):
    (example,) = examples({"prompt": "q", "answer": answer, "aliases": ["x", 7]}).examples
    assert (example.answer, example.aliases) == (gold, (*others, "x", "7"))


def test_numbers_of_any_length_are_ids_answers_and_aliases():
    (record,) = map(DECODER.decode, ['{"prompt": "q", "answer": %s, "id": %s, "aliases": [1%s]}' % (("9" * 5000,) * 3)])
    (example,) = examples(record).examples
    assert (example.answer, example.id, example.aliases) == ("9" * 5000, "9" * 5000, ("1" + "9" * 5000,))


def test_aliases_are_texts_of_their_own_without_white_space_or_what_stands_before_the_answer():
    record = {"prompt": "q", "answer": ["a ## 5", "b ## five "], "aliases": [" five", "5 ", "w ## 6", "7", "5\n"]}
    (example,) = examples(record, answer_after="##").examples
    assert (example.answer, example.aliases) == ("5", ("five", "6", "7"))


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("1e400", "field 'answer' is 1e400, which is no finite number, expected str or int or float"),
        ("[1e400]", "field 'answer' is "),
        ("1e-99999999999999999999", "field 'answer' is a number of more than 10,000 digits; write it as text"),
        ("9" * 20_000, "field 'answer' is a number of more than 10,000 digits; write it as text"),
        ('"a", "aliases": ["b", " "]', "field 'aliases' holds an empty text, which an empty answer matches"),
        ('"a", "aliases": [NaN]', "field 'aliases' is "),
    ],
)
def test_what_cannot_be_an_answer_names_file_and_record(written, says):
    with pytest.raises(UserError, match=rf"^mine\.jsonl, line 1: {says}"):
        examples(DECODER.decode(f'{{"prompt": "q", "answer": {written}}}'))


@pytest.mark.parametrize("record", [5, None, True, "text", ["a"]])
def test_a_record_that_is_no_object_is_one_sentence(record):
    with pytest.raises(UserError, match=r"^mine\.jsonl, line 1: expected an object with the fields prompt, answer"):
        examples(record)


def test_blank_answers_are_left_out_and_counted():
    made = examples({"prompt": "q", "answer": ""}, {"prompt": "q", "answer": []}, {"prompt": "q", "answer": [" "]})
    assert not made.examples and made.left_out == {"empty answer": ["line 1", "line 2", "line 3"]}


def test_the_answer_behind_worked_steps_is_taken_where_the_config_says_so():
    records = [{"prompt": f"q{i}", "answer": text} for i, text in enumerate(["6 * 3 = 18\n#### 18", "#### 4", "5"])]
    assert [example.answer for example in examples(*records).examples] == ["6 * 3 = 18\n#### 18", "#### 4", "5"]
    made = examples(*records, answer_after="####")
    assert [example.answer for example in made.examples] == ["18", "4"]
    assert made.left_out == {"no answer after task.answer_after='####'": ["line 3"]}


def test_ids_may_be_numbers_and_are_text():
    made = examples({"prompt": "q", "answer": "a", "id": 7}, {"prompt": "q", "answer": "a", "id": 2.0})
    assert [example.id for example in made.examples] == ["7", "2"]
    with pytest.raises(UserError, match=r"line 1: the id is empty; write one, or leave the field out"):
        examples({"prompt": "q", "answer": "a", "id": " "})
    with pytest.raises(UserError, match=r"line 2: the id '7' is that of mine\.jsonl, line 1; ids must be unique"):
        examples({"prompt": "q", "answer": "a", "id": 7}, {"prompt": "q", "answer": "a", "id": "7"})


USER, ASSISTANT = {"role": "user", "content": "q?"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize("start", ["chat", "warm"])
@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "the prompt is a list without a message"),
        ([{"role": "user", "content": " \n"}], "the user's message is empty"),
        ([{"role": "system", "content": ""}, USER], "the system's message is empty"),
        ([USER, ASSISTANT], "the last chat message is the assistant's.*end with the user's"),
        ([{"role": "user", "content": None}], "field 'prompt': field 'content' is null, expected str"),
        ([{"role": "tool", "content": "q"}], "role='tool' is not accepted; choose from system, user, assistant"),
        ([{"role": "user"}], "field 'prompt': field 'content' is missing"),
    ],
)
def test_chat_messages_that_cannot_be_asked_name_file_and_record(messages, says, start):
    with pytest.raises(UserError, match=rf"^mine\.jsonl, line 2.*{says}"):
        examples({"prompt": "q", "answer": "a"}, {"prompt": messages, "answer": "a"}, start=start)


def test_columns_are_found_by_their_names_and_inside_objects():
    record = {"question": "q?", "answers": {"text": ["a", "b"]}, "a.b": 3}
    (example,) = examples(record, columns="question:prompt, answers.text:answer,a.b:id").examples
    assert (example.prompt, example.answer, example.aliases, example.id) == ("q?", "a", ("b",), "3")
    with pytest.raises(
        UserError, match=r"line 1: there is no 'solution', which config\.task\.columns.*found: a\.b, ans"
    ):
        examples(record, columns="question:prompt,solution:answer")
    with pytest.raises(UserError, match=r"field 'prompt' is missing .*config\.task\.columns=question:prompt,"):
        examples(record)


@pytest.mark.parametrize("columns", ["question", "question:text", "a:prompt,b:prompt", ":prompt"])
def test_columns_that_are_written_in_another_way_are_one_sentence(columns):
    with pytest.raises(
        UserError, match=r"^config\.task\.columns='.*write COLUMN:FIELD .*question:prompt,solution:answer"
    ):
        read_columns(columns)
