"""A configuration that cannot work is refused before anything starts, with the field and what it can be."""

from typing import Any

import pytest

from verim.errors import InputError
from verim.models import LanguageModelConfig
from verim.models.config import BlockConfig
from verim.nn import FEED_FORWARDS, MixtureOfExpertsConfig, SwiGLUConfig
from verim.nn.mixers import MIXERS, AttentionConfig, LSTMConfig, Mamba2Config, MambaConfig
from verim.train.parallel import ParallelConfig
from verim.train.parallel.splits import CONTEXT, TENSOR

HEADS, HIDDEN = AttentionConfig(heads=4), SwiGLUConfig(hidden=24)
EXPERTS = MixtureOfExpertsConfig(experts=6, hidden=8)


def model(mixer: Any = HEADS, feed_forward: Any = HIDDEN) -> LanguageModelConfig:
    return LanguageModelConfig((BlockConfig(mixer, feed_forward),), width=32, depth=6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": 0}, "data: got 0, expected at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every: got 0"),
        ({"zero": 4}, "zero: got 4, expected one of 1, 2, 3"),
        ({"pipeline_schedule": "1b1f"}, "pipeline_schedule: got '1b1f', expected one of gpipe, 1f1b, interleaved"),
        ({"activation_checkpointing": "some"}, "activation_checkpointing: got 'some', expected one of none, selective"),
        ({"zero": 1, "shard": 2, "offload": True}, "offload: got True with zero 1"),
    ],
)
def test_impossible_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ParallelConfig(**fields)


@pytest.mark.parametrize(
    ("config", "of_model", "arguments", "message"),
    [
        (ParallelConfig(tensor=3), model(), (3, 6, 12), "tensor: got 3 for Attention with heads = 4; expected one of "),
        (
            ParallelConfig(tensor=4),
            model(AttentionConfig(heads=4, kv_heads=2)),
            (4, 8, 12),
            "kv_heads = 2; expected one of 1, 2",
        ),
        (
            ParallelConfig(tensor=5),
            model(MambaConfig(), None),
            (5, 5, 12),
            "tensor: got 5 for Mamba with expand · width = 64",
        ),
        (
            ParallelConfig(tensor=2),
            model(Mamba2Config(head_dim=8, state=4, groups=1), SwiGLUConfig(hidden=7)),
            (2, 2, 4),
            "tensor: got 2 for SwiGLU with hidden = 7; expected one of 1, 7",
        ),
        (ParallelConfig(pipeline=8), model(), (8, 8, 12), "pipeline: got 8 stages for 6 blocks; expected at most 6"),
        (ParallelConfig(data=2), model(), (4, 8, 12), "data 2: 2 ranks, but 4 were given; set data to 4"),
        (ParallelConfig(shard=2), model(), (4, 8, 12), "set data to 2, or shard to 4, or start 2 processes"),
        (ParallelConfig(tensor=4), model(), (2, 8, 12), "tensor 4: 4 ranks, but 2 were given; choose dimensions"),
        (
            ParallelConfig(data=2, shard=2),
            model(),
            (4, 6, 12),
            "data · shard: got 4 for a batch of 6 sequences; expected one of 1, 2, 3, 6",
        ),
        (ParallelConfig(micro_batches=3), model(), (1, 4, 12), "micro_batches: got 3 for 4 sequences a rank"),
        (ParallelConfig(context=5), model(), (5, 8, 12), "context: got 5 for sequences of 12; expected one of 1, 2, 3"),
        (ParallelConfig(pipeline=2, tensor=2), model(), (4, 8, 12), "pipeline: got 2 with tensor 2, which do not go"),
        (ParallelConfig(pipeline=2, shard=2), model(), (4, 8, 12), "expected pipeline 1, or zero 1"),
        (
            ParallelConfig(context=2, tensor=2, sequence_parallel=True),
            model(),
            (4, 8, 12),
            "context: got 2 with sequence_parallel True, which do not go together",
        ),
        (
            ParallelConfig(tensor=4, sequence_parallel=True),
            model(),
            (4, 8, 14),
            "tensor: got 4 with sequence_parallel",
        ),
        (ParallelConfig(expert=4), model(feed_forward=EXPERTS), (4, 8, 12), "expert: got 4 for 6 experts; expected"),
        (ParallelConfig(expert=2), model(), (2, 8, 12), "expert: got 2 for a model without experts; expected 1"),
    ],
)
def test_combinations_that_cannot_work(
    config: ParallelConfig, of_model: LanguageModelConfig, arguments: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(InputError) as refusal:
        config.check(of_model, *arguments)
    assert message in str(refusal.value)


def test_what_can_work_passes() -> None:
    ParallelConfig(data=2, tensor=2, micro_batches=2).check(model(), 4, 8, 12)
    ParallelConfig(expert=3, shard=2).check(model(feed_forward=EXPERTS), 6, 12, 5)
    ParallelConfig(tensor=3).check(model(LSTMConfig(), None), 3, 1, 5)  # nothing to divide: whole on every rank


def test_every_layer_says_whether_it_can_be_divided() -> None:
    kinds = {*MIXERS.values(), *FEED_FORWARDS.values()}
    assert set(TENSOR) == kinds
    assert set(CONTEXT) == kinds
