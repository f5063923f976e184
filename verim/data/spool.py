"""Distinct documents of a corpus that need not fit into memory: their text on the disk, 48 bytes of each in memory."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from verim.data.split import pieces

_BUFFER = 1 << 20


class Spool:
    """Texts in a file, and of each where it begins, its bytes and its SHA-256: the documents in the order they came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w+b", buffering=_BUFFER)
        self._sizes, self._digests = bytearray(), bytearray()
        self.begins = np.empty(0, np.int64)
        self.sizes = np.empty(0, np.int64)
        self.digests = np.empty((0, 32), np.uint8)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        """Deletes the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.sizes)

    def add(self, text: bytes) -> None:
        """Appends a document. They count once `index` has been called."""
        self._file.write(text)
        self._sizes += len(text).to_bytes(8, "little")
        self._digests += hashlib.sha256(text).digest()

    def index(self) -> int:
        """Makes all that was added the documents, the first of each text alone; how many copies there were."""
        self._file.flush()
        self.sizes = np.frombuffer(self._sizes, "<i8").astype(np.int64)
        self.begins = np.cumsum(self.sizes) - self.sizes
        self.digests = np.frombuffer(self._digests, np.uint8).reshape(-1, 32)
        self._sizes, self._digests = bytearray(), bytearray()
        return self._keep_distinct()

    def keep(self, kept: np.ndarray) -> None:
        """Forgets the documents that are not `kept` (a mask, or indices of all that stay, in their order)."""
        self.begins, self.sizes, self.digests = self.begins[kept], self.sizes[kept], self.digests[kept]

    def cut(self, largest: int) -> None:
        """Cuts documents above `largest` bytes into pieces (see `verim.data.split`); of equal ones the first stays."""
        large = self.sizes > largest
        digests = bytearray()
        begins, sizes = [self.begins[~large]], [self.sizes[~large]]
        for number, text in zip(np.flatnonzero(large), self.texts(np.flatnonzero(large)), strict=True):
            parts = list(pieces(text, largest))
            lengths = np.array([len(part) for part in parts], np.int64)
            begins.append(self.begins[number] + np.cumsum(lengths) - lengths)
            sizes.append(lengths)
            for part in parts:
                digests += hashlib.sha256(part).digest()
        of_pieces = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        self.begins, self.sizes = np.concatenate(begins), np.concatenate(sizes)
        self.digests = np.concatenate([self.digests[~large], of_pieces])
        self.keep(np.argsort(self.begins))
        self._keep_distinct()

    def texts(self, numbers: np.ndarray | None = None) -> Iterator[bytes]:
        """The texts of the documents `numbers`, or of all."""
        with self.path.open("rb", buffering=_BUFFER) as file:
            for number in range(len(self)) if numbers is None else numbers:
                file.seek(int(self.begins[number]))
                yield file.read(int(self.sizes[number]))

    def by_digest(self) -> np.ndarray:
        """The documents' numbers in the order of their SHA-256, of equal ones the first first."""
        return np.lexsort(self.digests.view(">u8").T[::-1])

    def sha256(self) -> str:
        """The SHA-256 over the sorted SHA-256 of the documents, in hexadecimal."""
        digest = hashlib.sha256()
        for numbers in np.array_split(self.by_digest(), len(self) // _BUFFER + 1):
            digest.update(self.digests[numbers].tobytes().hex().encode())
        return digest.hexdigest()

    def _keep_distinct(self) -> int:
        if not len(self):
            return 0
        order = self.by_digest()
        ordered = self.digests[order]
        first = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
        copies = len(self) - int(first.sum())
        if copies:
            self.keep(np.sort(order[first]))
        return copies
