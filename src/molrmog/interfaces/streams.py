r"""What the command line writes to: stdout and stderr of any encoding, full, closed, or with a reader that has gone.

Writing never raises. What an encoding lacks is spelled in ASCII: our own signs by their like (- for a minus sign), all
else by its code (`caf\xe9`), so that a path can be told from any other. What a stream does not take is remembered, so
that the work goes on to its end and keeps its files; :meth:`Outputs.settle` says so then, by a line and an exit code.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

BROKEN_PIPE = 141  # as a shell says of a process that the lack of a reader has ended
_PLAIN = {"−": "-", "–": "-", "…": "...", "×": "x", "·": "-", "±": "+-", "≥": ">=", "“": '"', "”": '"', "’": "'"}
_ERRORS = "molrmog.plain"


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Spell in ASCII what an encoding lacks: a handler of errors, see `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    if lost == "é" and error.object.startswith("Fréchet", error.start - 2):
        return "e", error.end
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost), error.end


codecs.register_error(_ERRORS, _plain)


class _Sink(io.RawIOBase):
    """Takes all bytes, hands them on, and remembers why that failed.

    Attributes:
        error: the first failure; nothing is handed on after it.
    """

    def __init__(self, target: Any) -> None:
        self.target = target
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        with suppress(Exception):
            return bool(self.target.isatty())
        return False

    def fileno(self) -> int:
        if self.target is None:
            raise io.UnsupportedOperation("fileno")
        return self.target.fileno()

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            if self.error is None and size:
                if self.target is None:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                while left:
                    taken = self.target.write(left)
                    if taken is None:  # a pipe that does not block, and is full
                        select.select([], [self.target], [])
                        continue
                    left = left[taken:]
                self.target.flush()
        except OSError as error:
            self.error = error
        except ValueError:  # somebody has closed it
            self.error = OSError(errno.EBADF, os.strerror(errno.EBADF))
        return size


class Outputs:
    """The two streams of a command, see :func:`guarded`.

    Attributes:
        stdout: what takes the results.
        stderr: what takes all else.
    """

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        self.stdout, self.stderr = stdout, stderr

    def settle(self, code: int) -> int:
        """Hand on what is still held, and say so where results were lost.

        Args:
            code: the exit code of the work.

        Returns:
            That code; where the work succeeded and its results could not be written 1, or 141 where their reader went.
        """
        for stream in (self.stdout, self.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        lost = _lost(self.stdout)
        if lost is None or code:
            return code
        if lost.errno == errno.EPIPE:
            return BROKEN_PIPE
        print(
            f"molrmog: error: stdout: {lost.strerror}: results could not be written, files are kept", file=self.stderr
        )
        with suppress(OSError, ValueError):
            self.stderr.flush()
        return 1


@contextmanager
def guarded() -> Generator[Outputs]:
    """Replace `sys.stdout` and `sys.stderr` while the block runs by streams that take everything.

    Yields:
        Outputs: the two of them.
    """
    before = sys.stdout, sys.stderr
    # A stream of another kind, such as a notebook's or a StringIO, takes any text by itself.
    sys.stdout, sys.stderr = (_wrapped(stream) or stream for stream in before)
    try:
        yield Outputs(sys.stdout, sys.stderr)
    finally:
        sys.stdout, sys.stderr = before


def reader_is_gone() -> bool:
    """Whether stdout has failed already, so that work which only prints can end."""
    return _lost(sys.stdout) is not None


def hold_descriptors() -> None:
    """Give a process that began with closed ones its descriptors 0, 1 and 2.

    Else the next file that it opens becomes its stdout, and takes what is printed. Writing to 1 fails as before.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:  # pragma: no cover, the lowest free number is given
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)


def _lost(stream: TextIO) -> OSError | None:
    buffer: Any = getattr(stream, "buffer", None)
    sink = getattr(buffer, "raw", buffer)
    return sink.error if isinstance(sink, _Sink) else None


def _wrapped(stream: TextIO | None) -> TextIO | None:
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(_Sink(None)), encoding="utf-8", errors=_ERRORS, line_buffering=True)
    if not isinstance(stream, io.TextIOWrapper):
        return None
    with suppress(OSError, ValueError):
        stream.flush()
    # Past the buffer of the stream: what that could not write it would try again when Python ends, and complain.
    sink = _Sink(getattr(stream.buffer, "raw", stream.buffer))
    return io.TextIOWrapper(
        sink if stream.write_through else io.BufferedWriter(sink),  # pyright: ignore[reportArgumentType]
        encoding=stream.encoding,
        errors=_ERRORS,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
