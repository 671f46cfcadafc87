"""Makes the pages of the documentation site that no file in docs/ holds: home, settings, API. Mends links and formulas.

Files in docs/ are written to be read on GitHub: their links to other files of the repository become links to its
address (repo_url of mkdocs.yml), or plain text where that is not given.
"""

import os
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from pymdownx.slugs import slugify

from tsallis_rl.config.listing import settings_page

ROOT = Path(__file__).parents[1]
# Page → its title, a sentence, and the modules that it documents, with the names of each; (): all public ones.
API: dict[str, tuple[str, str, dict[str, tuple[str, ...]]]] = {
    "objectives": (
        "Objectives",
        "Estimators, commitments and the loss, as functions of arrays.",
        {"objectives": (), "objectives.weigh": ("weigh",)},
    ),
    "tasks": (
        "Tasks",
        "What a task of your own is made of, and graders.",
        {
            "tasks.base": (),
            "tasks": ("load_task", "load_with_tokenizer", "LoadedTask", "task_module"),
            "tasks.graders": (),
            "tasks.records": ("read_records",),
            "tasks.releases": ("Release", "Download", "load_release"),
        },
    ),
    "configs": (
        "Configs and grids",
        "What config files and grid files call.",
        {"config": (), "sweeps.grid": ("Block",)},
    ),
    "runs": (
        "Runs and loggers",
        "Training, replaying, regenerating and reading runs from Python; a logger of your own; errors.",
        {
            "training.loop": ("train",),
            "training.replay": ("load", "replay", "Saved", "Replayed"),
            "training.regeneration": ("regenerate",),
            "report.runs": ("read", "Run", "settings", "methods"),
            "runs.loggers": ("RunNames", "Sink"),
            "runs.errors": ("UserError", "one_sentence"),
        },
    ),
    "models": (
        "Models and evaluation",
        "Decoders, pretrained models, and the figures of an evaluation.",
        {
            "models": (),
            "models.pretrained": ("load_pretrained", "save_pretrained"),
            "evaluation.accuracy": (),
            "evaluation.evaluator": ("Evaluator", "Evaluation", "Graded"),
            "exports.export": ("export", "Exported"),
        },
    ),
}
# A fenced block; a link, with its text, target and anchor; code in a line; a subscript that would begin an emphasis.
_LINK = re.compile(
    r"(?ms)^ *(`{3,}|~{3,}).*?^ *\1 *$"
    r"|(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s#]+)(?P<anchor>#[^()\s]*)?\)"
    r"|`[^`\n]+`|(?P<below>_(?=¬))"
)
_GROUP = r"\((?:[^()]|\([^()]*\))*\)"
# A symbol with what stands below and above it, in the notation of docs/: P̂_¬m^(1−q), log_q, e^−45, (1 − u)^k.
_SYMBOL = re.compile(
    r"(?<![\w.])(?<!\w\w/)([^\W_]{1,5}[\u0302-\u0305]?'?|[Σ∇]|(?<=\)))"
    rf"(?=[_^])(?:_(¬?\w{{1,3}}(?!\w)|{_GROUP}|{{[^{{}}]*}}))?(?:\^({_GROUP}|[−-]?(?:\w+|{_GROUP})))?"
)
_CITED = re.compile(r"docs/(\w+)\.md(?: §(\d+))?")
_TAG = re.compile(r"<(/?)(\w+)[^>]*>")
_BLOCK = re.compile(r'(?s)<div class="highlight"><pre><span></span><code>(.*?)\n?</code></pre></div>')


class Stars(griffe.Extension):
    """Keeps the star of y* in docstrings, which are no Markdown, from beginning an emphasis."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Puts an operator's star after letters in the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?<=\w)\*(?!\w)", "∗", obj.docstring.value)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds README as the home page, the table of settings, and the API's pages."""
    pages = {"index.md": (ROOT / "README.md").read_text(encoding="utf-8"), "settings.md": settings_page()}
    for name, (title, told, modules) in API.items():
        parts = [_module(module, names) for module, names in modules.items()]
        pages[f"api/{name}.md"] = "\n\n".join([f"# {title}", told, *parts])
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))


def _module(module: str, names: tuple[str, ...]) -> str:
    """Writes the part of an API's page that documents a module, in the form that mkdocstrings reads."""
    chosen = f"\n      members: [{', '.join(names)}]" if names else ""
    return f"## {module}\n\n::: tsallis_rl.{module}\n    options:\n      heading_level: 3{chosen}"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links to files outside of docs/ at the repository, and README's to docs/ at the site's pages.

    The subscript of P̂_¬m is escaped, which GitHub needs not.
    """
    is_home = page.file.src_uri == "index.md"
    folder = ROOT if is_home else Path(config.docs_dir) / Path(page.file.src_uri).parent

    def mended(match: re.Match) -> str:
        if match["below"]:
            return r"\_"
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        path = Path(os.path.normpath(folder / (target or "")))
        if not target or "://" in target or not path.exists():
            return match[0]
        if path == ROOT / "README.md":
            return f"[{text}](index.md{anchor})"
        if path.is_relative_to(config.docs_dir) and path.is_file():
            return f"{match['image']}[{text}]({path.relative_to(config.docs_dir).as_posix()}{anchor})"
        if not config.repo_url:
            return text
        kind = "tree" if path.is_dir() else "blob"
        return f"[{text}]({config.repo_url.rstrip('/')}/{kind}/main/{path.relative_to(ROOT).as_posix()}{anchor})"

    return _LINK.sub(mended, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Typesets formulas of the pages that are written by hand, and links what cites docs/NAME.md §N."""
    is_written = page.file.src_uri == "index.md" or (Path(config.docs_dir) / page.file.src_uri).is_file()
    if page.file.src_uri == "method.md":
        html = _BLOCK.sub(r'<pre class="formula">\1</pre>', html)
    if page.file.src_uri in ("settings.md", "metrics.md"):  # on a phone their rows are read one below the other
        html = html.replace("<table>", '<div class="fields"><table>').replace("</table>", "</table></div>")
    html = re.sub(r"<code>([^\s<]{1,40})</code>", r'<code class="word">\1</code>', html)  # not broken behind --
    html = html.replace(r"\_¬", "_¬")  # in code, where an escape stays
    parts, inside, at = [], [], 0
    for tag in (*_TAG.finditer(html), None):
        text = html[at : tag.start() if tag else None]
        if is_written and not {"code", "svg", "style"} & {*inside}:
            text = _SYMBOL.sub(_typeset, text)
        if "a" not in inside:
            text = _CITED.sub(lambda match: _linked(match, page, config, files), text)
        parts.append(text)
        if tag:
            parts.append(tag[0])
            at = tag.end()
            if tag[1] and tag[2] in inside:
                del inside[len(inside) - 1 - inside[::-1].index(tag[2]) :]
            elif not tag[1] and tag[2] in ("a", "code", "svg", "style"):
                inside.append(tag[2])
    return "".join(parts)


def _typeset(match: re.Match) -> str:
    """Sets a symbol's subscript and superscript; parentheses that only hold them together go."""
    base, below, above = match.groups(default="")
    if not below and not above:
        return match[0]
    for name, text in (("sub", below), ("sup", above)):
        if text:
            inner = text[1:-1] if text[0] == "{" or re.fullmatch(_GROUP, text) else text
            base += f"<{name}>{_SYMBOL.sub(_typeset, inner)}</{name}>"
    return base


def _linked(match: re.Match, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links docs/NAME.md to its page, and §N to that page's section N."""
    target = files.get_file_from_path(f"{match[1]}.md")
    if target is None or target == page.file:
        return match[0]
    heading = re.search(rf"(?m)^## ({match[2]}\. .*)$", target.content_string) if match[2] else None
    anchor = f"#{slugify(case='lower')(heading[1], '-')}" if heading else ""
    return f'<a href="{get_relative_url(target.url, page.url)}{anchor}">{match[0]}</a>'


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Leaves out the call by which the theme asks the repository's host for its stars while someone reads."""
    return output.replace(' data-md-component="source"', "")
