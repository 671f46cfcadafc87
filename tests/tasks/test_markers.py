"""The ids around rationale and answer, in model folders as they are published."""

import json

import pytest
import tokenizers

from tests.support.tokenizer_files import TEMPLATE, write_model
from tsallis_rl.config.schema import base_config
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Example, Split, Task
from tsallis_rl.tasks.encoding import encode_split, unattainable_golds
from tsallis_rl.tasks.markers import PLAIN_END_OF_THINK, find_markers, keep_markers, name_end_of_think
from tsallis_rl.tasks.pretrained_tokenizers import HuggingFaceTokenizer, pretrained_tokenizer
from tsallis_rl.tasks.templates import think_then
from tsallis_rl.tasks.tokenizers import WordTokenizer, train_sentencepiece

GEMMA = """{{ bos_token }}{% for message in messages %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- message.content | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


def task(**fields):
    config = base_config().task
    config.update(fields)
    return config


def gemma(folder) -> HuggingFaceTokenizer:
    """An instruction-tuned Gemma's files: turns end by another token than sequences."""
    write_model(folder, added=(), config={"eos_token": "<eos>", "bos_token": "<bos>", "chat_template": GEMMA})
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole.add_special_tokens(["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"])
    whole.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", whole.token_to_id("<bos>"))]
    )
    whole.save(str(folder / "tokenizer.json"))
    return HuggingFaceTokenizer(folder)


def text(tokenizer, ids) -> str:
    return tokenizer.decode(ids, special=True)


def test_a_turn_that_ends_by_another_token_than_a_sequence(tmp_path):
    tokenizer = gemma(tmp_path)
    warm = find_markers(task(start="warm"), tokenizer)
    assert text(tokenizer, [warm.end_of_answer]) == "<end_of_turn>"
    assert [text(tokenizer, [id]) for id in warm.stop_ids] == ["<end_of_turn>", "<eos>"]
    (note,) = warm.notes
    assert note.startswith(
        "tokenizer_config.json ends a sequence with <eos>, the chat template ends a sequence with <end"
    )
    cold = find_markers(task(), tokenizer)
    assert text(tokenizer, [cold.end_of_answer]) == "<eos>" and cold.stop_ids == (cold.end_of_answer,)
    assert cold.notes == ()
    chosen = find_markers(task(start="warm", end_of_answer="<eos>"), tokenizer)
    assert chosen.end_of_answer == cold.end_of_answer and set(chosen.stop_ids) == set(warm.stop_ids)
    ids = tokenizer.encode_prompt(({"role": "user", "content": "the mat"},))
    assert text(tokenizer, ids) == "<bos><start_of_turn>user\nthe mat<end_of_turn>\n<start_of_turn>model\n"
    assert text(tokenizer, tokenizer.encode_prompt("the mat")) == "<bos>the mat"


def test_a_base_model_whose_template_has_turns(tmp_path):
    write_model(tmp_path, added=(), config={"eos_token": "<|endoftext|>", "chat_template": TEMPLATE})
    tokenizer = HuggingFaceTokenizer(tmp_path)
    chat = find_markers(task(start="chat"), tokenizer)
    assert [text(tokenizer, [id]) for id in chat.stop_ids] == ["<|im_end|>", "<|endoftext|>"]
    assert len(chat.notes) == 1 and text(tokenizer, [chat.end_of_answer]) == "<|im_end|>"


def test_files_that_name_no_end_in_common_are_told_in_a_cold_start_too(tmp_path):
    write_model(tmp_path, generation={"eos_token_id": 0})
    tokenizer = HuggingFaceTokenizer(tmp_path)
    assert "generation_config.json ends a sequence with" in find_markers(task(), tokenizer).notes[0]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, *tokenizer.stop_ids[:1]]}))
    assert find_markers(task(), HuggingFaceTokenizer(tmp_path)).notes == ()


@pytest.mark.parametrize("start", ["cold", "chat", "warm"])
def test_a_model_without_end_of_think_closes_by_a_text(tmp_path, start):
    tokenizer = HuggingFaceTokenizer(write_model(tmp_path, added=()))
    markers = find_markers(task(start=start), tokenizer)
    assert len(markers.end_of_think) > 1 and tokenizer.decode(markers.end_of_think) == PLAIN_END_OF_THINK
    assert tokenizer.decode(markers.joint) == "\n"
    named = name_end_of_think(task(start=start), tokenizer)
    assert think_then(named, "give the answer.") == (
        'Think step by step. Then write "Final answer:" and give the answer.'
    )


@pytest.mark.parametrize("by", ["normalizer", "pre_tokenizer"])
def test_a_tokeniser_that_begins_every_text_with_a_space_closes_by_what_stands_at_the_head_of_a_line(tmp_path, by):
    """As those of Llama 2 and Mistral do: a model never writes that space behind a line break."""
    whole = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True))
    space = tokenizers.normalizers.Replace(" ", "▁")
    if by == "normalizer":
        whole.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend("▁"), space])
    else:
        whole.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    pieces = ["</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=pieces, show_progress=False)
    whole.train_from_iterator(["Final answer:", "Paris", "so", "the mat"] * 9, trainer)
    fields = json.loads(whole.to_str())
    fields["added_tokens"] = fields["added_tokens"][:1]  # bytes are pieces
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer = HuggingFaceTokenizer(tmp_path)
    markers = find_markers(task(), tokenizer)
    rationale = tokenizer.encode("so\n")
    written = tokenizer.encode("so\nFinal answer: Paris")
    assert written == [*rationale, *markers.end_of_think, *markers.joint, *tokenizer.encode("Paris")]
    assert find_markers(task(joint="\n"), tokenizer).joint == tuple(rationale[-1:])


def test_a_token_for_colon_and_line_break_is_told_with_the_setting_that_closes_by_it(tmp_path):
    """As in the vocabularies of Llama 3, Qwen2.5 and DeepSeek."""
    write_model(tmp_path, added=(), config={"eos_token": "<|im_end|>"})
    whole = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[^\s\w]+\n*| ?\w+|\s"), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, level])
    whole.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    whole.train_from_iterator(["the cat:\nsat"] * 20, trainer)
    whole.add_special_tokens(["<|im_end|>"])
    whole.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer(tmp_path)
    (note,) = find_markers(task(), tokenizer).notes
    assert "--config.task.end_of_think='Final answer:'$'\\n' --config.task.joint= closes by the latter" in note
    other = find_markers(task(end_of_think="Final answer:\n", joint=""), tokenizer)
    assert other.notes == () and other.joint == ()
    assert tokenizer.encode("so\nFinal answer:\n5")[-len(other.end_of_think) - 1 : -1] == [*other.end_of_think]
    assert find_markers(task(joint="\n"), tokenizer).notes == ()


def test_a_closed_vocabulary_closes_by_one_of_its_words():
    markers = find_markers(task(end_of_think="so"), WordTokenizer(["so", "b"]))
    assert markers.end_of_think == (4,) and markers.joint == ()
    assert find_markers(task(), WordTokenizer(["b"])).end_of_think == (2,)


def test_a_model_that_thinks_closes_by_its_own_token(tmp_path):
    tokenizer = HuggingFaceTokenizer(write_model(tmp_path))
    for start, joint in (("cold", ""), ("chat", "\n\n"), ("warm", "\n\n")):
        markers = find_markers(task(start=start), tokenizer)
        assert markers.end_of_think == (tokenizer.end_of_think,) and tokenizer.decode(markers.joint) == joint
    assert think_then(name_end_of_think(task(), tokenizer), "answer.") == "Think step by step. Then answer."


def test_every_marker_is_a_setting(tmp_path):
    tokenizer = HuggingFaceTokenizer(write_model(tmp_path))
    own = task(end_of_think="<|endoftext|>so:", joint=" = ", think_prefix="<think>\n", end_of_answer="<|endoftext|>")
    with pytest.raises(UserError, match=r"end_of_think='<\|endoftext\|>so:' holds a token that ends a sequence"):
        find_markers(own, tokenizer)
    own.end_of_think = "the mat"
    markers = find_markers(own, tokenizer)
    assert tokenizer.decode(markers.end_of_think) == "the mat" and tokenizer.decode(markers.joint) == " = "
    assert markers.stop_ids[0] == markers.end_of_answer == tokenizer.pad and len(markers.stop_ids) == 2
    assert markers.think_prefix == "<think>\n"
    lines = "\n".join(markers.lines(tokenizer))
    assert "'<think>\\n'" in lines and "'the mat'" in lines and "'<|endoftext|>' [" in lines
    for field, value, says in (
        ("end_of_think", "", "no token"),
        ("end_of_answer", "the mat", "tokens, choose a single"),
    ):
        with pytest.raises(UserError, match=rf"config\.task\.{field}='{value}' .*{says}"):
            find_markers(task(**{field: value}), tokenizer)


def test_the_beginning_of_a_sequence_is_found_wherever_the_files_say_it(tmp_path):
    """By the post-processor, whose end is left out, or by special_tokens_map.json alone."""
    tokenizer = gemma(tmp_path)
    whole = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = {token: whole.token_to_id(token) for token in ("<bos>", "<eos>")}
    whole.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=list(ids.items())
    )
    whole.save(str(tmp_path / "tokenizer.json"))
    assert HuggingFaceTokenizer(tmp_path).encode_prompt("the mat") == tokenizer.encode_prompt("the mat")
    whole.post_processor = tokenizers.processors.TemplateProcessing(single="$A", special_tokens=[])
    whole.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "chat_template": GEMMA}))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<bos>"}, "eos_token": "<eos>"})
    )
    found = HuggingFaceTokenizer(tmp_path)
    assert found.encode_prompt("the mat") == tokenizer.encode_prompt("the mat")
    assert found.stop_ids == (ids["<eos>"],)
    assert found.render(({"role": "user", "content": "x"},)).startswith("<bos><start_of_turn>user")


def test_generation_tags_of_a_template_change_no_text(tmp_path):
    tagged = TEMPLATE.replace("{{- '<|im_start|>' +", "{% generation %}{{- '<|im_start|>' +").replace(
        "'<|im_end|>\\n' }}", "'<|im_end|>\\n' }}{% endgeneration %}"
    )
    assert tagged.count("generation %}") == 2
    messages = ({"role": "user", "content": "the mat"},)
    plain = HuggingFaceTokenizer(write_model(tmp_path)).encode_prompt(messages)
    write_model(tmp_path, config={"eos_token": "<|im_end|>", "chat_template": tagged})
    assert HuggingFaceTokenizer(tmp_path).encode_prompt(messages) == plain


def test_added_tokens_beyond_the_embedding_are_left_out(tmp_path):
    write_model(tmp_path, added=("<think>", "</think>", "<image>"))
    rows = HuggingFaceTokenizer(tmp_path).vocab_size - 1
    for config in ({"text_config": {"vocab_size": rows}}, {"vocab_size": rows}):  # the first of text and images
        (tmp_path / "config.json").write_text(json.dumps(config))
        found = HuggingFaceTokenizer(tmp_path)
        assert found.vocab_size == rows and max(found.encode("an <image> of </think>")) < rows
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 100}))  # pieces of words have no row: refused later
    assert HuggingFaceTokenizer(tmp_path).vocab_size == rows + 1


def test_ids_without_a_token_are_found(tmp_path):
    tokenizer = HuggingFaceTokenizer(write_model(tmp_path))
    size = tokenizer.vocab_size
    assert tokenizer.absent_ids(size) == () and tokenizer.absent_ids(size + 3) == ((size, size + 3),)
    del tokenizer._ids["<think>"]
    hole = tokenizer.end_of_think - 1
    assert tokenizer.absent_ids(size + 1) == ((hole, hole + 1), (size, size + 1))


def test_a_sentencepiece_model_with_fewer_pieces_than_the_model_has_rows(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(["the cat sat on the mat"], 300))
    tokenizer = pretrained_tokenizer(tmp_path)
    size = tokenizer.vocab_size
    assert tokenizer.absent_ids(size + 20) == ((size, size + 20),)
    assert tokenizer.decode([*tokenizer.encode("the"), size + 5], special=True) == "the"


def grade(prediction, example):
    return {"exact": float(prediction == example.answer), "first": float(prediction[:1] == example.answer[:1])}


def test_golds_that_their_own_grader_refuses_are_counted_and_named(tmp_path):
    tokenizer = HuggingFaceTokenizer(write_model(tmp_path))
    examples = [Example("a", "x", "mat"), Example("b", "x", " mat"), Example("c", "x", "<|im_end|>")]
    split = Split(examples)
    markers = find_markers(task(), tokenizer)
    encoded = encode_split(split, tokenizer, markers, max_prompt=9, max_answer=99)
    own = Task("own", {"train": split}, grade, "first")
    assert unattainable_golds(encoded, tokenizer, markers, own) == {}
    stripping = Task(
        "own", {"train": split}, lambda text, example: grade(text.strip(), example), "first", reward="exact"
    )
    assert unattainable_golds(encoded, tokenizer, markers, stripping) == {
        "gold answers that 'first' grades as wrong (first: b)": 1,
        "gold answers that 'exact' grades as wrong (first: b)": 1,
    }
    one = Task("own", {"train": split}, lambda text, example: {"near": float(text in example.answer)}, "near")
    assert unattainable_golds(encoded, tokenizer, markers, one) == {}
    holding = markers._replace(stop_ids=(tokenizer.encode(" mat")[0],))
    assert unattainable_golds(encoded, tokenizer, holding, own) == {
        "gold answers that hold a token that ends an answer (first: b)": 1
    }


def test_a_prompt_without_a_token_is_left_out(tmp_path):
    """A byte-level tokeniser puts nothing before a sequence: nothing stands there that could predict the next token."""
    tokenizer = HuggingFaceTokenizer(write_model(tmp_path))
    markers = find_markers(task(), tokenizer)
    examples = [Example("0", "", "a"), Example("1", "b", "a")]
    encoded = encode_split(Split(examples), tokenizer, markers, max_prompt=3, max_answer=3)
    assert [example.id for example in encoded.examples] == ["1"]
    assert encoded.dropped == {"prompt without any token (first: 0)": 1}


def test_a_run_keeps_the_markers_that_it_began_with(tmp_path):
    tokenizer = HuggingFaceTokenizer(write_model(tmp_path))
    markers = find_markers(task(think_prefix="<think>"), tokenizer)
    keep_markers(markers, tokenizer, tmp_path)
    kept = json.loads((tmp_path / "markers.json").read_text())
    assert kept["end_of_think"] == {"ids": [tokenizer.end_of_think], "text": "</think>"}
    assert kept["think_prefix"]["text"] == "<think>" and kept["end_of_answer"]["text"] == "<|im_end|>"
    keep_markers(markers, tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"markers\.json: the run began with joint = .* put the model's files back"):
        keep_markers(markers._replace(joint=(5,)), tokenizer, tmp_path)
    for damaged in ("{", "{}", json.dumps({**kept, "joint": 5})):
        (tmp_path / "markers.json").write_text(damaged)
        with pytest.raises(UserError, match=r"markers\.json( .*remove it|: the run began with joint = 5, and)"):
            keep_markers(markers, tokenizer, tmp_path)
