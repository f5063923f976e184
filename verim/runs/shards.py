"""Which piece of which tensor lies in which shard, and how another number of ranks reads its pieces from there.

The shards are those of `torch.distributed.checkpoint`'s safetensors storage: torch's `HuggingFaceStorageReader` opens
them too, and what a rank has to read is worked out by its resharding. Beside it stand what that storage lacks and a
checkpoint must have: whole shapes, checksums, and one file that is written last.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from verim.errors import CorruptError, InputError

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""A piece of a tensor: where it begins in each dimension, and how far it goes."""


@dataclass(frozen=True)
class SliceOf:
    """`tensor` is what this rank keeps of one of `shape`: its `ranges` (start, stop) along `dim`, side by side.

    So are weights divided by hand, as tensor parallelism does it; `tensor` may itself be a `DTensor`."""

    tensor: Tensor
    shape: tuple[int, ...]
    dim: int
    ranges: Sequence[tuple[int, int]]

    def __post_init__(self) -> None:
        kept = list(self.shape)
        kept[self.dim] = sum(stop - start for start, stop in self.ranges)
        if tuple(kept) != tuple(self.tensor.shape):
            raise InputError(
                f"ranges: got {list(self.ranges)} along dimension {self.dim} of {self.shape}, expected a tensor of "
                f"{tuple(kept)}, it is {tuple(self.tensor.shape)}"
            )


Held = Tensor | SliceOf
"""What a rank holds under a name: a tensor that all ranks of that name have alike, a `DTensor`, or a slice."""


@runtime_checkable
class InPieces(Protocol):
    """What torch's `DTensor` offers, whose import takes as long as half of torch: no other tensor has these."""

    shape: torch.Size
    device_mesh: Any
    placements: Sequence[Any]

    def to_local(self) -> Tensor:
        """This rank's piece."""

    def __create_chunk_list__(self) -> list[Any]:
        """Where this rank's piece lies in the whole."""


@dataclass(frozen=True)
class Piece:
    """What this rank holds of the tensor `name` of `shape`: at `box` it has the values of `tensor`."""

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    box: Box


def shape_of(held: Held) -> tuple[int, ...]:
    """The shape of the whole."""
    return tuple(held.shape)


def whole_of(name: str, held: Held) -> Tensor:
    """What one process alone holds, which must be the whole. Raises `InputError` where it is a piece."""
    _, local = _local(name, (held.tensor if isinstance(held, SliceOf) else held).detach())
    if local is None or tuple(local.shape) != shape_of(held):
        raise InputError(
            f"{name} is a piece of {shape_of(held)}, and the run directory knows of one rank only: "
            "give it all of them (ranks=Ranks.of_world())"
        )
    return local


def own_pieces(name: str, held: Held) -> list[Piece]:
    """The pieces that this rank has, of which none is empty unless the whole is.

    Raises `InputError` for a `DTensor` whose values are still to be summed (`Partial`)."""
    tensor = (held.tensor if isinstance(held, SliceOf) else held).detach()
    (offsets, sizes), local = _local(name, tensor)
    if local is None:
        return []
    if not isinstance(held, SliceOf):
        pieces = [Piece(name, local, tuple(tensor.shape), (offsets, sizes))]
    else:
        pieces = []
        # Ranges are not joined: what several ranks share must be the same piece on all of them.
        here, passed = offsets[held.dim], 0  # where this rank's piece begins in `tensor`; what of it lies behind us
        for start, stop in held.ranges:
            first, last = max(here, passed), min(here + sizes[held.dim], passed + stop - start)
            if first < last or 0 in sizes:
                at, size = list(offsets), list(sizes)
                at[held.dim], size[held.dim] = start + first - passed, max(last - first, 0)
                view = local.narrow(held.dim, first - here if size[held.dim] else 0, size[held.dim])
                pieces.append(Piece(name, view, held.shape, (tuple(at), tuple(size))))
            passed += stop - start
    return [piece for piece in pieces if piece.tensor.numel() or math.prod(piece.shape) == 0]


def pieces_by_key(tensors: Mapping[str, Held]) -> dict[str, Piece]:
    """All pieces of this rank under the names they have in its shard: the tensor's, for the first of its pieces."""
    return {
        name if number == 0 else f"{name} from {list(piece.box[0])}": piece
        for name, held in tensors.items()
        for number, piece in enumerate(own_pieces(name, held))
    }


def layout_of(pieces: Mapping[str, Piece]) -> dict[str, Any]:
    """What this rank could write, as JSON."""
    return {
        key: {
            "name": piece.name,
            "shape": list(piece.shape),
            "dtype": str(piece.tensor.dtype).removeprefix("torch."),
            "box": [list(piece.box[0]), list(piece.box[1])],
        }
        for key, piece in pieces.items()
    }


def share_out(layouts: Sequence[Mapping[str, Any]]) -> tuple[list[set[str]], dict[str, Any]]:
    """Who writes what: for each rank the keys of its pieces, and the tensors with where their pieces lie.

    A piece that several ranks hold (a replica) is written once, by the one of them that has least to write so far.
    Every rank that is given the same layouts finds the same answer. Raises `InputError` where ranks disagree on what
    a tensor is.
    """
    holders: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    tensors: dict[str, Any] = {}
    for rank, layout in enumerate(layouts):
        for key, held in layout.items():
            entry = tensors.setdefault(held["name"], {"shape": held["shape"], "dtype": held["dtype"], "parts": []})
            if (held["shape"], held["dtype"]) != (entry["shape"], entry["dtype"]):
                raise InputError(
                    f"tensor {held['name']} is {entry['dtype']} {entry['shape']} on one rank and {held['dtype']} "
                    f"{held['shape']} on rank {rank}: give what each rank has for itself a name of its own"
                )
            holders[held["name"], json.dumps(held["box"])].append((rank, key))
    keys: list[set[str]] = [set() for _ in layouts]
    loads = [0] * len(layouts)
    for (name, _), held_by in sorted(holders.items()):
        rank, key = min(held_by, key=lambda holder: loads[holder[0]])
        box = layouts[rank][key]["box"]
        loads[rank] += math.prod(box[1]) * getattr(torch, tensors[name]["dtype"]).itemsize
        keys[rank].add(key)
        tensors[name]["parts"].append({"shard": rank, "key": key, "box": box})
    return keys, tensors


def offsets_for_torch(pieces: Mapping[str, Piece]) -> dict[str, str]:
    """The header entry by which torch's own reader knows where each piece belongs."""
    return {"DCP_SHARDING_INFO": json.dumps({key: {"saved_offsets": piece.box[0]} for key, piece in pieces.items()})}


def whole_parts(path: Path) -> dict[str, Any]:
    """What a file of one process holds, described as if it were the only shard."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}  # mapped, not read
    return share_out([layout_of(pieces_by_key(tensors))])[1]


class ShardedTensors(Mapping[str, Tensor]):
    """The tensors of a sharded checkpoint: read when asked for, whole (`[name]`) or just a piece (`read_into`)."""

    def __init__(self, files: Sequence[Path], tensors: Mapping[str, Any]) -> None:
        """`files` are the shards in their order, `tensors` is as `share_out` made it.

        Raises `CorruptError` where a shard cannot be opened or the pieces do not make up their tensors."""
        self._tensors = tensors
        try:
            self._files = [safe_open(file, framework="pt") for file in files]
        except (SafetensorError, FileNotFoundError) as error:
            raise CorruptError(f"{files[0].parent} cannot be read ({error})") from error
        for name, entry in tensors.items():
            if sum(math.prod(part["box"][1]) for part in entry["parts"]) != math.prod(entry["shape"]):
                raise CorruptError(f"{files[0].parent}: the shards do not make up {name} of {entry['shape']}")

    def __getitem__(self, name: str) -> Tensor:
        entry = self._tensors[name]
        whole = torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        self.read_into(name, whole, ((0,) * whole.dim(), tuple(whole.shape)))
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole shape of the tensor."""
        return tuple(self._tensors[name]["shape"])

    def read_into(self, name: str, target: Tensor, box: Box) -> None:
        """Copies the piece `box` of the tensor into `target`, reading no more of the shards than that."""
        if target.numel() == 0:
            return
        # Here, since it takes as long as half of torch and only checkpoints of several ranks need it.
        from torch.distributed.checkpoint import metadata, planner_helpers

        def chunk(held: Sequence[Sequence[int]]) -> metadata.ChunkStorageMetadata:
            return metadata.ChunkStorageMetadata(torch.Size(held[0]), torch.Size(held[1]))

        entry = self._tensors[name]
        stored = metadata.TensorStorageMetadata(
            metadata.TensorProperties(dtype=getattr(torch, entry["dtype"])),
            torch.Size(entry["shape"]),
            [chunk(part["box"]) for part in entry["parts"]],
        )
        for item in planner_helpers.create_read_items_for_chunk_list(name, stored, [chunk(box)]):
            index = item.storage_index.index
            assert index is not None, "torch numbers the stored chunks"
            part = entry["parts"][index]
            piece = self._files[part["shard"]].get_slice(part["key"])[_slices(item.storage_offsets, item.lengths)]
            target[_slices(item.dest_offsets, item.lengths)].copy_(piece)


def slices_of(box: Box) -> tuple[slice, ...]:
    """The box as an index."""
    return _slices(*box)


def _slices(offsets: Sequence[int], lengths: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(offsets, lengths, strict=True))


def _local(name: str, tensor: Tensor) -> tuple[Box, Tensor | None]:
    """Where this rank's piece lies in `tensor`, and the piece; None for a rank outside of its mesh."""
    if not isinstance(tensor, InPieces):
        return ((0,) * tensor.dim(), tuple(tensor.shape)), tensor
    if any(placement.is_partial() for placement in tensor.placements):
        raise InputError(f"{name} is placed as {tensor.placements}, so its values are not there yet: redistribute it")
    if tensor.device_mesh.get_coordinate() is None:
        return ((), ()), None
    (chunk,) = tensor.__create_chunk_list__()
    return (tuple(chunk.offsets), tuple(chunk.sizes)), tensor.to_local()
