"""Arrow tables added one after another to one file, each there whole or not at all.

After a magic number the file is a row of frames: length, checksum, an Arrow stream. Adding to the
end of one file is cheaper than a file per table, and what a process that was killed half wrote is
found by length and checksum, and cut off.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from model.errors import SettingsError

MAGIC = b"PLUMBLN1"
_HEAD = struct.Struct("<QI")  # bytes of the Arrow stream, their CRC-32


class Journal:
    """A file of tables; one process at a time has it open. One without tables is gone at the end.

    `offsets` are the places of the whole tables, in the order in which they were added. Nothing
    forces a table onto the disk before `close`: a killed process loses nothing by that, and a
    machine that loses power at most the last seconds.

    Raises `SettingsError` for a file that another process has open, or that is no journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets: list[int] = []
        self._end = len(MAGIC)
        self._file = _open_locked(path)
        try:
            self._check_magic()
            self._find_frames()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, table: pa.Table) -> int:
        """Put a table at the end; gives its offset."""
        stream = _to_bytes(table)
        frame = memoryview(_HEAD.pack(len(stream), zlib.crc32(stream)) + stream)
        offset, written = self._end, 0
        while written < len(frame):
            written += os.pwrite(self._file, frame[written:], offset + written)
        # Only now: what a full disk took half of is written over by the next.
        self._end = offset + written
        self.offsets.append(offset)
        return offset

    def read(self, offset: int) -> pa.Table:
        """The table at an offset."""
        stream = self._stream_at(offset)
        assert stream is not None
        with pa.ipc.open_stream(stream) as reader:
            return reader.read_all()

    def clear(self) -> None:
        """Forget every table."""
        self._end = len(MAGIC)
        self.offsets.clear()
        os.ftruncate(self._file, self._end)

    def close(self) -> None:
        """Force everything onto the disk, and let others have the file."""
        try:
            if self.offsets:
                os.fsync(self._file)
            else:
                self.path.unlink(missing_ok=True)
        finally:
            os.close(self._file)

    def _check_magic(self) -> None:
        start = os.pread(self._file, len(MAGIC), 0)
        if not MAGIC.startswith(start):
            raise SettingsError(
                f"{self.path} is none of plumbline's files; remove it, or choose another --out"
            )
        os.pwrite(self._file, MAGIC, 0)

    def _find_frames(self) -> None:
        while (stream := self._stream_at(self._end)) is not None:
            self.offsets.append(self._end)
            self._end += _HEAD.size + len(stream)
        os.ftruncate(self._file, self._end)

    def _stream_at(self, offset: int) -> bytes | None:
        """None where no whole frame is."""
        head = os.pread(self._file, _HEAD.size, offset)
        if len(head) < _HEAD.size:
            return None
        size, checksum = _HEAD.unpack(head)
        if not 0 < size <= os.fstat(self._file).st_size - offset - _HEAD.size:
            return None
        stream = os.pread(self._file, size, offset + _HEAD.size)
        return stream if len(stream) == size and zlib.crc32(stream) == checksum else None


def _open_locked(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_at(path, file):
                return file
        except BlockingIOError as error:
            os.close(file)
            raise SettingsError(
                f"another process is writing {path}; wait for it, or choose another --out"
            ) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # whoever had it open has just removed it


def _is_still_at(path: Path, file: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(file))


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
