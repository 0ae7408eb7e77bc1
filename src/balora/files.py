"""Write small files atomically, read JSON with clear errors, set permissions, and flush files to the disk."""

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from balora.errors import BALoraError

_JSON_KINDS = {list: "list", str: "text", bool: "boolean", type(None): "null"}


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that a reader sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


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
