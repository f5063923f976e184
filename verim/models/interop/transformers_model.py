"""Our models as models of `transformers`, so that what is built on it (PEFT, TRL, lm-eval) can use them.

Importing this module registers them: `AutoModelForCausalLM.from_pretrained(path)` then reads what
`save(model, path, "verim")` writes, and `save_pretrained` writes what `load` reads. It needs verim[interop].
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from verim.errors import InputError
from verim.models.config import LanguageModelConfig
from verim.models.interop.native import NATIVE
from verim.models.language_model import LanguageModel
from verim.nn import StackState, auxiliary_losses


class VerimConfig(PreTrainedConfig):
    """`model`: a `LanguageModelConfig` as JSON; what others look for in a configuration follows from it."""

    model_type = NATIVE.name
    keys_to_ignore_at_inference = ["state"]  # noqa: RUF012, as transformers declares it

    model: dict[str, Any] | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    max_position_embeddings: int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.model is not None:  # transformers compares with a configuration that was given nothing
            for name, value in NATIVE.write(LanguageModelConfig.from_json(self.model)).items():
                setattr(self, name, value)
        super().__post_init__(**kwargs)


@dataclass
class VerimOutput(ModelOutput):
    """`logits` [batch, length, vocab]; `loss` where there were labels; `state` to go on from where it was asked for."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: StackState | None = None


class VerimForCausalLM(PreTrainedModel, GenerationMixin):
    """A `LanguageModel` behind the calls of `transformers`; it is the attribute `model`."""

    config_class = VerimConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"model.head.weight": "model.embedding.weight"}  # noqa: RUF012, as transformers declares it
    _is_stateful = True

    def __init__(self, config: VerimConfig) -> None:
        super().__init__(config)
        if config.model is None:
            raise InputError("config.model: got None, expected the configuration of a model of Verim as JSON")
        self.model = LanguageModel(LanguageModelConfig.from_json(config.model))
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Shaped[Tensor, "batch past_and_length"] | None = None,
        labels: Int[Tensor, "batch length"] | None = None,
        state: StackState | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> VerimOutput | tuple[Any, ...]:
        """Logits, the loss of `labels` (shifted here; -100 is left out), and with `use_cache` the state.

        `attention_mask` may leave out positions at the start of rows: these begin after them, as if they were alone.
        At the end padding needs no mask, since nothing looks ahead; only a state would have seen it.
        Raises `InputError` for what other models of `transformers` take and these do not: `inputs_embeds`, hidden
        states, packed rows with positions of their own.
        """
        if input_ids is None:
            raise InputError("input_ids: got None; these models take tokens, not inputs_embeds")
        _refuse(others, attention_mask)
        starts = _starts(attention_mask, input_ids, state, bool(use_cache))
        with auxiliary_losses() as balances:
            logits, after = self._run(input_ids, state, starts, logits_to_keep)
        loss = None
        if labels is not None:
            count = others.get("num_items_in_batch")
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], num_items_in_batch=count)
            loss = loss + sum(balances)
        output = VerimOutput(loss, logits, after if use_cache else None)
        return output.to_tuple() if return_dict is False else output

    def _run(
        self, tokens: Tensor, state: StackState | None, starts: Tensor | None, keep: int | Tensor
    ) -> tuple[Tensor, StackState]:
        """The logits and the state, where row i begins at position `starts[i]`."""
        if starts is None:
            x, state = self.model.features(tokens, state)
        else:
            parts, states, order = [], [], []
            for start in starts.unique().tolist():
                rows = (starts == start).nonzero()[:, 0]
                part, after = self.model.features(tokens[rows, start:])
                parts.append(nn.functional.pad(part, (0, 0, start, 0)))
                states.append(after)
                order.append(rows)
            back = torch.cat(order).argsort()
            x, state = torch.cat(parts)[back], StackState.join(states).take(back)
        if isinstance(keep, Tensor):
            x = x[:, keep]
        elif keep:
            x = x[:, -keep:]
        return self.model.head(x), state

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.model.head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.model.head = value

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        value = self.model.config.to_json() | {"vocab": embedding.num_embeddings}
        self.config.model, self.model.config = value, LanguageModelConfig.from_json(value)
        return embedding

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: a `LanguageModel` comes with its initial weights."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the state is one, and goes from call to call under its own name

    @staticmethod
    def _reorder_cache(state: StackState, beams: Tensor) -> StackState:
        return state.take(beams)


def as_transformers(model: LanguageModel) -> VerimForCausalLM:
    """`model` itself, no copy, as a model of `transformers`."""
    with torch.device("meta"):
        wrapper = VerimForCausalLM(VerimConfig(model=model.config.to_json(), dtype=model.embedding.weight.dtype))
    wrapper.model = model
    return wrapper.train(model.training)


def _starts(mask: Tensor | None, tokens: Tensor, state: StackState | None, keeps_state: bool) -> Tensor | None:
    """Where each row begins, None where all do at 0 or go on from a state."""
    if mask is None:
        return None
    if mask.ndim != 2:
        raise InputError(f"attention_mask: got {mask.ndim} dimensions, expected [batch, length]")
    mask = mask[:, -tokens.shape[1] :].bool()
    if mask.all():
        return None
    starts = mask.int().argmax(dim=1)
    after_start = torch.arange(mask.shape[1], device=mask.device) >= starts[:, None]
    if (mask == after_start).all():
        if state is None:
            return starts
        raise InputError("attention_mask: got padding in tokens that go on from a state; expected none there")
    falling = (mask[:, 1:] <= mask[:, :-1]).all()
    if falling and not keeps_state:
        return None
    raise InputError(
        "attention_mask: got padding behind tokens of a row that others go on from, or between them; expected it at "
        "the start of rows (padding_side='left')"
    )


def _refuse(others: dict[str, Any], mask: Tensor | None) -> None:
    for name in ("inputs_embeds", "past_key_values", "output_hidden_states", "output_attentions"):
        value = others.get(name)
        if value is not None and value is not False:
            raise InputError(f"{name}: got {type(value).__name__}, but models of Verim have none")
    positions = others.get("position_ids")
    if positions is not None:
        back = positions[..., 1:] < positions[..., :-1]
        if mask is not None and mask.shape == positions.shape:
            back = back & mask[..., :-1].bool()
        if back.any():
            raise InputError("position_ids: got rows of several sequences (packing); expected one sequence a row")


AutoConfig.register(NATIVE.name, VerimConfig)
AutoModelForCausalLM.register(VerimConfig, VerimForCausalLM)
