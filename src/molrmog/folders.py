"""Folders that several processes may want at once, and that a process may be killed in.

    locked      one writer at a time: flock on the folder itself, which ends with its process
    swept       what writers that died have left half written is removed; what is being written is not
    replaced    a folder takes the place of another in one step, with all that others keep in the old one

A lock belongs to an inode, and a folder that is replaced has another: whoever has locked a folder looks whether it
still has its name. A folder NAME is made beside its place, in `.NAME.part`, and a file NAME in `.NAME.xxxxxxxx.part/`;
both are locked while they are written, so what can be locked was left by the dead.
"""

from __future__ import annotations

import ctypes
import errno
import filecmp
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

_ROOM = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.part", re.DOTALL)  # a folder in which a file is written
_SCRATCH = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # safetensors writes into one, and renames it


class Lock:
    """A folder that nobody else writes for as long as the block of `locked` runs.

    Attributes:
        folder: what is locked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handles: list[int] = []

    def take(self, folder: Path, run: Path) -> bool:
        """Hold another folder, too: one that is to become `folder`; made where it does not exist.

        Returns:
            Whether it was made.

        Raises:
            BlockingIOError: another process holds it; `run` is what the message names.
            FileNotFoundError: it is a link that leads nowhere.
        """
        made = False
        while True:
            try:
                folder.mkdir(parents=True)
                made = True
            except FileExistsError:
                if folder.is_symlink() and not folder.exists():
                    raise FileNotFoundError(f"{folder} is a link that leads nowhere: name another folder") from None
            except OSError:
                return made  # whoever writes into it will say so
            with suppress(FileNotFoundError):  # removed meanwhile, by whoever held it
                handle = _hold(folder)
                break
        if handle is None:
            return made
        if handle == _HELD:
            raise _busy(run)
        self._handles.append(handle)
        return made

    def holds(self, folder: Path) -> bool:
        """Whether `folder` is still one that is locked here; yes where nothing can be locked."""
        with suppress(OSError):
            found = os.stat(folder)
            return not self._handles or any(os.path.samestat(os.fstat(each), found) for each in self._handles)
        return False

    def close(self) -> None:
        """Let others in."""
        while self._handles:
            os.close(self._handles.pop())


@contextmanager
def locked(folder: Path, run: Path | None = None) -> Generator[Lock]:
    """Keep other processes out of a folder while the block runs; the lock ends with its process, however that ends.

    Nothing is locked where the system or the disk knows no such locks (`flock`).

    Args:
        folder: what is locked; made where it does not exist, and then removed in the end if nothing was put there.
        run: what the message names; the folder where None.

    Raises:
        BlockingIOError: another process holds the folder, or is making one that will take its place.
        FileNotFoundError: the folder is a link that leads nowhere.
    """
    run = run or folder
    recover(folder)
    _refuse_if_staged(folder, run)
    made, lock = False, Lock(folder)
    try:
        made = lock.take(folder, run)
        _refuse_if_staged(folder, run)
        if not lock.holds(folder):
            raise _busy(run)  # a stage took its place, just now
        yield lock
    finally:
        if made:
            with suppress(OSError):  # it holds something, as it should
                folder.rmdir()
        lock.close()


def _refuse_if_staged(folder: Path, run: Path) -> None:
    with suppress(FileNotFoundError):
        handle = _hold(stage_of(folder))
        if handle == _HELD:
            raise _busy(run)
        if handle is not None:
            os.close(handle)


def _busy(run: Path) -> BlockingIOError:
    return BlockingIOError(f"{run} is being written by another process: wait for it, or name another folder")


_HELD = -1


def _hold(folder: Path) -> int | None:
    """A handle that locks a folder; `_HELD` where another process does, None where nothing can be locked.

    What is no folder is not locked.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            return _HELD if isinstance(error, BlockingIOError) else None
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(folder)):
                return handle
        os.close(handle)  # it has been removed since, or another has taken its place


@contextmanager
def room_for(path: Path) -> Generator[Path]:
    """A place beside `path` to write a file of its name into; what is left there in the end is removed.

    Raises:
        OSError: the folder of `path` cannot be written.
    """
    while True:
        room = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        with suppress(FileNotFoundError):
            handle = _hold(room)
            if handle != _HELD:
                break  # nobody took it for one that a dead writer has left, before it was locked
    try:
        yield room / path.name
    finally:
        shutil.rmtree(room, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def sweep(folder: Path, names: Collection[str] = ()) -> None:
    """Remove what writers that died have left half written in a folder.

    Args:
        folder: to sweep; nothing happens where it cannot be read.
        names: files of which earlier releases left parts, `.NAME.xxx.part`; to be named only by who has the folder
            locked.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.name.startswith(".") and entry.name.endswith(".part")]
    except OSError:
        return
    for name in found:
        path = folder / name
        room = _ROOM.fullmatch(name)
        if room and _is_room(path, room[1]):
            _remove_if_dead(path)
        elif _is_former_part(path, names):
            with suppress(OSError):
                path.unlink()


def _is_former_part(path: Path, names: Collection[str]) -> bool:
    """Whether a file is one that earlier releases, killed, have left of a file of these names."""
    known = any(re.fullmatch(rf"\.{re.escape(name)}(\.\w+)?\.part", path.name) for name in names)
    return known and path.is_file() and not path.is_symlink()


def _is_room(path: Path, name: str) -> bool:
    """Whether a folder holds nothing but a file that is being written."""
    try:
        if path.is_symlink() or not path.is_dir():
            return False
        return all((each.name == name or _SCRATCH.fullmatch(each.name)) and each.is_file() for each in path.iterdir())
    except OSError:
        return False


def _remove_if_dead(path: Path) -> None:
    try:
        handle = _hold(path)
    except FileNotFoundError:
        return
    if handle is None or handle == _HELD:
        return
    try:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(handle)


# A folder that takes the place of another.


def stage_of(folder: Path) -> Path:
    """Where a folder is made that will take the place of `folder`, or of what it is a link to."""
    folder = folder.resolve()
    return folder.parent / f".{folder.name}.part"


def former_of(folder: Path) -> Path:
    """Where a folder is while another takes its place, if that needs two steps."""
    folder = folder.resolve()
    return folder.parent / f".{folder.name}.old"


def adopt(source: Path, stage: Path, own: Collection[str]) -> None:
    """Give a folder all that another holds of others: links to the same files, or copies where there are no links.

    Args:
        source: the folder that will be replaced.
        stage: what will replace it.
        own: the names in `source` that are not to be kept.

    Raises:
        OSError: something can neither be linked nor copied.
    """
    device = source.stat().st_dev
    for path in sorted(source.iterdir()):
        if path.name not in own and not _is_part(path, own):
            _adopt(path, stage / path.name, device)
    shutil.copymode(source, stage)


def _adopt(path: Path, target: Path, device: int) -> None:
    about = path.lstat()
    if stat.S_ISDIR(about.st_mode):
        if about.st_dev != device:
            raise OSError(f"{path} is on another disk and cannot be kept in a new run: name another folder")
        target.mkdir()
        for each in sorted(path.iterdir()):
            _adopt(each, target / each.name, device)
        shutil.copystat(path, target)
        return
    try:
        os.link(path, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        if stat.S_ISLNK(about.st_mode):
            target.symlink_to(os.readlink(path))
        elif stat.S_ISREG(about.st_mode):
            shutil.copy2(path, target)
        else:
            raise OSError(f"{path} is no file and cannot be kept in a new run: name another folder") from None


def _is_part(path: Path, own: Collection[str]) -> bool:
    """Whether something was left by a writer that died."""
    room = _ROOM.fullmatch(path.name)
    return bool(room and _is_room(path, room[1])) or _is_former_part(path, own)


def exchange(stage: Path, folder: Path) -> Path:
    """Let `stage` take the place of `folder`, in one step where the system can.

    Args:
        stage: a folder that is whole, beside `folder`.
        folder: what is replaced; nothing may be there.

    Returns:
        Where the old folder is now; nothing is there if there was none.

    Raises:
        OSError: they cannot be renamed; both are as they were, or `recover` will make them so.
    """
    if not folder.exists() or not any(folder.iterdir()):
        os.rename(stage, folder)  # an empty folder gives way, one into which something was put meanwhile does not
        return stage
    if _swap(stage, folder):
        return stage
    former = former_of(folder)
    os.rename(folder, former)
    try:
        os.rename(stage, folder)
    except OSError:
        os.rename(former, folder)
        raise
    return former


def recover(folder: Path) -> None:
    """Give back its name to a folder whose writer was killed between the two renames of an exchange."""
    if folder.exists():
        return
    former = former_of(folder)
    if not former.is_dir() or former.is_symlink():
        return
    with suppress(OSError):
        handle = _hold(former)
        if handle == _HELD:
            return
        try:
            os.rename(former, folder.resolve())
        finally:
            if handle is not None:
                os.close(handle)


_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, ctypes.c_uint(2), ctypes.c_uint(2)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the disk cannot.

    Raises:
        OSError: it can, and failed.
    """
    names = os.fsencode(one), os.fsencode(other)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform.startswith("linux"):
            failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
        elif sys.platform == "darwin":
            failed = libc.renamex_np(names[0], names[1], _RENAME_SWAP)
        else:
            return False
    except (OSError, AttributeError, TypeError):
        return False
    if failed and (code := ctypes.get_errno()) not in _UNKNOWN:
        raise OSError(code, os.strerror(code), str(other))
    return not failed


def discard(old: Path, folder: Path, own: Collection[str]) -> None:
    """Remove a folder that another has replaced, or that never took a place; see :func:`clear`."""
    clear(old, folder, own)
    if old.is_dir() and not old.is_symlink():
        old.rmdir()


def clear(old: Path, folder: Path, own: Collection[str]) -> None:
    """Empty such a folder; what is of others is kept in `folder`.

    Args:
        old: the folder to empty, with links to or copies of what `folder` holds of others.
        folder: where what is missing of these goes, if it exists.
        own: the names in `old` that nobody misses.

    Raises:
        OSError: `old` holds something of others which has no place in `folder`; it stays.
    """
    if old.is_symlink() or not old.is_dir():
        return
    mine = [path for path in old.iterdir() if path.name in own or _is_part(path, own)]
    for path in sorted(set(old.iterdir()) - set(mine)):
        _give_back(path, folder / path.name, made=bool(mine))
    for path in mine:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _give_back(path: Path, target: Path, made: bool) -> None:
    """Let `target` be the newer of both, and `path` be gone; `made` says that `path` is known to be a second name."""
    about = path.lstat()
    if not os.path.lexists(target):
        if not target.parent.is_dir():
            raise OSError(f"{path} is in the way and of no run: move it elsewhere")
        os.rename(path, target)
    elif stat.S_ISDIR(about.st_mode) and target.is_dir() and not target.is_symlink():
        for each in sorted(path.iterdir()):
            _give_back(each, target / each.name, made)
        path.rmdir()
    elif _same(path, target) or (made and about.st_mtime_ns <= target.lstat().st_mtime_ns):
        path.unlink()
    elif made and stat.S_ISREG(about.st_mode) and stat.S_ISREG(target.lstat().st_mode):
        os.replace(path, target)  # written while the folder was being replaced
    else:
        raise OSError(f"{path} is not what {target} is: keep the one you want, and move the other elsewhere")


def _same(one: Path, other: Path) -> bool:
    if os.path.samestat(one.lstat(), other.lstat()):
        return True
    if one.is_symlink() and other.is_symlink():
        return os.readlink(one) == os.readlink(other)
    if one.is_symlink() or other.is_symlink():
        return False
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
