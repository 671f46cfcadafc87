"""Reads paths as people write them (schemes, ~, names that no file can have), and describes missing ones."""

import errno
import re
from pathlib import Path

from tsallis_rl.runs.errors import UserError

_SCHEME = re.compile(r"[A-Za-z][\w+.-]*://|(gs|s3|hf|https?|file):/")  # the latter are most likely mistyped


def local_path(text: str, flag: str = "") -> Path:
    """Reads a path of this machine, which may begin with ~ or ~user.

    Args:
      text: the path as it was given.
      flag: the flag that gave it, if any; the message then begins with it.

    Raises:
      UserError: it has a scheme, such as http://…; its ~user does not exist; or it is not UTF-8, or holds a NUL.
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
    except UnicodeEncodeError:  # Python represents invalid bytes of a name by lone surrogates
        return False
    return True


def dangling(path: Path) -> str:
    """Describes a dangling link at `path` or at a folder above it; "" if there is none."""
    for part in (path, *path.parents):
        try:
            if part.is_symlink() and not part.exists():
                return f"{part} is a link to {part.readlink()}, which is not there"
        except OSError:
            continue
    return ""


def absent(path: Path) -> str:
    """Describes that nothing is at `path`, or which dangling link leads there."""
    return dangling(path) or f"there is no {path}"


def check_no_device(file: Path) -> None:
    """Raises OSError for a pipe or a device in place of a file: reading it might never end."""
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise OSError(errno.EINVAL, "it is a pipe or a device, no file: remove it", str(file))


def plain_number(text: str) -> int | None:
    """Reads a whole number of at most ten ASCII digits, as this program writes it into names; None for other text."""
    return int(text) if re.fullmatch(r"[0-9]{1,10}", text) else None


def plain_step(name: str) -> int | None:
    """Reads a step as written in names in checkpoints/, without leading zeros; None for other text."""
    found = plain_number(name)
    return found if found is not None and str(found) == name else None


def is_plain_name(name: str) -> bool:
    """Returns whether text can name one file: printable, without a separator, at most 255 bytes."""
    return (
        name.isprintable()
        and name not in ("", ".", "..")
        and not {"/", "\\"} & set(name)
        and len(name.encode(errors="replace")) <= 255
    )
