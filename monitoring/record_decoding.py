"""What a record file holds: checked before it is believed, since others may have put it there.

The service writes a file every two seconds, so most hold a few records: those are checked many at
a time. What is found to be wrong in a heap is looked for file by file.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from monitoring.records import SCHEMA_VERSION

# What a file may hold. The service's have some thousand rows; the bounds are for what others put
# there, since a few bytes of Parquet can unfold into more than there is memory.
LIMIT_FILE_BYTES = 64 * 2**20
LIMIT_FILE_ROWS = 1_000_000
LIMIT_UNFOLDED_BYTES = 128 * 2**20
LIMIT_TEXT_BYTES = 1_024  # of one id, client or label
LIMIT_LIST_VALUES = 100_000  # logits or labels of one record
_BATCH_ROWS = 1_024
_LEAST_VALUE_BYTES = 4
# Of a file that is checked together with others; a heap of them unfolds to some 100 MB at most.
_SMALL_ROWS = 64
_SMALL_BYTES = 256 * 2**10
_SMALL_VALUES = 2**16
_SMALL_TEXTS = 2**10
_VERSION_KEY = b"plumbline_schema"


class Decoder:
    """Reads the columns of `schema` out of the bytes of files."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._known: _Layout | None = None  # of the last file that was looked through

    def small(self, content: bytes) -> pa.Table | None:
        """The columns of a file of few records, for `check`; None for one that needs `whole`.

        Texts are still dictionaries. Raises ValueError or ArrowException for what is no Parquet.
        """
        its = self._known
        if its is None or len(content) > _SMALL_BYTES:
            return None
        file = pyarrow.parquet.ParquetFile(pa.BufferReader(content), read_dictionary=its.texts)
        if not its.is_of(file.metadata):
            return None
        return file.read(self._schema.names, use_threads=False)

    def check(self, folded: Sequence[pa.Table]) -> pa.Table:
        """The records of files that `small` gave; raises ValueError or ArrowException."""
        together = pa.concat_tables(folded)
        together.validate(full=True)
        (batch,) = together.unify_dictionaries().combine_chunks().to_batches() or (None,)
        if batch is None:
            return self._schema.empty_table()
        for name in self._schema.names:
            _check_values(name, batch.column(name))
        return pa.Table.from_batches([batch.select(self._schema.names).cast(self._schema)])

    def whole(self, content: bytes) -> pa.Table:
        """The records of a file; raises ValueError or ArrowException for what holds none."""
        schema = self._schema
        file = pa.BufferReader(content)
        plain = pyarrow.parquet.ParquetFile(file)
        _check_version(plain.metadata)
        _check_schema(plain.schema_arrow, schema)
        texts = _check_sizes(plain.metadata, schema)
        self._known = _Layout(plain.metadata, schema, texts)
        # Texts stay dictionaries until their lengths are known: one of a megabyte, named by every
        # row, takes a megabyte so.
        folded = pyarrow.parquet.ParquetFile(file, metadata=plain.metadata, read_dictionary=texts)
        batches, unfolded = [], 0
        for batch in folded.iter_batches(_BATCH_ROWS, columns=schema.names, use_threads=False):
            batch.validate(full=True)
            for name in schema.names:
                _check_values(name, batch.column(name))
            batches.append(batch.select(schema.names).cast(schema))
            unfolded += batches[-1].nbytes
            if unfolded > LIMIT_UNFOLDED_BYTES:
                raise ValueError(f"it unfolds to more than {LIMIT_UNFOLDED_BYTES} bytes")
        return pa.Table.from_batches(batches, schema)


class _Layout:
    """How a file that was looked through is laid out, to know another one of the same by."""

    def __init__(
        self, metadata: pyarrow.parquet.FileMetaData, schema: pa.Schema, texts: list[str]
    ) -> None:
        self.texts = texts
        self._parquet = metadata.schema
        self._described = metadata.metadata
        paths = [metadata.schema.column(place).path for place in range(metadata.num_columns)]
        self._lists = [
            (place, _SMALL_TEXTS if path in texts else _SMALL_VALUES)
            for place, path in enumerate(paths)
            if "." in path and path.partition(".")[0] in schema.names
        ]

    def is_of(self, metadata: pyarrow.parquet.FileMetaData) -> bool:
        """Whether a file is laid out so, and small."""
        if metadata.num_row_groups != 1 or metadata.num_rows > _SMALL_ROWS:
            return False
        # Both: the first is how the values lie, the second says what Arrow makes of them.
        if not self._parquet.equals(metadata.schema) or metadata.metadata != self._described:
            return False
        group = metadata.row_group(0)
        return group.total_byte_size <= _SMALL_BYTES and all(
            group.column(place).num_values <= most for place, most in self._lists
        )


def _check_version(metadata: pyarrow.parquet.FileMetaData) -> None:
    """Files of before say none, or are another's: their columns decide."""
    found = (metadata.metadata or {}).get(_VERSION_KEY, SCHEMA_VERSION)
    if found != SCHEMA_VERSION:
        raise ValueError(
            f"it is of schema {found.decode(errors='replace')[:20]!r}; this Plumbline reads schema"
            f" {SCHEMA_VERSION.decode()}"
        )


def _check_schema(found: pa.Schema, schema: pa.Schema) -> None:
    missing = set(schema.names) - set(found.names)
    if missing:
        raise ValueError(f"columns are missing: {', '.join(sorted(missing))}")
    for field in schema:
        if [found.field(at) for at in found.get_all_field_indices(field.name)] != [field]:
            raise ValueError(f"column {field.name} is of another type than that of records")


def _check_sizes(metadata: pyarrow.parquet.FileMetaData, schema: pa.Schema) -> list[str]:
    """Refuse what says itself that it is too large; gives the paths of the columns of text."""
    if metadata.num_rows > LIMIT_FILE_ROWS:
        raise ValueError(f"{metadata.num_rows} rows; at most {LIMIT_FILE_ROWS} are read")
    chunks = [
        metadata.row_group(group).column(place)
        for group in range(metadata.num_row_groups)
        for place in range(metadata.num_columns)
    ]
    wanted = [its for its in chunks if its.path_in_schema.partition(".")[0] in schema.names]
    least = sum(
        max(its.total_uncompressed_size, its.num_values * _LEAST_VALUE_BYTES)
        for its in wanted
        if its.physical_type != "BOOLEAN"
    )
    if least > LIMIT_UNFOLDED_BYTES:
        raise ValueError(f"it unfolds to {least} bytes; at most {LIMIT_UNFOLDED_BYTES} are read")
    return sorted({its.path_in_schema for its in wanted if its.physical_type == "BYTE_ARRAY"})


def _check_values(name: str, column: pa.Array) -> None:
    if pa.types.is_list(column.type):
        longest = pyarrow.compute.max(pyarrow.compute.list_value_length(column)).as_py() or 0
        if longest > LIMIT_LIST_VALUES:
            raise ValueError(f"{longest} {name} of one record; at most {LIMIT_LIST_VALUES}")
    if column.null_count:
        raise ValueError(f"values are missing in {name}")
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        _check_values(name, column.flatten())
    if pa.types.is_dictionary(column.type):
        lengths = pyarrow.compute.binary_length(column.dictionary)
        if (longest := pyarrow.compute.max(lengths).as_py() or 0) > LIMIT_TEXT_BYTES:
            raise ValueError(f"a {name} of {longest} bytes; at most {LIMIT_TEXT_BYTES}")
