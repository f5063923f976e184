"""A model to generate with, and how it reads and writes text: from a run of ours, a checkpoint's folder, or GGUF."""

from dataclasses import dataclass
from pathlib import Path

import torch

from verim.data import SEPARATOR, VOCABULARY
from verim.errors import InputError
from verim.generate.text import ByteTokenizer, Tokenizer
from verim.models import LanguageModel, LanguageModelConfig, interop
from verim.models.interop.gguf import load_gguf, opened
from verim.models.interop.gguf_tokenizer import gguf_end_tokens, load_gguf_tokenizer
from verim.models.interop.tokenizer import TOKENIZER
from verim.runs import RunDirectory
from verim.runtime.files import read_json
from verim.train.trainer import model_weights


@dataclass(frozen=True)
class Loaded:
    """A model, its tokenizer, and the tokens after which its texts end; `warning` says what was passed over."""

    model: LanguageModel
    tokenizer: Tokenizer
    end_tokens: tuple[int, ...]
    warning: str | None = None

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt. Raises `InputError` for text the model has no tokens for, naming the character."""
        vocab = self.model.config.vocab
        tokens = self.tokenizer.encode(text)
        if any(token >= vocab for token in tokens):
            place = next(
                (n for n, letter in enumerate(text) if any(token >= vocab for token in self.tokenizer.encode(letter))),
                0,
            )
            raise InputError(
                f"prompt: the character {text[place]!r} at position {place} is outside the vocabulary, whose {vocab} "
                "tokens the model knows: leave it out"
            )
        return tokens


def load_for_generation(path: str | Path, device: str | torch.device = "cpu") -> Loaded:
    """What lies at `path`: a run directory of Verim, a folder in Hugging Face's layout or ours, or a GGUF file.

    Raises `InputError` where nothing of this is there, a run has no checkpoint yet, or the weights do not fit the
    configuration; `CorruptError` for damaged files.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: expected a run directory, the folder of a model, or a GGUF file")
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{path} is a file, not a GGUF file: name a run directory, a model's folder, or NAME.gguf")
        file = opened(path)
        loaded = Loaded(load_gguf(file), load_gguf_tokenizer(file), gguf_end_tokens(file))
    elif _is_run(path):
        loaded = _of_run(RunDirectory(path))
    else:
        loaded = _of_folder(path)
    loaded.model.to(device)
    return loaded


def _is_run(path: Path) -> bool:
    if (path / "study.json").is_file() or (path / "runs").is_dir():
        raise InputError(f"{path} is a study: name one of its runs, {path}/runs/NAME")
    config = path / "config.json"
    if not config.is_file():
        raise InputError(f"{path} holds no config.json: expected a run directory or the folder of a model")
    content = read_json(config)
    return isinstance(content, dict) and "config" in content and "model_type" not in content


def _of_run(run: RunDirectory) -> Loaded:
    config = run.config()
    if "model" not in config:
        raise InputError(f"{run.path}/config.json has no model: it is not a run of a language model")
    checkpoint = run.latest_checkpoint()
    if checkpoint is None:
        raise InputError(f"{run.path} has no checkpoint yet: let it train until one is written, or resume it")
    model = LanguageModel(LanguageModelConfig.from_json(config["model"]))
    weights, own = model_weights(checkpoint), model.state_dict()
    for name in sorted(weights.keys() | own.keys()):
        got, expected = (tuple(part[name].shape) if name in part else "nothing" for part in (weights, own))
        if got != expected:
            raise InputError(
                f"{run.path}: the checkpoint of step {checkpoint.step} does not fit config.json: {name} is {got} "
                f"there, {expected} by the configuration; restore the file that was changed"
            )
    model.load_state_dict(weights)
    end_tokens = (int(config.get("separator", SEPARATOR)),)
    if (run.path / TOKENIZER).is_file():
        return Loaded(model, interop.load_tokenizer(run.path), end_tokens, checkpoint.warning)
    _require_bytes(run.path, model)
    return Loaded(model, ByteTokenizer(), end_tokens, checkpoint.warning)


def _of_folder(path: Path) -> Loaded:
    model = interop.load(path)
    if (path / TOKENIZER).is_file():
        return Loaded(model, interop.load_tokenizer(path), interop.end_tokens(path))
    _require_bytes(path, model)
    return Loaded(model, ByteTokenizer(), interop.end_tokens(path))


def _require_bytes(path: Path, model: LanguageModel) -> None:
    if model.config.vocab > VOCABULARY:
        raise InputError(
            f"{path} holds no {TOKENIZER}, and its {model.config.vocab} tokens are not bytes: put it there, or use "
            "verim.generate with token numbers"
        )
