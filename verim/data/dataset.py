"""A data set that `verim data build` has made: its parts mapped from the disk, and what they are worth in bytes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from verim.data.loader import Batch, evaluation_batches
from verim.data.manifest import PARTS, TOKEN_BYTES, Manifest, Shard
from verim.data.shards import check_file, map_index, map_tokens
from verim.data.stream import TokenStream
from verim.errors import InputError
from verim.models.interop.tokenizer import TOKENIZER

_HASHING_THREADS = 8


class Part(TokenStream):
    """The tokens of the training or of the held-out documents, each document followed by the separator.

    `documents` counts them, `bytes` their text (UTF-8, without separators). `index` [documents, 2]: where the tokens of
    each end, its separator included, and where its bytes do.
    """

    def __init__(self, folder: Path, shards: tuple[Shard, ...], token_type: str) -> None:
        super().__init__([map_tokens(folder, shard, token_type) for shard in shards])
        self._indices = [map_index(folder, shard) for shard in shards]
        self.documents = sum(shard.documents for shard in shards)
        self.bytes = sum(shard.bytes for shard in shards)
        self._first_documents = np.cumsum([0] + [shard.documents for shard in shards])

    def document(self, number: int) -> tuple[Int64[Tensor, " tokens"], int]:
        """The tokens of a document, its separator included, and the bytes of its text."""
        if not 0 <= number < self.documents:
            raise InputError(f"document {number}: expected at least 0 and less than {self.documents:,}")
        shard = int(np.searchsorted(self._first_documents, number, "right")) - 1
        place = number - int(self._first_documents[shard])
        index = self._indices[shard]
        begin, first_byte = index[place - 1].tolist() if place else (0, 0)
        end, last_byte = index[place].tolist()
        return torch.from_numpy(self.arrays[shard][begin:end].astype(np.int64)), last_byte - first_byte


@dataclass(frozen=True)
class Evaluation:
    """Batches whose targets are `tokens` tokens, which stand for `bytes` bytes: the nats of all of them together,
    divided by these, give bits per byte. Each separator among the targets counts as a byte: the one that parts the
    documents of a byte vocabulary. So tokenizers are compared on the same bytes.
    """

    batches: tuple[Batch, ...]
    tokens: int
    bytes: int


class Dataset:
    """The data set in the directory `path`.

    `train` and `held_out` are its parts, for `Loader` and `evaluation`; `manifest` says the rest. `token_bytes` [vocab]
    are the bytes of text that each token stands for (1 for the separator), None where tokens do not say that exactly.

    `verify` compares every file with its checksum (some 1.5 GB/s a core, several files at a time); sizes always are.
    Raises `InputError` where no data set is at `path`, `CorruptError` naming the file that is damaged or missing.
    """

    def __init__(self, path: str | Path, verify: bool = True) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        self.vocab, self.separator = self.manifest.vocab, self.manifest.separator
        kind = self.manifest.token_type
        self.train = Part(self.path, self.manifest.train, kind)
        self.held_out = Part(self.path, self.manifest.held_out, kind)
        if verify:
            self.verify()
        exact = TOKEN_BYTES in self.manifest.files
        self.token_bytes = torch.from_numpy(np.load(self.path / TOKEN_BYTES, allow_pickle=False)) if exact else None

    @property
    def tokenizer_file(self) -> Path | None:
        """The tokenizer, to lie beside models trained on the data; None where tokens are bytes."""
        return self.path / TOKENIZER if TOKENIZER in self.manifest.files else None

    def verify(self) -> None:
        """Raises `CorruptError`, naming the file, where one has not the checksum that the manifest says."""
        with ThreadPoolExecutor(_HASHING_THREADS) as threads:
            for _ in threads.map(check_file, *zip(*self._checksums(), strict=True)):
                pass

    def evaluation(self, batch: int, length: int, limit: int | None = None) -> Evaluation:
        """Batches that predict held-out tokens, each once: all, or about `limit` of them, spread evenly.

        Where `token_bytes` are known, windows are spread (see `evaluation_batches`), else whole documents.
        Raises `InputError` where nothing is held out.
        """
        if not self.held_out.documents:
            raise InputError(f"{self.path} has nothing held out: build it with --held-out above 0")
        if self.token_bytes is not None:
            batches = tuple(evaluation_batches(self.held_out, batch, length, limit, self.separator))
            counted = sum(int(self.token_bytes[targets].sum()) for _, targets in batches)
        else:
            tokens, counted = self._spread_documents(limit)
            batches = tuple(evaluation_batches(tokens, batch, length, None, self.separator))
        return Evaluation(batches, sum(targets.numel() for _, targets in batches), counted)

    def _spread_documents(self, limit: int | None) -> tuple[TokenStream, int]:
        """Held-out documents, at least one, of about `limit` tokens, and their bytes with the separators."""
        if limit is None or limit >= len(self.held_out):
            return self.held_out, self.held_out.bytes + self.held_out.documents
        wanted = max(1, round(self.held_out.documents * limit / len(self.held_out)))
        taken, counted = [], 0
        for number in range(wanted):
            tokens, size = self.held_out.document(number * self.held_out.documents // wanted)
            taken.append(tokens)
            counted += size + 1
        return TokenStream([torch.cat(taken).numpy()]), counted

    def _checksums(self) -> Iterator[tuple[Path, str]]:
        yield from ((self.path / name, digest) for name, digest in self.manifest.files.items())
        for part in PARTS:
            for shard in getattr(self.manifest, part):
                yield self.path / f"{shard.name}.index", shard.index_sha256
                yield self.path / f"{shard.name}.tokens", shard.tokens_sha256
