"""The fields of a config.json, read one by one, so that none is passed over in silence."""

import warnings
from typing import Any

from verim.errors import InputError

HARMLESS = frozenset(
    [
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_decoder",
        "label2id",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "prefix",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "use_bfloat16",
        "use_cache",
    ]
)
"""Fields of any config.json that change nothing of what a model computes from tokens."""


class Fields:
    """Of a config.json, with the default that `transformers` gives those that are not there (null counts as that)."""

    def __init__(self, values: dict[str, Any], place: str = "config.json") -> None:
        self.place = place
        self._values = {name: value for name, value in values.items() if value is not None}
        self._nulls = set(values) - set(self._values)
        self._known = set(HARMLESS)
        self.only("is_encoder_decoder", False)
        self.only("quantization_config", None)

    def any(self, name: str, default: Any = None) -> Any:
        self._known.add(name)
        return self._values.get(name, default)

    def is_null(self, name: str) -> bool:
        """Whether the field is there and null."""
        return name in self._nulls

    def whole(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self._given(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{self.place}, {name}: got {value!r}, expected a whole number of at least {least}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._given(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InputError(f"{self.place}, {name}: got {value!r}, expected a number")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self._given(name, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.place}, {name}: got {value!r}, expected true or false")
        return value

    def only(self, name: str, *supported: Any) -> None:
        """Raises `InputError` where the field is there and holds what is not among `supported`."""
        value = self.any(name)
        if value is not None and value not in supported:
            expected = " or ".join(map(repr, supported))
            raise InputError(f"{self.place}, {name}: got {value!r}, supported is only {expected}")

    def without_effect(self, *names: str) -> None:
        """These are known; they change nothing of what the model computes."""
        self._known.update(names)

    def finish(self) -> None:
        """Warns of fields that are there and that nobody has read."""
        unknown = sorted(set(self._values) - self._known)
        if unknown:
            warnings.warn(f"{self.place}: {', '.join(unknown)}: not known here, not used", stacklevel=3)

    def _given(self, name: str, default: Any) -> Any:
        value = self.any(name, default)
        if value is None:
            raise InputError(f"{self.place} lacks {name}")
        return value
