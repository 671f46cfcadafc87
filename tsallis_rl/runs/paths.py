"""Paths as people write them: schemes, ~ and names that no file can have; and what to say of one that is not there."""

import errno
import re
from pathlib import Path

from tsallis_rl.runs.errors import UserError

_SCHEME = re.compile(r"[A-Za-z][\w+.-]*://|(gs|s3|hf|https?|file):/")  # the latter are most likely mistyped


def local_path(text: str, flag: str = "") -> Path:
    """Reads a path of this machine, with ~ or ~user at its head.

    Args:
      text: as it was given.
      flag: by which; begins the message where it is told.

    Raises:
      UserError: it is of a scheme, as http://…; of a user who is not there; or its name is not UTF-8.
    """
    who = f"{flag}={text}" if flag else text
    if found := _SCHEME.match(text):
        raise UserError(
            f"{who}: {found[0]} is neither read nor written here; copy it and name the local path (gs:// and s3:// are "
            "for --workdir, and for models, data and runs that are read; hf:// is for models)"
        )
    if "\0" in text or not _is_utf8(text):
        raise UserError(f"{who!a}: the name is not UTF-8, or holds a NUL; rename it, and name it again")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0].removeprefix("~")
        reason = f"there is no user {user} here" if user else "this user has no home folder, and HOME is not set"
        raise UserError(f"{who}: {reason}; write the path without ~, or as ./~… if that is its name") from None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # Python spells bytes of a name that are none as halves of surrogate pairs
        return False
    return True


def dangling(path: Path) -> str:
    """Says that `path`, or a folder above it, is a link to nothing; "" where none is."""
    for part in (path, *path.parents):
        try:
            if part.is_symlink() and not part.exists():
                return f"{part} is a link to {part.readlink()}, which is not there"
        except OSError:
            continue
    return ""


def absent(path: Path) -> str:
    """Says that nothing is at `path`, and which link leads there."""
    return dangling(path) or f"there is no {path}"


def check_no_device(file: Path) -> None:
    """Raises OSError for a pipe or a device in the place of a file, which may be waited for, or read, without end."""
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise OSError(errno.EINVAL, "it is a pipe or a device, no file: remove it", str(file))


def plain_number(text: str) -> int | None:
    """Reads a whole number as this program writes it into names: of ten ASCII digits at most; None for other text."""
    return int(text) if re.fullmatch(r"[0-9]{1,10}", text) else None


def plain_step(name: str) -> int | None:
    """Reads a step as names in checkpoints/ have it: without leading zeros; None for other text."""
    found = plain_number(name)
    return found if found is not None and str(found) == name else None


def is_plain_name(name: str) -> bool:
    """Tells whether text is the name of one file: printable, without a separator, no longer than names can be."""
    return (
        name.isprintable()
        and name not in ("", ".", "..")
        and not {"/", "\\"} & set(name)
        and len(name.encode(errors="replace")) <= 255
    )
