"""Write small files atomically, read JSON with clear errors, set permissions, and flush files to the disk.

Text is UTF-8, whatever the locale. Symbolic links are not followed when a file is written.
"""

import contextlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, TextIO

from balora.errors import BALoraError

_JSON_KINDS = {list: "list", str: "text", bool: "boolean", type(None): "null"}


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that a reader sees the old content or the new one."""
    temporary = temporary_path(path)
    temporary.unlink(missing_ok=True)  # left by a killed process
    # A file name may have bytes that are no UTF-8, and Python reads them as surrogates, which UTF-8 cannot encode.
    with temporary.open("x", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    os.replace(temporary, path)


def temporary_path(path: Path) -> Path:
    """Return the name under which `write_text` writes a file before it is renamed."""
    return path.with_name(f".{path.name}.tmp")


def open_to_append(path: Path) -> TextIO:
    """Open a text file to append to it, or create it. A symbolic link is an `OSError`."""

    def without_links(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)

    return open(path, "a", encoding="utf-8", opener=without_links)


def delete(path: Path) -> None:
    """Delete a directory with its content as far as possible, or a file or link itself. A missing path is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_json(path: Path, way_out: str = "") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        way_out: Sentence that tells the user what to do when the file cannot be read.

    Raises:
        BALoraError: The file is missing, damaged, or holds something else than an object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text)
    except FileNotFoundError as error:
        raise BALoraError(f"{path} is missing. {way_out}".rstrip()) from error
    except IsADirectoryError as error:
        raise BALoraError(f"{path} is a folder, and must be a file. {way_out}".rstrip()) from error
    except OSError as error:
        raise BALoraError(f"{path} cannot be read: {error.strerror or error}. {way_out}".rstrip()) from error
    except UnicodeDecodeError as error:
        raise BALoraError(f"{path} is damaged: it is not text in UTF-8. {way_out}".rstrip()) from error
    except (ValueError, RecursionError) as error:
        what = f"it is not JSON ({error})" if text.strip() else "it is empty"
        raise BALoraError(f"{path} is damaged: {what}. {way_out}".rstrip()) from error
    if not isinstance(content, dict):
        kind = _JSON_KINDS.get(type(content), "number")
        raise BALoraError(f"{path} is damaged: it holds a {kind}, not a JSON object. {way_out}".rstrip())
    return content


def apply_umask(*paths: Path) -> None:
    """Add the permissions that the user's umask grants to new files; safetensors makes files that only their owner can read.

    Directories and links are left as they are, and so are files on a file system that has no permissions.
    """
    mask = os.umask(0o077)  # the umask can only be read by setting it
    os.umask(mask)
    for path in paths:
        mode = path.lstat().st_mode
        wanted = stat.S_IMODE(mode) | (0o666 & ~mask)
        if stat.S_ISREG(mode) and wanted != stat.S_IMODE(mode):
            with contextlib.suppress(OSError):
                path.chmod(wanted)


def fsync(*paths: Path) -> None:
    """Flush files and directories to the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
