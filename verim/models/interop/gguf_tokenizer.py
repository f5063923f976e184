"""The tokenizer inside a GGUF file."""

from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from verim.errors import InputError
from verim.models.interop.gguf import GGUFFile, opened
from verim.models.interop.tokenizer import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens that stand in a text as they are
_BEFORE = {"gpt-2": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)]}
"""How a text is split before GPT-2's rule is applied, by the name that the file gives the way of splitting."""


def load_gguf_tokenizer(path: str | Path | GGUFFile) -> Tokenizer:
    """The tokenizer in the GGUF file `path`: byte-level BPE, as GPT-2's (Radford et al. 2019, section 2.2).

    Raises `InputError` for another kind of tokenizer, or another way of splitting a text, than is known.
    """
    file = opened(path)
    for name, known in (("model", ["gpt2"]), ("pre", list(_BEFORE))):
        got = file.field(f"tokenizer.ggml.{name}")
        if got not in known:
            raise InputError(f"{file.path}, tokenizer.ggml.{name}: got {got!r}, expected one of {', '.join(known)}")
    tokens = file.field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in file.field("tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    before = _BEFORE[file.field("tokenizer.ggml.pre")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, bytes_of_words])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = dict(zip(tokens, file.field("tokenizer.ggml.token_type"), strict=True))
    tokenizer.add_special_tokens(_added(kinds, _CONTROL))
    tokenizer.add_tokens(_added(kinds, _USER_DEFINED))
    if file.field("tokenizer.ggml.add_bos_token"):
        first = file.field("tokenizer.ggml.bos_token_id")
        tokenizer.post_processor = processors.TemplateProcessing(f"{tokens[first]} $A", None, [(tokens[first], first)])
    return Tokenizer(tokenizer)


def gguf_end_tokens(path: str | Path | GGUFFile) -> tuple[int, ...]:
    """The token after which the GGUF file `path` says that a text ends; empty where it names none."""
    value = opened(path).field("tokenizer.ggml.eos_token_id")
    return () if value is None else (value,)


def _added(kinds: dict[str, int], kind: int) -> list[AddedToken]:
    return [
        AddedToken(token, normalized=False, special=kind == _CONTROL) for token, own in kinds.items() if own == kind
    ]
