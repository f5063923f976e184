"""The tokens of a corpus come back as they were written, or a message says what is wrong with the file."""

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from verim.data.tokens import load_tokens, save_tokens
from verim.errors import CorruptError, SpaceError


def tokens(count: int, seed: int) -> torch.Tensor:
    return torch.randint(256, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_tokens_come_back_and_any_reader_opens_them(tmp_path: Path) -> None:
    path = tmp_path / "corpus.safetensors"
    stream = tokens(1000, 0)
    digest = save_tokens(path, stream[:900], stream[900:])  # both parts in one storage
    for held in (load_tokens(path), load_file(path)):
        assert held.keys() == {"train", "held_out"}
        assert torch.equal(held["train"], stream[:900])
        assert torch.equal(held["held_out"], stream[900:])
    assert len(digest) == 64
    assert digest == save_tokens(path, stream[:900].clone(), stream[900:].clone())
    assert digest != save_tokens(path, stream[:899], stream[899:])
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus.safetensors"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_is_named_with_what_to_do(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "corpus.safetensors"
    save_tokens(path, tokens(50, 1), tokens(7, 2))
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CorruptError, match=r"corpus\.safetensors .*cut short.*: restore it, or run the study anew"):
        load_tokens(path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 56), st.integers(1, 255))
def test_any_changed_token_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: int, change: int) -> None:
    path = tmp_path_factory.mktemp("changed") / "corpus.safetensors"
    save_tokens(path, tokens(50, 1), tokens(7, 2))
    content = bytearray(path.read_bytes())
    content[len(content) - 57 + place] ^= change
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"corpus\.safetensors is damaged: .*: restore it, or run the study anew"):
        load_tokens(path)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus.safetensors"
    save_file({"train": tokens(5, 1), "held_out": tokens(5, 2)}, path)  # without a checksum
    with pytest.raises(CorruptError, match="not written by Verim"):
        load_tokens(path)
    save_tokens(path, tokens(5, 1).float(), tokens(5, 2))
    with pytest.raises(CorruptError, match=r"holds .*train torch\.float32 \(5,\).*, expected the tokens of a corpus"):
        load_tokens(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load_tokens(path)


def test_a_full_disk_is_a_space_error_and_leaves_the_old_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "corpus.safetensors"
    save_tokens(path, tokens(50, 1), tokens(7, 2))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SpaceError, match=r"no space left to write .*corpus\.safetensors"):
            save_tokens(path, tokens(60, 3), tokens(7, 4))
    assert torch.equal(load_tokens(path)["train"], tokens(50, 1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus.safetensors"]
