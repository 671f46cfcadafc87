"""Tokenisers with one small interface: text to ids and back, and the ids that structure a rollout."""

import functools
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tsallis_rl.runs.cache import write_whole
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.tasks.base import Message, Split

END_OF_THINK = "</think>"
_PROBE = "A tokeniser that cannot read this é, 12 or decode itself is damaged.\n"


class Tokenizer(Protocol):
    """Interface of tokenisers to the rest of the project.

    Attributes:
      vocab_size: number of ids, V.
      pad: id that fills unused positions; attention never reads it.
      end_of_think: id that closes a rationale.
      end_of_sequence: the ids that end an answer; the first is scored after gold answers.
    """

    vocab_size: int
    pad: int
    end_of_think: int
    end_of_sequence: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """Encodes text to ids, without adding special tokens."""
        ...

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Decodes ids to text; special tokens are left out unless `special`."""
        ...

    def encode_prompt(self, prompt: str | tuple[Message, ...]) -> list[int]:
        """Encodes a prompt, plain text or chat messages, to the ids that the model reads before its rationale."""
        ...


class WordTokenizer:
    """Tokeniser with one id per word of a closed vocabulary; single spaces separate words.

    Ids 0 to 3 are <pad>, <bos>, </think> and <eos>; `words` follow in order.
    """

    SPECIAL = ("<pad>", "<bos>", "</think>", "<eos>")

    def __init__(self, words: Sequence[str]):
        self.words = (*self.SPECIAL, *words)
        self._ids = {word: i for i, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            raise ValueError("a WordTokenizer's words must be unique")
        self.vocab_size = len(self.words)
        self.pad, self.bos, self.end_of_think = 0, 1, 2
        self.end_of_sequence = (3,)

    def encode(self, text: str) -> list[int]:
        """Encodes text to ids; raises KeyError on a word outside the vocabulary."""
        return [self._ids[word] for word in text.split()]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Decodes ids to words with spaces between them; special tokens are left out unless `special`."""
        return " ".join(self.words[i] for i in ids if special or i >= len(self.SPECIAL))

    def encode_prompt(self, prompt: str | tuple[Message, ...]) -> list[int]:
        """Encodes a plain-text prompt after <bos>."""
        if not isinstance(prompt, str):
            raise ValueError("a WordTokenizer has no chat template; give it plain text")
        return [self.bos, *self.encode(prompt)]


class SentencePieceTokenizer:
    """Sentencepiece model with <bos>, <eos>, <pad> and </think> as control pieces, whose ids text never yields.

    Reversible on any Unicode text: `decode(encode(text)) == text`. Chat messages are read as their contents, separated
    by blank lines, for models that are trained here and have no chat template.
    """

    # sentencepiece writes a space as this character; a real one is spelt in bytes, or it would come back as a space.
    _SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

    def __init__(self, model: bytes, end_of_think: str = END_OF_THINK, name: str = "the sentencepiece model"):
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._model.decode(self._model.encode(_PROBE))
            self._model.id_to_piece(list(range(self._model.vocab_size())))
        except (RuntimeError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
            raise UserError(f"{name} cannot be read ({error}); remove it, or copy it again") from None
        self.vocab_size = self._model.vocab_size()
        self.end_of_think = self._model.piece_to_id(end_of_think)
        self.bos, eos = self._model.bos_id(), self._model.eos_id()
        if self.end_of_think == self._model.unk_id() or eos < 0:
            raise UserError(f"{name} needs the pieces {end_of_think} and an end of sequence")
        self.end_of_sequence = (eos,)
        self.pad = self._model.pad_id() if self._model.pad_id() >= 0 else eos
        self._space_ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in self._SPACE.encode()]

    def encode(self, text: str) -> list[int]:
        """Encodes text to ids, without adding special tokens."""
        ids: list[int] = []
        for i, part in enumerate(text.split(self._SPACE)):
            ids += (self._space_ids if i else []) + self._model.encode(part)
        return ids

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Decodes ids to text; control pieces are left out unless `special`."""
        runs = itertools.groupby((int(id) for id in ids), key=self._model.is_control)
        return "".join(
            "".join(self._model.id_to_piece(id) for id in run) * special if control else self._model.decode(list(run))
            for control, run in runs
        )

    def encode_prompt(self, prompt: str | tuple[Message, ...]) -> list[int]:
        """Encodes a prompt after the beginning-of-sequence id, if there is one."""
        text = prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt) + "\n\n"
        return [*([self.bos] if self.bos >= 0 else []), *self.encode(text)]


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> bytes:
    """Trains a byte-pair sentencepiece model of at most `vocab_size` pieces; the same texts give the same model.

    Raises:
      UserError: the vocabulary is too small to hold every byte and the texts' own letters.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # One sentence a line: the trainer's pieces never hold a line break, which is spelt as a byte.
            sentence_iterator=(line for text in texts for line in text.splitlines() if line),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            max_sentence_length=1 << 20,
            control_symbols=[END_OF_THINK],
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"config.task.vocab_size={vocab_size}: no tokeniser of this size can be trained on the task's text; raise "
            f"it (sentencepiece: {str(error).rpartition('] ')[2]})"
        ) from None
    return model.getvalue()


def _sentencepiece(file: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(file.read_bytes(), name=str(file))


def trained_tokenizer(train: Split, vocab_size: int, cache: Path) -> SentencePieceTokenizer:
    """Trains a sentencepiece tokeniser on the split's first 2,000 prompts and answers, or reads it from the cache.

    Raises:
      UserError: there is no example, or no tokeniser of this size can be trained on the text.
    """
    if not train.examples:
        raise UserError(f"the task has no example to train on ({dict(train.dropped) or 'the file is empty'})")
    texts = []
    for example in train.examples[:2000]:
        prompt = example.prompt
        texts += [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        texts.append(example.answer)
    key = hashlib.sha256("\0".join([str(vocab_size), *texts]).encode()).hexdigest()[:16]
    file = cache / f"sentencepiece-{key}.model"
    if not file.exists():
        write_whole(file, train_sentencepiece(texts, vocab_size))
    return _sentencepiece(file)


def pretrained_tokenizer(folder: Path) -> Tokenizer:
    """Reads the tokeniser of a pretrained model's folder: tokenizer.json, or a sentencepiece tokenizer.model.

    Raises:
      UserError: the folder has neither, or it cannot be read or lacks a token that is needed.
    """
    if (folder / "tokenizer.json").exists():
        return HuggingFaceTokenizer(folder)
    if (folder / "tokenizer.model").exists():
        return _sentencepiece(folder / "tokenizer.model")
    raise UserError(f"config.model.size={str(folder)!r}: the folder holds neither tokenizer.json nor tokenizer.model")


def _settings(file: Path) -> dict[str, Any]:
    """Reads a settings file beside tokenizer.json, {} where the folder lacks it."""
    return read_object(file) if file.exists() else {}


class HuggingFaceTokenizer:
    """Tokeniser of a model's folder: tokenizer.json, and the chat template and special tokens of the files beside it.

    End-of-sequence ids are the tokeniser's eos_token, which is scored after gold answers, and then the ids that
    generation_config.json lists.
    """

    def __init__(self, folder: Path):
        import tokenizers

        self._folder = folder
        file = folder / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
            ids = self._tokenizer.get_vocab(with_added_tokens=True)
            self._tokenizer.decode(self._tokenizer.encode(_PROBE).ids)
        except BaseException as error:  # the library raises nothing narrower, and what it panics with is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise UserError(f"{file} cannot be read ({error}); copy the folder again") from None
        self._settings = _settings(folder / "tokenizer_config.json")
        self.vocab_size = max(ids.values(), default=-1) + 1  # ids may have gaps
        self.end_of_think = ids.get(END_OF_THINK)
        if self.end_of_think is None:
            raise UserError(f"{file} has no {END_OF_THINK} token; use a model that thinks")
        eos = ids.get(self._special("eos_token"))
        listed = _settings(folder / "generation_config.json").get("eos_token_id") or []
        listed = listed if isinstance(listed, list) else [listed]
        for id in listed:
            if not isinstance(id, int) or not 0 <= id < self.vocab_size:
                raise UserError(f"{folder / 'generation_config.json'}: eos_token_id {id!r:.60} is no id of {file.name}")
        self.end_of_sequence = tuple(dict.fromkeys(id for id in [eos, *listed] if id is not None))
        if not self.end_of_sequence:
            raise UserError(
                f"{folder}: no end of sequence; set eos_token in tokenizer_config.json or eos_token_id in "
                "generation_config.json"
            )
        self.pad = ids.get(self._special("pad_token"), self.end_of_sequence[0])

    def _special(self, name: str) -> str | None:
        """Reads a special token of tokenizer_config.json, text or an object around it; None where there is none."""
        token = self._settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str | None):
            raise UserError(f"{self._folder / 'tokenizer_config.json'}: {name} is {token!r:.60}, expected text")
        return token

    def encode(self, text: str) -> list[int]:
        """Encodes text to ids, without adding special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Decodes ids to text; special tokens are left out unless `special`."""
        return self._tokenizer.decode([int(id) for id in ids], skip_special_tokens=not special)

    def encode_prompt(self, prompt: str | tuple[Message, ...]) -> list[int]:
        """Encodes plain text after the model's beginning-of-sequence id, if any; messages through its chat template."""
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt, add_special_tokens=True).ids
        return self.encode(self.render(prompt))

    def render(self, messages: tuple[Message, ...]) -> str:
        """Renders messages by the model's chat template, thinking on, up to where its own turn begins."""
        template = self._template
        specials = {name: self._special(name) or "" for name in ("bos_token", "eos_token", "pad_token")}
        try:
            return template.render(
                messages=[dict(message) for message in messages],
                tools=None,  # defined, as templates that ask `tools is not none` expect
                documents=None,
                add_generation_prompt=True,
                enable_thinking=True,
                **specials,
            )
        except Exception as error:  # a template may fail as any program may
            raise UserError(f"{self._folder}: its chat template cannot render a prompt ({error})") from None

    @functools.cached_property
    def _template(self):
        import jinja2.sandbox

        file = self._folder / "chat_template.jinja"
        source = self._settings.get("chat_template")
        if file.exists():
            source = file.read_bytes().decode(errors="replace")
        if isinstance(source, list):  # several named templates
            named = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == "default"]
            source = named[0].get("template") if named else None
        if not source or not isinstance(source, str):
            raise UserError(f"{self._folder} has no chat template; use start=cold, which needs none")

        def refuse(message: str):
            raise jinja2.TemplateError(message)

        # The options under which model authors write and test their templates; no strftime_now, as a prompt that holds
        # the date would make a run depend on it (templates that know it fall back on a fixed date).
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = refuse
        try:
            return environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UserError(f"{self._folder}: its chat template is not valid jinja ({error})") from None
