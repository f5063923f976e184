"""Weights in and out: checkpoints in the layouts of Hugging Face, and in ours, to models and back; GGUF files in.

model, tokenizer = load(path), load_tokenizer(path)
save(model, new_path, tokenizer=tokenizer)        # AutoModelForCausalLM.from_pretrained(new_path) reads it
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from verim.errors import InputError
from verim.models.config import LanguageModelConfig
from verim.models.interop.checkpoint import CONFIG, FolderSource, read_config, write_folder
from verim.models.interop.family import Family
from verim.models.interop.fields import Fields
from verim.models.interop.gguf import load_gguf
from verim.models.interop.gguf_tokenizer import gguf_end_tokens, load_gguf_tokenizer
from verim.models.interop.llama import LLAMA, MISTRAL, QWEN2
from verim.models.interop.mamba import MAMBA
from verim.models.interop.mamba2 import MAMBA2
from verim.models.interop.native import NATIVE
from verim.models.interop.rwkv4 import RWKV4
from verim.models.interop.tokenizer import TOKENIZER, Tokenizer, read_end_tokens, read_tokenizer
from verim.models.interop.transfer import build, tensors
from verim.models.language_model import LanguageModel

FAMILIES: dict[str, Family] = {family.name: family for family in (LLAMA, MISTRAL, QWEN2, MAMBA, MAMBA2, RWKV4, NATIVE)}
"""The kinds of checkpoints, by the `model_type` of their config.json."""

GGUF = ".gguf"
SHARD_BYTES = 5 * 10**9


def load(path: str | Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The model in the folder or the GGUF file `path`, in evaluation mode; weights in `dtype`, whatever the files have.

    Raises `InputError` where the architecture or a field of config.json is not supported or does not fit the weights,
    and for pickled weights; `CorruptError` for damaged files. Warns of fields that it does not know.
    """
    folder = Path(path)
    if folder.suffix == GGUF:
        return load_gguf(folder, dtype)
    values = read_config(folder)
    family = _family(values.get("model_type"), f"{folder / CONFIG}, model_type")
    fields = Fields(values)
    config = family.read(fields)
    fields.finish()
    if dtype != torch.float32 and fields.any("residual_in_fp32"):
        warnings.warn(f"residual_in_fp32: the residual stream is {dtype}, as the weights, here", stacklevel=2)
    return build(config, family, FolderSource(folder), dtype, str(folder))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in the folder or the GGUF file `path`.

    Raises `InputError` where there is none or its kind is not known, `CorruptError` where it is damaged.
    """
    return load_gguf_tokenizer(path) if Path(path).suffix == GGUF else read_tokenizer(Path(path))


def end_tokens(path: str | Path) -> tuple[int, ...]:
    """The tokens after which the checkpoint in `path` says that a text ends; empty where it names none."""
    return gguf_end_tokens(path) if Path(path).suffix == GGUF else read_end_tokens(Path(path))


def save(
    model: LanguageModel,
    path: str | Path,
    family: str | None = None,
    tokenizer: Tokenizer | None = None,
    end: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes `model` to the new folder `path` as a checkpoint of `family`; returns the family.

    `family=None`: the first that can hold the model without a change, of those that `transformers` knows; "verim"
    holds any model. `end`: the token after which a text ends. Files of more than `shard_bytes` are divided.
    Raises `InputError` where the family cannot hold the model (with the reason), or `path` holds something already.
    """
    chosen = _fitting(model.config) if family is None else _family(family, "family")
    names = {"architectures": [chosen.architecture], "model_type": chosen.name}
    special = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": None}
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    texts: dict[str, Any] = {}
    if tokenizer is not None:
        texts[TOKENIZER] = json.loads(tokenizer.library.to_str())
        texts["tokenizer_config.json"] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    values = names | chosen.write(model.config) | special | {"torch_dtype": dtype}
    write_folder(Path(path), values, tensors(model, chosen), texts, shard_bytes)
    return chosen.name


def _family(name: Any, place: str) -> Family:
    if name not in FAMILIES:
        raise InputError(f"{place}: got {name!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _fitting(config: LanguageModelConfig) -> Family:
    reasons = []
    for family in FAMILIES.values():
        if family is not NATIVE:
            try:
                family.write(config)
            except InputError as error:
                reasons.append(str(error))
            else:
                return family
    raise InputError(
        f"family: no architecture of transformers holds this model as it is ({'; '.join(reasons)}); "
        f"family={NATIVE.name!r} keeps any model"
    )


__all__ = ["FAMILIES", "Tokenizer", "end_tokens", "load", "load_tokenizer", "save"]
