"""Tokenisers of pretrained models' folders."""

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.runs.paths import dangling
from tsallis_rl.tasks.base import Message
from tsallis_rl.tasks.chat_template import ChatTemplate, template_source
from tsallis_rl.tasks.tokenizers import END_OF_THINK, PROBE, SentencePieceTokenizer, Tokenizer, hash_texts, id_gaps

if TYPE_CHECKING:
    import tokenizers

_CONTROL = re.compile(r"[<\[]\S+[>\]]")  # form of control tokens that are not marked as special: <think>, [INST]
_PRIVATE = range(0xE000, 0xF8FF)  # code points that no script uses


def pretrained_tokenizer(folder: Path) -> Tokenizer:
    """Reads the tokeniser of a pretrained model's folder: tokenizer.json, or a sentencepiece tokenizer.model.

    Raises:
      UserError: the folder has neither, or it cannot be read.
    """
    if (folder / "tokenizer.json").exists():
        return HuggingFaceTokenizer(folder)
    if (folder / "tokenizer.model").exists():
        return PublishedSentencePiece(folder)
    links = [found for name in ("tokenizer.json", "tokenizer.model") if (found := dangling(folder / name))]
    found = links[0] if links else "the folder holds neither tokenizer.json nor tokenizer.model"
    raise UserError(f"config.model.size={str(folder)!r}: {found}; copy the model's folder again")


def _settings(file: Path) -> dict[str, Any]:
    """Reads a settings file beside tokenizer.json, or returns {} if the folder lacks it."""
    return read_object(file) if file.exists() else {}


def _listed_stops(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """Reads the ids that generation_config.json names as ends of a sequence."""
    file = folder / "generation_config.json"
    listed = _settings(file).get("eos_token_id")
    listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
    for id in listed:
        if not isinstance(id, int) or not 0 <= id < vocab_size:
            raise UserError(f"{file}: eos_token_id {id!r:.60} is no id of the tokeniser")
    return tuple(listed)


class PublishedSentencePiece(SentencePieceTokenizer):
    """Tokeniser of a model's folder that has tokenizer.model only."""

    def __init__(self, folder: Path):
        file = folder / "tokenizer.model"
        super().__init__(file.read_bytes(), name=str(file))
        self._folder = folder
        self._has_template = template_source(folder, _settings(folder / "tokenizer_config.json")) is not None
        if listed := _listed_stops(folder, self.vocab_size):
            self.stop_sources = {file.name: self.stop_ids, "generation_config.json": listed}
            self.stop_ids = tuple(dict.fromkeys((*self.stop_ids, *listed)))

    def encode_prompts(self, prompts: Sequence[str | tuple[Message, ...]], think_prefix: str = "") -> list[list[int]]:
        """Encodes prompts as `encode_prompt` does, on all cores."""
        if self._has_template and not all(isinstance(prompt, str) for prompt in prompts):
            return [self.encode_prompt(prompt, think_prefix) for prompt in prompts]
        return super().encode_prompts(prompts, think_prefix)

    def encode_prompt(self, prompt: str | tuple[Message, ...], think_prefix: str = "") -> list[int]:
        """Encodes a prompt; refuses messages if the folder has a chat template, which needs tokenizer.json.

        Raises:
          UserError: the prompt is messages, and the folder has a chat template.
        """
        if self._has_template and not isinstance(prompt, str):
            raise UserError(
                f"{self._folder} has a chat template, which needs tokenizer.json, but only tokenizer.model; make "
                "tokenizer.json with transformers (AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)), or "
                "use start=cold"
            )
        return super().encode_prompt(prompt, think_prefix)


class HuggingFaceTokenizer:
    """Tokeniser of a model's folder: tokenizer.json, and the chat template and special tokens of the files beside it.

    Control tokens are the added tokens that are marked as special, those that the chat template writes, </think>, and
    those whose ids the model has no embedding for.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        file = folder / "tokenizer.json"
        self._tokenizer = _load(file)
        self._ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self._settings = _settings(folder / "tokenizer_config.json")
        self._map = _settings(folder / "special_tokens_map.json")
        added = self._tokenizer.get_added_tokens_decoder()
        config = _settings(folder / "config.json")
        text_part = config.get("text_config")  # in the config of a model of text and images
        rows = (text_part if isinstance(text_part, dict) else config).get("vocab_size")
        if isinstance(rows, int) and all(id in added for id in self._ids.values() if id >= rows):
            beyond = {id for id in self._ids.values() if id >= rows}
        else:
            beyond = set()
        self.vocab_size = max(set(self._ids.values()) - beyond, default=-1) + 1  # ids may have gaps
        source = template_source(folder, self._settings) or ""
        self._controls = {
            token.content: id
            for id, token in added.items()
            if token.special
            or id in beyond
            or token.content == END_OF_THINK
            or (_CONTROL.fullmatch(token.content) and token.content in source)
        }
        self._spelt = re.compile("|".join(map(re.escape, sorted(self._controls, key=len, reverse=True))) or r"(?!)")
        self.end_of_think = self._ids.get(END_OF_THINK)
        self.stop_sources = self._find_stop_sources()
        self.stop_ids = tuple(dict.fromkeys(itertools.chain(*self.stop_sources.values())))
        self.pad = self._ids.get(self._special("pad_token"), self.stop_ids[0] if self.stop_ids else 0)
        self.fingerprint = _hash_folder(folder)

    def _find_stop_sources(self) -> dict[str, tuple[int, ...]]:
        """Finds the stop ids: file -> the ids that its eos_token or eos_token_id names."""
        listed = _listed_stops(self._folder, self.vocab_size)
        own = self._ids.get(self._special("eos_token"))
        sources = {"tokenizer_config.json": () if own is None else (own,), "generation_config.json": listed}
        return {name: ids for name, ids in sources.items() if ids}

    def _special(self, name: str) -> str | None:
        """Reads a special token, as text or in an object, from the files that may name it; None if none does."""
        for file, settings in (("tokenizer_config.json", self._settings), ("special_tokens_map.json", self._map)):
            token = settings.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if not isinstance(token, str | None):
                raise UserError(f"{self._folder / file}: {name} is {token!r:.60}, expected text")
            if token is not None:
                return token
        return None

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Encodes text to ids, without adding any; control tokens spelt in it are plain text unless `special`."""
        if special or not self._spelt.search(text):
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if set(ids) & set(self._controls.values()):  # the vocabulary has them among its pieces
            apart = self._spelt.sub(lambda found: f"{found[0][:1]}\0{found[0][1:]}", text).split("\0")
            ids = [id for part in apart for id in self._plain.encode(part, add_special_tokens=False).ids]
        return ids

    @functools.cached_property
    def _plain(self):
        """The tokeniser that reads its control tokens as text; all ids stay the same."""
        import tokenizers

        file = self._folder / "tokenizer.json"
        with _reading(file):
            fields = read_object(file)
            # Ids of added tokens follow from their order, so none can be taken out.
            for token in fields.get("added_tokens") or []:
                token["special"] = token["content"] in self._controls
            plain = _whole(tokenizers.Tokenizer.from_str(json.dumps(fields)))
            plain.encode_special_tokens = True
            return plain

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Decodes ids to text; special tokens are left out unless `special`."""
        return self._tokenizer.decode([int(id) for id in ids], skip_special_tokens=not special)

    def encode_prompt(self, prompt: str | tuple[Message, ...], think_prefix: str = "") -> list[int]:
        """Encodes plain text after the ids that begin a sequence, if any; messages through the model's chat template.

        Ids that the folder's post-processor would append are left out, since the model continues the sequence.
        """
        (ids,) = self.encode_prompts([prompt], think_prefix)
        return ids

    def encode_prompts(self, prompts: Sequence[str | tuple[Message, ...]], think_prefix: str = "") -> list[list[int]]:
        """Encodes prompts as `encode_prompt` does, on all cores."""
        prefix = self.encode(think_prefix, special=True)
        pieces = [(i, *piece) for i, prompt in enumerate(prompts) for piece in self._pieces(prompt)]
        rows = [[] if not isinstance(prompt, str) else [*self._begin] for prompt in prompts]
        for (i, _, _), ids in zip(pieces, self._encode_all([piece[1:] for piece in pieces]), strict=True):
            rows[i] += ids
        return [row + prefix for row in rows]

    def _pieces(self, prompt: str | tuple[Message, ...]) -> list[tuple[str, bool]]:
        """Splits a prompt into texts, each with whether control tokens spelt in it count as control tokens."""
        if isinstance(prompt, str):
            return [(prompt, False)]
        messages, marks, spelt = self._mark(prompt)
        parts = re.split(f"{marks[0]}(\\d+){marks[1]}", self.render(messages))
        return [(spelt[int(part)], False) if i % 2 else (part, True) for i, part in enumerate(parts)]

    def _encode_all(self, pieces: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Encodes texts as `encode` does, in one batch those in which no control token is plain text."""
        whole = [i for i, (text, special) in enumerate(pieces) if special or not self._spelt.search(text)]
        found = self._tokenizer.encode_batch_fast([pieces[i][0] for i in whole], add_special_tokens=False)
        at_once = {i: encoding.ids for i, encoding in zip(whole, found, strict=True)}
        return [at_once[i] if i in at_once else self.encode(*piece) for i, piece in enumerate(pieces)]

    def _mark(self, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str, list[str]]:
        """Replaces control tokens spelt in messages by numbers between two characters that occur in no message.

        Returns:
          the messages, the two characters, and what was replaced.
        """
        said = "".join(message["content"] for message in messages)
        unused = (chr(code) for code in _PRIVATE if chr(code) not in said)
        marks, spelt = next(unused) + next(unused), []

        def mark(found: re.Match) -> str:
            spelt.append(found[0])
            return f"{marks[0]}{len(spelt) - 1}{marks[1]}"

        marked = tuple({**message, "content": self._spelt.sub(mark, message["content"])} for message in messages)
        return marked, marks, spelt

    @functools.cached_property
    def _begin(self) -> list[int]:
        """The ids before a plain text: the post-processor's, or bos_token if the settings ask for it."""
        plain, whole = (self._tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
        starts = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
        begin = whole[: starts[0]] if starts else []
        bos = self._ids.get(self._special("bos_token"))
        return [bos] if not begin and bos is not None and self._settings.get("add_bos_token") is True else begin

    def render(self, messages: tuple[Message, ...]) -> str:
        """Renders messages by the model's chat template, with thinking on, up to the beginning of the model's turn."""
        return self._template.render(messages)

    @functools.cached_property
    def end_of_turn(self) -> int | None:
        """The first control token that the chat template puts after an assistant's turn, or None."""
        if not template_source(self._folder, self._settings):
            return None
        controls = set(self._controls.values())
        after = self.encode(self._template.after_assistant(), special=True)
        return next((id for id in after if id in controls), None)

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        source = template_source(self._folder, self._settings)
        if source is None:
            raise UserError(f"{self._folder} has no chat template; use start=cold, which needs none")
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return ChatTemplate(self._folder, source, {name: self._special(name) or "" for name in names})

    def absent_ids(self, rows: int) -> tuple[tuple[int, int], ...]:
        """Finds the ids below `rows` that have no token, as ranges [start, stop)."""
        return id_gaps(self._ids.values(), rows)


def _hash_folder(folder: Path) -> str:
    """Hashes the files and the library versions that determine how a folder's tokeniser encodes prompts."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json", "chat_template.jinja")
    files = [folder / name for name in names]
    versions = [metadata.version(name) for name in ("tokenizers", "jinja2")]
    return hash_texts([*versions, *(file.read_bytes() if file.exists() else b"" for file in files)])


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns whatever the library raises over a file into a UserError."""
    try:
        yield
    except BaseException as error:  # the library raises nothing narrower, and its panics are no Exceptions
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UserError(f"{file} cannot be read ({error}); copy the folder again") from None


def _load(file: Path):
    """Reads tokenizer.json.

    Raises:
      UserError: it cannot be read, or cannot encode and decode text.
    """
    import tokenizers

    with _reading(file):
        tokenizer = _whole(tokenizers.Tokenizer.from_file(str(file)))
        tokenizer.get_vocab(with_added_tokens=True)
        tokenizer.decode(tokenizer.encode(PROBE).ids)
    return tokenizer


def _whole(tokenizer: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """Switches off a tokeniser's truncation and padding: settings of another program's training, kept in its file."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
