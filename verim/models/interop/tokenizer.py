"""The tokenizer of a checkpoint, through the library `tokenizers`."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from verim.errors import CorruptError, InputError
from verim.runtime.files import read_json

TOKENIZER = "tokenizer.json"


class Tokenizer:
    """Text to token numbers and back; `library` is the tokenizer of the library `tokenizers` that does it."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self.library = library

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`, with those that the checkpoint wants before and behind every text."""
        return self.library.encode(text).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; control tokens (the end of a text, of a turn) show as they are written."""
        return self.library.decode(list(tokens), skip_special_tokens=False)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`. Raises `InputError` where there is none, `CorruptError` for a damaged one."""
    file = folder / TOKENIZER
    if not file.is_file():
        raise InputError(f"path: {folder} holds no {TOKENIZER}: fetch it from where the checkpoint came from")
    try:
        return Tokenizer(tokenizers.Tokenizer.from_file(str(file)))
    except Exception as error:  # the library raises nothing narrower
        raise CorruptError(f"{file} is no tokenizer that the library tokenizers reads ({error})") from error


def read_end_tokens(folder: Path) -> tuple[int, ...]:
    """The tokens after which the checkpoint in `folder` says that a text ends; empty where it names none."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        if file.is_file():
            value = read_json(file).get("eos_token_id")
            if value is not None:
                return tuple(value) if isinstance(value, list) else (value,)
    return ()
