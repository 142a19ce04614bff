"""How large the pages of a Parquet file are, from their headers: a page is unpacked as a whole, and
its size stands nowhere else.

Headers are structures of Thrift's compact protocol
(https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift, PageHeader):
of its fields those of the two sizes are read, the others passed over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

_HEADER = 1 << 16  # bytes in which a header lies, its statistics included
_DICTIONARY = 2
_DEEPEST = 16


class BadPages(ValueError):
    """What stands where a page's header should."""


class Pages(NamedTuple):
    """The largest of a column's pages in one group of rows, unpacked, and its dictionary's size, in
    bytes."""

    largest: int
    dictionary: int


def pages_of(source: Any, column: Any) -> Pages:
    """`column`: pyarrow's ColumnChunkMetaData. Raises BadPages, and OSError."""
    at = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        at = min(at, column.dictionary_page_offset)
    end = at + column.total_compressed_size
    largest = dictionary = 0
    while at < end:
        source.seek(at)
        header = _Header(source.read(_HEADER))
        fields = header.fields()
        kind, unpacked, packed = (fields.get(number) for number in (1, 2, 3))
        if kind is None or unpacked is None or packed is None or min(unpacked, packed) < 0:
            raise BadPages("not the header of a page")
        largest = max(largest, unpacked)
        if kind == _DICTIONARY:
            dictionary = max(dictionary, unpacked)
        at += header.at + packed
    return Pages(largest, dictionary)


class _Header:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def fields(self, depth: int = 0) -> dict[int, int]:
        """Number → value of a structure's whole numbers."""
        found: dict[int, int] = {}
        number = 0
        while head := self._byte():
            kind = head & 15
            if head >> 4:
                number = number + (head >> 4)
            else:
                number = self._whole()
            value = self._value(kind, depth)
            if value is not None:
                found[number] = value
        return found

    def _value(self, kind: int, depth: int) -> int | None:
        """A whole number; anything else is passed over."""
        if depth > _DEEPEST:
            raise BadPages("nested too deep")
        if kind in (4, 5, 6):
            return self._whole()
        if kind == 3:
            self.at += 1
        elif kind == 7:
            self.at += 8
        elif kind == 8:
            length = self._unsigned()
            self.at += length
        elif kind in (9, 10):
            head = self._byte()
            if head >> 4 == 15:
                count = self._unsigned()
            else:
                count = head >> 4
            for _ in range(min(count, _HEADER)):
                if head & 15 in (1, 2):
                    self.at += 1
                else:
                    self._value(head & 15, depth + 1)
        elif kind == 12:
            self.fields(depth + 1)
        elif kind not in (1, 2):  # true and false stand in the head
            raise BadPages("not the header of a page")
        return None

    def _byte(self) -> int:
        if self.at >= len(self.data):
            raise BadPages("the header of a page does not end")
        self.at += 1
        return self.data[self.at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def _whole(self) -> int:
        """Zigzag: the sign stands in the lowest bit."""
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)
