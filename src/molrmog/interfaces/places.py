"""Where a command may write: asked before any work, answered in a line, with nothing changed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from molrmog.folders import room_for, sweep

_BESIDE = 20  # bytes that the name of a temporary file or folder has over that of what it becomes
_INSIDE = 200  # bytes of the longest path inside a run, and some more
_WHY = {errno.ELOOP: "its links lead in a circle", errno.ENAMETOOLONG: "the name is too long"}


def check_folder(out: Path, said: str = "--out", *, beside: bool = False) -> Path:
    """Refuse a folder that cannot be made or written to.

    Args:
        out: the folder; it and its parents need not exist.
        said: the option that names it.
        beside: whether a folder will be written next to it, to be renamed into its place.

    Returns:
        The folder that links lead to; the links stay what they are.

    Raises:
        NotADirectoryError: it, or a parent, is no folder.
        FileNotFoundError: a link leads to nothing.
        PermissionError: nothing can be written there.
        OSError: its name is too long, or its links lead in a circle.
    """
    found = _look(out, said)
    if found is not None and not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{said} {out} is {_kind(found)}: name a folder")
    real = Path(os.path.realpath(out))
    try:
        str(out).encode()
    except UnicodeEncodeError:  # safetensors could not read what it writes there
        raise OSError(f"{said} {out}: the name is not UTF-8, and models are read by no other: name another") from None
    if real == real.parent:
        raise PermissionError(f"{said} {out} is the root of the file system: name a folder")
    _check_room(real, out, said)
    there = next(parent for parent in (real, *real.parents) if parent.is_dir())
    check_writable(there, f"{said} {out}")
    if beside and there == real:
        if os.stat(real).st_dev != os.stat(real.parent).st_dev:
            raise OSError(f"{said} {out} is a disk of its own, and a run is moved into its place: name a folder in it")
        check_writable(real.parent, f"{said} {out}")
    return real


def check_file(path: str | Path, said: str = "--out", *, overwrite: bool) -> Path:
    """Refuse a file that cannot be written, or would be written over.

    Args:
        path: the file; its folder must exist.
        said: the option that names it.
        overwrite: whether a file that is there may be replaced.

    Returns:
        The file that links lead to; the links stay what they are.

    Raises:
        IsADirectoryError: it is a folder, or named like one.
        FileExistsError: it exists and `overwrite` is not set, or it is a device.
        FileNotFoundError: its folder is not there, or a link leads to nothing.
        PermissionError: nothing can be written there.
        OSError: its name is too long, or its links lead in a circle.
    """
    text = os.fspath(path)
    found = _look(Path(path), said)
    if text.endswith(os.sep) or (found is not None and stat.S_ISDIR(found.st_mode)):
        raise IsADirectoryError(f"{said} {text} is a folder: name a file")
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise FileExistsError(f"{said} {text} is {_kind(found)}: name a file")
    if found is not None and not overwrite:
        raise FileExistsError(f"{said} {text} exists: name another file, or pass --overwrite")
    real = Path(os.path.realpath(path))
    _check_room(real, Path(path), said)
    if not real.parent.is_dir():
        raise FileNotFoundError(f"{said} {text}: there is no folder {real.parent}")
    check_writable(real.parent, f"{said} {text}")
    return real


def check_writable(folder: Path, said: str) -> None:
    """Try whether a folder takes another one; rights alone do not tell, of disks that are full or read-only.

    It is a room like that of a file which is being written: whoever comes next removes it where this one is killed.

    Args:
        folder: a folder that exists; it is left as it was, but for what the dead have left half written.
        said: begins the message.

    Raises:
        PermissionError: it takes none.
    """
    sweep(folder)
    try:
        with room_for(folder / "trial"):
            pass
    except OSError as error:
        why = "" if isinstance(error, PermissionError | FileNotFoundError) else f" ({error.strerror})"
        raise PermissionError(f"{said}: {folder} cannot be written to{why}: name another folder") from None


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path is a folder or lies in it, by whichever links."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _look(path: Path, said: str) -> os.stat_result | None:
    """What is there, behind all links; None where nothing is, and something could be.

    Raises:
        OSError: nothing could be.
    """
    if "\0" in os.fspath(path):
        raise OSError(f"{said} {path}: a name cannot hold the character NUL")
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OSError(f"{said} {path}: {_WHY.get(error.errno or 0, error.strerror)}: name another") from None
    for parent in (path, *path.absolute().parents):
        if os.path.lexists(parent):
            if not os.path.exists(parent):
                raise FileNotFoundError(
                    f"{said} {path}: {parent} is a link to {os.readlink(parent)}, which is not there: name another"
                )
            if not os.path.isdir(parent):
                raise NotADirectoryError(
                    f"{said} {path}: {parent} is {_kind(os.stat(parent))}, no folder: name another"
                )
            break
    return None


def _check_room(real: Path, path: Path, said: str) -> None:
    """Refuse names that leave no room for the temporary ones beside them, or for the files inside."""
    if len(os.fsencode(real.name)) + _BESIDE > 255 or len(os.fsencode(real)) + _INSIDE > 4096:
        raise OSError(f"{said} {path}: {_WHY[errno.ENAMETOOLONG]}: name another")


def _kind(found: os.stat_result) -> str:
    """What something is that is no folder."""
    return "a file" if stat.S_ISREG(found.st_mode) else "a device or a pipe, not a file"
