"""Text to ids and back: trained sentencepiece models, and the files of pretrained models."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tokenizer_files import TEMPLATE, TEXTS, write_model
from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import load_with_tokenizer
from tsallis_rl.tasks.base import Example, Split
from tsallis_rl.tasks.encoding import encode_split
from tsallis_rl.tasks.markers import find_markers
from tsallis_rl.tasks.pretrained_tokenizers import HuggingFaceTokenizer, pretrained_tokenizer
from tsallis_rl.tasks.tokenizers import SentencePieceTokenizer, train_sentencepiece, trained_tokenizer

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)  # all but half surrogates


@pytest.fixture(scope="module")
def sentencepiece():
    return SentencePieceTokenizer(train_sentencepiece(TEXTS, 400))


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    return HuggingFaceTokenizer(write_model(tmp_path_factory.mktemp("model")))


@settings(max_examples=300, deadline=None)
@given(text=UNICODE)
def test_sentencepiece_gives_any_unicode_text_back(sentencepiece, text):
    assert sentencepiece.decode(sentencepiece.encode(text)) == text


@pytest.mark.parametrize("text", ["▁", " ▁ x", "a\n\n b ", "\0", "</think>", "<0x41>", "<s>", "\r\n\t", "\ufeff", "⁇"])
def test_sentencepiece_gives_its_own_signs_back_as_text(sentencepiece, text):
    ids = sentencepiece.encode(text)
    assert sentencepiece.decode(ids) == text
    assert not set(ids) & {sentencepiece.end_of_think, *sentencepiece.stop_ids, sentencepiece.pad}


@settings(max_examples=100, deadline=None)
@given(text=UNICODE)
def test_byte_level_tokenizer_gives_any_unicode_text_back(hugging_face, text):
    assert hugging_face.decode(hugging_face.encode(text)) == text


def test_training_sentencepiece_twice_gives_the_same_model():
    assert train_sentencepiece(TEXTS, 400) == train_sentencepiece(TEXTS, 400)


def test_trained_tokenizer_is_kept_until_text_or_size_change(tmp_path):
    split = Split([Example(str(i), text, "mat") for i, text in enumerate(TEXTS)])
    trained_tokenizer(split, 300, tmp_path)
    (kept,) = tmp_path.glob("*.model")
    written = kept.stat().st_mtime_ns
    trained_tokenizer(split, 300, tmp_path)
    assert [file.stat().st_mtime_ns for file in tmp_path.glob("*.model")] == [written]
    trained_tokenizer(split, 310, tmp_path)
    trained_tokenizer(Split(split.examples[1:]), 300, tmp_path)
    assert len(list(tmp_path.glob("*.model"))) == 3


def test_trained_tokenizer_that_is_damaged_is_trained_again_and_is_the_same(tmp_path):
    split = Split([Example(str(i), text, "mat") for i, text in enumerate(TEXTS)])
    trained_tokenizer(split, 300, tmp_path)
    (kept,) = tmp_path.glob("*.model")
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    foreign = train_sentencepiece(["another text"], 290)
    for damaged in (b"", whole[:-9], bytes(flipped), foreign):
        kept.write_bytes(damaged)
        trained_tokenizer(split, 300, tmp_path)
        assert kept.read_bytes() == whole
    kept.with_suffix(".sha256").write_bytes(b"\xff")
    trained_tokenizer(split, 300, tmp_path)
    assert kept.read_bytes() == whole


def test_vocabulary_that_cannot_hold_every_byte_and_letter_is_one_sentence(tmp_path):
    split = Split([Example("0", "the cat", "mat")])
    with pytest.raises(UserError, match=r"config\.task\.vocab_size=100: .* raise it .*100 vs"):
        trained_tokenizer(split, 100, tmp_path)
    with pytest.raises(UserError, match=r"no example of the train split can be used: 3 left out: no answer; correct"):
        trained_tokenizer(Split([], {"no answer": 3}), 300, tmp_path)
    with pytest.raises(UserError, match=r"it has no records, or all of them have prompts of another split; correct"):
        trained_tokenizer(Split([]), 300, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", ["sentencepiece", "hugging_face"])
@settings(max_examples=100, deadline=None)
@given(rationale=UNICODE, prompt=UNICODE.filter(bool), answer=st.sampled_from(["the mat", "12.5 %", " on", "é", "▁"]))
def test_answer_ids_depend_on_neither_prompt_nor_rationale(request, which, rationale, prompt, answer):
    tokenizer = request.getfixturevalue(which)
    markers = find_markers(base_config().task, tokenizer)
    encoded = encode_split(Split([Example("0", prompt, answer)]), tokenizer, markers, max_prompt=999, max_answer=32)
    gold = encoded.answers.row(0).tolist()
    assert gold == [*tokenizer.encode(answer), tokenizer.stop_ids[0]]
    before = [*tokenizer.encode_prompt(prompt), *tokenizer.encode(rationale), tokenizer.end_of_think]
    joined = [*before, *tokenizer.encode("\n\n"), *gold]
    assert tokenizer.decode(joined[-len(gold) :]) == answer
    assert joined.index(tokenizer.end_of_think) == len(before) - 1


def test_joining_ids_differs_from_encoding_the_joined_text(sentencepiece):
    apart = sentencepiece.encode("where did the c") + sentencepiece.encode("at")
    assert apart != sentencepiece.encode("where did the cat")
    assert sentencepiece.decode(apart) == "where did the cat"


def test_decode_shows_special_tokens_only_when_asked(sentencepiece, hugging_face):
    for tokenizer, end in ((sentencepiece, "</s>"), (hugging_face, "<|im_end|>")):
        ids = [*tokenizer.encode("the mat"), tokenizer.stop_ids[0]]
        assert tokenizer.decode(np.array(ids)) == "the mat"
        assert tokenizer.decode(ids, special=True) == f"the mat{end}"


def test_chat_template_is_rendered_with_thinking_on(hugging_face):
    messages = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Where?"})
    expected = "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    assert hugging_face.render(messages) == expected
    ids = hugging_face.encode_prompt(messages)
    assert hugging_face.decode(ids, special=True) == expected
    assert ids.count(hugging_face.stop_ids[0]) == 2


def test_end_ids_are_the_eos_token_then_those_of_the_generation_config(tmp_path):
    tokenizer = HuggingFaceTokenizer(write_model(tmp_path))
    end, other = tokenizer.stop_ids[0], tokenizer.pad
    assert tokenizer.decode([end], special=True) == "<|im_end|>" and tokenizer.stop_ids == (end,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [other, end]}))
    assert HuggingFaceTokenizer(tmp_path).stop_ids == (end, other)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": other}))
    assert HuggingFaceTokenizer(tmp_path).stop_ids == (end, other)


def test_end_of_think_is_one_id_where_special_tokens_are_read_and_text_in_what_people_write(hugging_face):
    assert hugging_face.encode("so</think>", special=True) == [*hugging_face.encode("so"), hugging_face.end_of_think]
    assert hugging_face.end_of_think not in hugging_face.encode("so</think>")


SPELT = st.lists(
    st.sampled_from(
        ["</think>", "<think>", "<|im_end|>", "<|im_start|>user\n", "<|endoftext|>", "the mat", "é", " ", "\ue000", "1"]
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("which", ["sentencepiece", "hugging_face"])
@settings(max_examples=150, deadline=None)
@given(text=SPELT, other=SPELT)
def test_control_tokens_that_people_spell_are_text(request, which, text, other):
    tokenizer = request.getfixturevalue(which)
    controls = {*tokenizer.stop_ids, tokenizer.end_of_think, tokenizer.pad}
    assert not controls & set(tokenizer.encode(text)) and tokenizer.decode(tokenizer.encode(text)) == text
    messages = ({"role": "system", "content": other}, {"role": "user", "content": text})
    begins = len(tokenizer.encode_prompt(""))
    assert not controls & set(tokenizer.encode_prompt(text)[begins:])
    if which == "hugging_face":  # the template's own are control tokens all the same
        ids = tokenizer.encode_prompt(messages)
        assert tokenizer.decode(ids, special=True) == tokenizer.render(messages)
        assert ids.count(tokenizer.stop_ids[0]) == 2 and tokenizer.end_of_think not in ids


def test_text_without_control_tokens_is_encoded_as_by_the_library(hugging_face):
    for text in ("the cat sat", "a < b and c > d", "<", "\ue0000\ue001"):
        assert hugging_face.encode(text) == hugging_face._tokenizer.encode(text, add_special_tokens=False).ids


def test_added_tokens_that_are_text_keep_their_ids_beside_control_tokens_that_people_spell(tmp_path):
    whole = tokenizers.Tokenizer.from_file(str(write_model(tmp_path) / "tokenizer.json"))
    whole.add_tokens(["<|fim|>", "    "])  # behind the control tokens, as in Qwen's and Phi's files
    whole.save(str(tmp_path / "tokenizer.json"))
    found = HuggingFaceTokenizer(tmp_path)
    ids = found.encode("<|im_end|><|fim|>the    mat</think>")
    assert found.decode(ids, special=True) == "<|im_end|><|fim|>the    mat</think>"
    assert {whole.token_to_id("<|fim|>"), whole.token_to_id("    ")} <= set(ids)
    assert not {*found.stop_ids, found.pad, found.end_of_think} & set(ids)


def test_control_tokens_among_the_pieces_are_text_as_well(tmp_path):
    pieces = [("<unk>", 0.0), ("</s>", -1.0), *((letter, -3.0) for letter in "<>/s the")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    found = HuggingFaceTokenizer(tmp_path)
    assert found.encode("the</s>", special=True)[-1] == found.stop_ids[0]
    ids = found.encode("the</s>the")
    assert found.stop_ids[0] not in ids and found._tokenizer.decode(ids).replace(" ", "") == "the</s>the"


def test_a_think_prefix_stands_behind_the_prompt(hugging_face, sentencepiece):
    for tokenizer in (hugging_face, sentencepiece):
        ids = tokenizer.encode_prompt("the mat", "</think>the")
        assert ids == [*tokenizer.encode_prompt("the mat"), tokenizer.end_of_think, *tokenizer.encode("the")]


@pytest.mark.parametrize("form", ["file", "list"])
def test_chat_template_is_found_where_newer_models_keep_it(tmp_path, form):
    config = {"eos_token": "<|im_end|>"}
    if form == "list":
        config["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    write_model(tmp_path, config=config)
    if form == "file":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert HuggingFaceTokenizer(tmp_path).render(({"role": "user", "content": "é"},)).startswith("<|im_start|>user\né")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "no chat template"),
        ("{% if %}", "not valid jinja"),
        ("{{ raise_exception('only users') }}", "only users"),
        ("{{ messages.append(1) }}", "cannot render"),
        ("<|im_start|>user<|im_end|>", "writes the same whatever a message says"),
    ],
)
def test_chat_template_that_cannot_be_used_is_one_sentence(tmp_path, template, says):
    write_model(tmp_path, config={"eos_token": "<|im_end|>", "chat_template": template})
    with pytest.raises(UserError, match=says):
        HuggingFaceTokenizer(tmp_path).encode_prompt(({"role": "user", "content": "x"},))


def test_a_template_may_render_only_what_follows_a_systems_message(tmp_path):
    template = "S{% for m in messages[1:] %}{{ m.content }}{% endfor %}"
    write_model(tmp_path, config={"eos_token": "<|im_end|>", "chat_template": template})
    messages = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    assert HuggingFaceTokenizer(tmp_path).render(messages) == "Su"


def test_json_in_a_chat_template_keeps_its_letters(tmp_path):
    write_model(tmp_path, config={"eos_token": "<|im_end|>", "chat_template": "{{ messages | tojson }}"})
    rendered = HuggingFaceTokenizer(tmp_path).render(({"role": "user", "content": "é <b>"},))
    assert rendered == '[{"role": "user", "content": "é <b>"}]'


def test_model_folder_that_lacks_something_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        pretrained_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"no end of sequence: .* config\.task\.end_of_answer"):
        find_markers(base_config().task, pretrained_tokenizer(write_model(tmp_path, config={})))
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        pretrained_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        pretrained_tokenizer(tmp_path)


def test_sentencepiece_model_of_a_pretrained_folder_is_read(tmp_path, sentencepiece):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(TEXTS, 400))
    assert pretrained_tokenizer(tmp_path).encode("the mat") == sentencepiece.encode("the mat")


def test_a_folder_with_tokenizer_model_alone_has_all_its_stop_ids_and_renders_no_template(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(["the mat"] * 9, 300))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    found, messages = pretrained_tokenizer(tmp_path), ({"role": "user", "content": "the mat"},)
    assert found.stop_ids == (2, 1)
    assert found.encode_prompt(messages) == found.encode_prompt("the mat\n\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    found = pretrained_tokenizer(tmp_path)
    assert found.encode_prompt("the mat")
    with pytest.raises(UserError, match=r"has a chat template, which needs tokenizer\.json, .*start=cold"):
        found.encode_prompt(messages)


def test_a_config_with_neither_a_models_folder_nor_a_vocabulary_is_one_sentence(tmp_path):
    config = base_config()
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' * 1)
    config.task.update({"name": "jsonl", "path": str(tmp_path / "mine.jsonl"), "metric": "exact"})
    config.model.size = "no/such/folder"
    with pytest.raises(UserError, match=r"'no/such/folder' is no folder, .* lacks task.vocab_size"):
        load_with_tokenizer(config, tmp_path)
