"""A model's chat template: turns messages into the text that the model was trained to read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Message


class _Generation(jinja2.ext.Extension):
    """The tags {% generation %} … {% endgeneration %}, which mark an assistant's tokens and change no text."""

    tags: ClassVar = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Parses the tags to the nodes between them."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


class UnrenderedPrompt(UserError):
    """A prompt that a chat template cannot render, which may be that prompt's fault."""


class ChatTemplate:
    """The chat template of a model's folder, run in a sandbox.

    Args:
      folder: the model's folder, named in messages.
      source: the template's text.
      specials: name -> text of the special tokens that templates ask for.

    Raises:
      UserError: the template is not valid, or writes the same whatever is asked.
    """

    def __init__(self, folder: Path, source: str, specials: Mapping[str, str]):
        # The options with which model authors write and test their templates. strftime_now is left out, since a prompt
        # with the date would make a run depend on it (templates that know it fall back on a fixed date).
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _refuse
        self.source, self._folder, self._specials = source, folder, specials
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UserError(f"{folder}: its chat template is not valid jinja ({error})") from None
        if self._ignores_content():
            raise UserError(
                f"{folder}: its chat template writes the same whatever a message says, so no prompt would reach the "
                "model; put the model's own template back, or use start=cold, which needs none"
            )

    def _ignores_content(self) -> bool:
        """Returns whether two different questions are rendered as the same text."""
        system: Message = {"role": "system", "content": "answer"}
        for before in ((), (system,)):  # some expect a system's message first, and render what follows
            try:
                one, other = (self.render((*before, {"role": "user", "content": asked})) for asked in ("one", "other"))
            except UnrenderedPrompt:  # told when a prompt of the task is rendered
                return False
            if one != other:
                return False
        return True

    def render(self, messages: tuple[Message, ...], *, generates: bool = True) -> str:
        """Renders messages with thinking on; `generates` adds the beginning of the model's own turn.

        Raises:
          UnrenderedPrompt: the template fails, as any program may, or refuses the messages.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,  # defined, as templates that ask `tools is not none` expect
                documents=None,
                add_generation_prompt=generates,
                enable_thinking=True,
                **self._specials,
            )
        except Exception as error:
            raise UnrenderedPrompt(f"{self._folder}: its chat template cannot render a prompt ({error})") from None

    def after_assistant(self) -> str:
        """Finds the text that the template puts after an assistant's turn; "" if it cannot render one."""
        said = "said-by-the-assistant"
        try:
            text = self.render(
                ({"role": "user", "content": "asked"}, {"role": "assistant", "content": said}), generates=False
            )
        except UserError:
            return ""
        return text.rpartition(said)[2] if said in text else ""


def template_source(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Reads the template of a model's folder, from chat_template.jinja or tokenizer_config.json, or None."""
    file = folder / "chat_template.jinja"
    source = settings.get("chat_template")
    if file.exists():
        source = file.read_bytes().decode(errors="replace")
    if isinstance(source, list):  # several named templates
        named = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == "default"]
        source = named[0].get("template") if named else None
    return source if isinstance(source, str) and source else None
