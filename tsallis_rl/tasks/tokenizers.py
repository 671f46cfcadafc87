"""Tokenisers with one small interface: text to ids and back, and the special ids that a model's files name."""

import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Protocol

from tsallis_rl.runs.cache import write_whole
from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Message, Split
from tsallis_rl.tasks.checked_files import read_checked, sha256, write_checked

END_OF_THINK = "</think>"
PROBE = "A tokeniser that cannot read this é, 12 or decode itself is damaged.\n"


class Tokenizer(Protocol):
    """Interface that tokenisers have for the rest of the project.

    Control tokens structure a sequence: begin, end, roles, end-of-think. Text never yields their ids, even if it
    spells them; a chat template and `special` do.

    Attributes:
      vocab_size: number of ids, V.
      pad: id that fills unused positions; attention never reads it.
      end_of_think: id of the model's own </think>, or None if it has none.
      stop_ids: ids that the model's files name as ends of a sequence, the tokeniser's own first.
      stop_sources: file -> the stop ids that it names.
      end_of_turn: id that the chat template puts after an assistant's turn; None without a template, or if it puts no
        control token there.

    Two members may be absent: `encode_prompts(prompts, think_prefix)`, which encodes many at once, and `fingerprint`, a
    text that changes whenever any prompt's ids do. Encoded splits are cached under it.
    """

    vocab_size: int
    pad: int
    end_of_think: int | None
    stop_ids: tuple[int, ...]
    stop_sources: Mapping[str, tuple[int, ...]]
    end_of_turn: int | None

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Encodes text to ids, without adding any; control tokens spelt in it are plain text unless `special`."""
        ...

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Decodes ids to text; special tokens are left out unless `special`."""
        ...

    def encode_prompt(self, prompt: str | tuple[Message, ...], think_prefix: str = "") -> list[int]:
        """Encodes a prompt, plain text or chat messages, followed by the rationale's prefix."""
        ...

    def absent_ids(self, rows: int) -> tuple[tuple[int, int], ...]:
        """Finds the ids below `rows` that have no token, as ranges [start, stop)."""
        ...


def hash_texts(texts: Iterable[str | bytes]) -> str:
    """Hashes some texts, each with its length, to sixteen hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8) + data)
    return digest.hexdigest()[:16]


def id_gaps(ids: Iterable[int], rows: int) -> tuple[tuple[int, int], ...]:
    """Finds the numbers below `rows` that are not among `ids`, as ranges [start, stop)."""
    known = [-1, *sorted(id for id in set(ids) if id < rows), rows]
    return tuple((a + 1, b) for a, b in itertools.pairwise(known) if b > a + 1)


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
        self.stop_ids, self.stop_sources = (3,), {}
        self.end_of_turn = None
        self.fingerprint = hash_texts(("words", *self.words))

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Encodes text to ids, control tokens too; raises KeyError on a word outside the vocabulary."""
        return [self._ids[word] for word in text.split()]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Decodes ids to words with spaces between them; special tokens are left out unless `special`."""
        return " ".join(self.words[i] for i in ids if special or i >= len(self.SPECIAL))

    def encode_prompt(self, prompt: str | tuple[Message, ...], think_prefix: str = "") -> list[int]:
        """Encodes a plain-text prompt after <bos>."""
        if not isinstance(prompt, str):
            raise ValueError("a WordTokenizer has no chat template; give it plain text")
        return [self.bos, *self.encode(prompt), *self.encode(think_prefix)]

    def absent_ids(self, rows: int) -> tuple[tuple[int, int], ...]:
        """Finds the ids below `rows` that have no word: those after the last."""
        return id_gaps(range(self.vocab_size), rows)


def _plain_text(prompt: str | tuple[Message, ...]) -> str:
    """Writes a prompt as text: the contents of messages, each followed by a blank line."""
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt) + "\n\n"


class SentencePieceTokenizer:
    """Sentencepiece model with <bos>, <eos>, <pad> and </think> as control pieces, whose ids text never yields.

    Reversible on any Unicode text: `decode(encode(text)) == text`. Chat messages are read as their contents, separated
    by blank lines, for models that are trained here and have no chat template. A published tokenizer.model may lack
    </think>.
    """

    # sentencepiece writes a space as this character. In text it is spelt in bytes, else it would decode to a space.
    _SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

    def __init__(self, model: bytes, name: str = "the sentencepiece model"):
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._model.decode(self._model.encode(PROBE))
            self._model.id_to_piece(list(range(self._model.vocab_size())))
        except (RuntimeError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
            raise UserError(f"{name} cannot be read ({error}); remove it, or copy it again") from None
        self.vocab_size = self._model.vocab_size()
        end_of_think = self._model.piece_to_id(END_OF_THINK)
        self.end_of_think = None if end_of_think == self._model.unk_id() else end_of_think
        self.bos, eos = self._model.bos_id(), self._model.eos_id()
        if eos < 0:
            raise UserError(f"{name} has no end of sequence; add that piece, or use tokenizer.json")
        self.stop_ids: tuple[int, ...] = (eos,)
        self.stop_sources: Mapping[str, tuple[int, ...]] = {}
        self.end_of_turn: int | None = None
        self.pad = self._model.pad_id() if self._model.pad_id() >= 0 else eos
        controls = [id for id in range(self.vocab_size) if self._model.is_control(id)]
        self._controls = {self._model.id_to_piece(id): id for id in controls}
        self.fingerprint = hash_texts(("sentencepiece", metadata.version("sentencepiece"), model))
        self._space_ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in self._SPACE.encode()]

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Encodes text to ids; control pieces spelt in it are plain text unless `special`."""
        ids: list[int] = []
        if special:
            for part in re.split(f"({'|'.join(map(re.escape, self._controls))})", text):
                ids += [self._controls[part]] if part in self._controls else self.encode(part)
            return ids
        for i, part in enumerate(text.split(self._SPACE)):
            ids += (self._space_ids if i else []) + self._model.encode(part)
        return ids

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Decodes ids to text; leaves out control pieces unless `special`, and always ids that are no piece."""
        known = (int(id) for id in ids if id < self.vocab_size)
        runs = itertools.groupby(known, key=self._model.is_control)
        return "".join(
            "".join(self._model.id_to_piece(id) for id in run) * special if control else self._model.decode(list(run))
            for control, run in runs
        )

    def encode_prompt(self, prompt: str | tuple[Message, ...], think_prefix: str = "") -> list[int]:
        """Encodes a prompt after the beginning-of-sequence id, if there is one."""
        return self._around(self.encode(_plain_text(prompt)), think_prefix)

    def encode_prompts(self, prompts: Sequence[str | tuple[Message, ...]], think_prefix: str = "") -> list[list[int]]:
        """Encodes prompts as `encode_prompt` does, on all cores."""
        texts = [_plain_text(prompt) for prompt in prompts]
        whole = [i for i, text in enumerate(texts) if self._SPACE not in text]
        found = dict(
            zip(whole, self._model.encode([texts[i] for i in whole], num_threads=os.cpu_count() or 1), strict=True)
        )
        return [
            self._around(found[i] if i in found else self.encode(text), think_prefix) for i, text in enumerate(texts)
        ]

    def _around(self, ids: list[int], think_prefix: str) -> list[int]:
        """Puts the beginning-of-sequence id, if there is one, before a prompt's ids, and the think prefix after."""
        begin = [self.bos] if self.bos >= 0 else []
        return [*begin, *ids, *self.encode(think_prefix, special=True)]

    def absent_ids(self, rows: int) -> tuple[tuple[int, int], ...]:
        """Finds the ids below `rows` that are no piece: those after the last."""
        return id_gaps(range(self.vocab_size), rows)


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


def sentencepiece_tokenizer(file: Path) -> SentencePieceTokenizer:
    """Reads a sentencepiece model's file."""
    return SentencePieceTokenizer(file.read_bytes(), name=str(file))


def trained_tokenizer(train: Split, vocab_size: int, cache: Path) -> SentencePieceTokenizer:
    """Trains a sentencepiece tokeniser on the split's first 2,000 prompts and answers, or reads it from the cache.

    Raises:
      UserError: there is no example, or no tokeniser of this size can be trained on the text.
    """
    if not train.examples:
        reasons = "; ".join(f"{count} left out: {reason}" for reason, count in train.dropped.items())
        reasons = reasons or "it has no records, or all of them have prompts of another split"
        raise UserError(
            f"no example of the train split can be used: {reasons}; correct config.task, or the records, so that some "
            "are left"
        )
    texts = []
    for example in train.examples[:2000]:
        prompt = example.prompt
        texts += [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        texts.append(example.answer)
    key = hashlib.sha256("\0".join([str(vocab_size), *texts]).encode()).hexdigest()[:16]
    file = cache / f"sentencepiece-{key}.model"
    known = file.with_suffix(".sha256")  # of the model file: a damaged one may still load, and give other ids
    if not file.exists() or read_checked(known) != sha256(file):
        model = train_sentencepiece(texts, vocab_size)
        write_whole(file, model)
        write_checked(known, hashlib.sha256(model).hexdigest())
    return sentencepiece_tokenizer(file)


def vocabulary_fingerprint(tokenizer: Tokenizer) -> str:
    """Hashes the text of every id, several at a time."""
    digest, count = hashlib.sha256(str(tokenizer.vocab_size).encode()), 64
    for first in range(0, tokenizer.vocab_size, count):
        ids = list(range(first, min(first + count, tokenizer.vocab_size)))
        digest.update(tokenizer.decode(ids, special=True).encode(errors="replace") + b"\0")
    return digest.hexdigest()[:16]
