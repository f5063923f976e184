"""GGUF, the format of llama.cpp: one file with the configuration, the weights, often in few bits, and the tokenizer."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verim.errors import CorruptError, InputError
from verim.models.interop.checkpoint import Source
from verim.models.interop.fields import Fields
from verim.models.interop.llama import LLAMA
from verim.models.interop.transfer import build
from verim.models.language_model import LanguageModel

_FIELDS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_WITHOUT_EFFECT = {"vocab_size", "rope.dimension_count", "attention.value_length"}


class GGUFFile:
    """An open GGUF file: its `path`, the `names` of its fields, and its `tensors` as the package `gguf` has them."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"path: {path} is no file")
        try:
            reader = _package().GGUFReader(path)
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            raise CorruptError(f"{path} is cut short or is no GGUF file ({error}): fetch it again") from error
        self.path, self._fields = path, reader.fields
        self.names, self.tensors = list(reader.fields), reader.tensors

    def field(self, name: str) -> Any:
        """The value of the field `name`, None where there is no such field."""
        return self._fields[name].contents() if name in self._fields else None


class GGUFSource(Source):
    """The tensors of a GGUF file of the architecture "llama", under the names of Hugging Face's Llama, dequantised."""

    def __init__(self, tensors: list[Any], heads: int, kv_heads: int) -> None:
        self._tensors = {_hugging_face_name(tensor.name): tensor for tensor in tensors}
        self._heads = {"q_proj": heads, "k_proj": kv_heads}
        super().__init__(
            # GGUF writes the fastest dimension first
            {name: tuple(map(int, tensor.shape[::-1])) for name, tensor in self._tensors.items()}
        )

    def read(self, name: str) -> Tensor:
        """The tensor `name` in float32.

        llama.cpp rotates neighbouring channels of queries and keys, Hugging Face channel i and i + head_dim / 2: it
        has each head's rows in the order 0, head_dim / 2, 1, head_dim / 2 + 1, ...; here they are brought back.
        """
        tensor = self._tensors[name]
        array = _package().dequantize(tensor.data, tensor.tensor_type)
        values = torch.from_numpy(np.require(array, requirements="W")).view(self.shapes[name])
        heads = self._heads.get(name.split(".")[-2])
        if heads is None:
            return values
        rows, *rest = values.shape
        return values.view(heads, rows // heads // 2, 2, *rest).transpose(1, 2).reshape(rows, *rest)


def opened(path: str | Path | GGUFFile) -> GGUFFile:
    """The GGUF file `path`; one that is open already saves reading its fields again, which takes seconds."""
    return path if isinstance(path, GGUFFile) else GGUFFile(Path(path))


def load_gguf(path: str | Path | GGUFFile, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The model in the GGUF file `path`, dequantised to `dtype`, in evaluation mode.

    Raises `InputError` for another architecture than "llama", a field that is not supported, weights that do not fit
    the fields, and where the package `gguf` is not installed; `CorruptError` for what is no whole GGUF file.
    """
    file = opened(path)
    path = file.path
    architecture = file.field("general.architecture")
    if architecture != "llama":
        raise InputError(f"{path}, general.architecture: got {architecture!r}, supported is 'llama'")
    given = {name.removeprefix("llama."): file.field(name) for name in file.names if name.startswith("llama.")}
    unknown = sorted(set(given) - set(_FIELDS) - _WITHOUT_EFFECT)
    if unknown:
        raise InputError(f"{path}, llama.{unknown[0]}: got {given[unknown[0]]!r}, not supported")
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    if "token_embd.weight" not in shapes:
        raise InputError(f"{path} lacks the tensor token_embd.weight")
    values = {theirs: given[ours] for ours, theirs in _FIELDS.items() if ours in given} | {
        "vocab_size": int(shapes["token_embd.weight"][1]),
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
    }
    config = LLAMA.read(Fields(values, str(path)))
    heads = values["num_attention_heads"]
    rotated, head_dim = given.get("rope.dimension_count"), values.get("head_dim", config.width // heads)
    if rotated not in (None, head_dim):
        raise InputError(f"{path}, llama.rope.dimension_count: got {rotated}, supported is a whole head, {head_dim}")
    source = GGUFSource(file.tensors, heads, values.get("num_key_value_heads", heads))
    return build(config, LLAMA, source, dtype, str(path))


def _hugging_face_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER:
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{kind}"
    return name  # no model has a place for it, so it will be named


def _package() -> ModuleType:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise InputError("GGUF files are read by the package gguf: pip install 'verim[interop]'") from error
    return gguf
