"""The ledger of steps of models that are not ours, and of code that goes wrong."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
import torch.optim.optimizer as optimizer_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from verim.anatomy import Ceilings, Record, record
from verim.errors import InputError
from verim.runtime.phases import phase

CEILINGS = Ceilings("cpu", 1, {"float32": 1e15}, ((2**14, 1e15), (2**26, 1e15)), 1e-6)
"""Nothing is above these, whatever machine runs the tests."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))


def steps_of(model: nn.Module, count: int = 4, **options: bool) -> Record:
    optimiser = torch.optim.AdamW(model.parameters())
    with record(model, ceilings=CEILINGS) as recording:
        for _ in range(count):
            loss = nn.functional.mse_loss(model(torch.ones(16, 32)), torch.zeros(16, 8))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
    return recording.result


def test_a_step_is_split_into_its_parts_and_every_kind_of_step_was_seen() -> None:
    ledger = steps_of(network(), 12)
    assert [part.name for part in ledger.parts] == ["forward", "loss", "backward", "clip", "optimiser", "rest"]
    assert all(part.seconds > 0 for part in ledger.parts)
    assert ledger.counts.unrecorded and ledger.counts.parts and ledger.counts.ops
    assert ledger.overhead.parts is not None and ledger.overhead.ops is not None
    by_part = ledger.grouped(lambda op: op.part)
    for part in ledger.parts:  # ops and what passes between them are the part
        if part.name in by_part:
            assert by_part[part.name].total_seconds == pytest.approx(part.seconds)


def test_flops_are_counted_as_by_hand_and_as_torch_counts() -> None:
    model = network()
    ledger = steps_of(model)
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(16, 32)).sum().backward()
    by_hand = 3 * 2 * 16 * 64 * (32 + 8) - 2 * 16 * 64 * 32  # the input needs no gradient
    assert ledger.flops == by_hand == counter.get_total_flops()
    assert ledger.recomputed_flops == 0


def test_backward_ops_belong_to_the_module_of_the_forward_op() -> None:
    ledger = steps_of(network())
    summed = ledger.grouped(lambda op: (op.part, op.module, op.name in ("aten.mm", "aten.addmm")))
    products = {key[:2]: op.calls for key, op in summed.items() if key[2]}
    assert products == {("forward", "0"): 1, ("forward", "2"): 1, ("backward", "0"): 1, ("backward", "2"): 2}
    root = ledger.modules()
    assert [(module.name, module.kind, module.calls) for module in root.walk()] == [
        ("", "Sequential", 1), ("0", "Linear", 1), ("1", "GELU", 1), ("2", "Linear", 1),
    ]  # fmt: skip
    assert root.total_seconds == pytest.approx(sum(part.seconds for part in ledger.parts if part.name != "data"))


def test_phases_that_the_code_opens_are_its_parts() -> None:
    model, optimiser = network(), None
    optimiser = torch.optim.SGD(model.parameters())
    with record(model, ceilings=CEILINGS) as recording:
        for _ in range(4):
            with phase("data"):
                x = torch.ones(16, 32)
            with phase("loss"):
                loss = model(x).square().mean()  # the model's call inside is the forward pass
            loss.backward()
            with phase("communication"):
                torch.ones(3).sum()
            optimiser.step()
            optimiser.zero_grad()
    names = {part.name for part in recording.result.parts}
    assert names >= {"data", "forward", "loss", "backward", "communication", "optimiser"}


def test_batches_of_a_loader_are_waited_for() -> None:
    model = network()
    optimiser = torch.optim.SGD(model.parameters())
    with record(model, ceilings=CEILINGS) as recording:
        for x in DataLoader(torch.ones(64, 32), batch_size=16):  # type: ignore[arg-type]
            model(x).sum().backward()
            optimiser.step()
    assert recording.result.parts[0].name == "data"


def test_a_checkpointed_forward_pass_is_counted_apart() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(self.inner, x, use_reentrant=False)
            return y

    plain, again = steps_of(network()), steps_of(Checkpointed())
    assert again.flops == plain.flops
    assert again.recomputed_flops == 2 * 16 * 64 * 32  # the last layer's output is not needed: torch stops before it
    assert {op.module for op in again.ops if op.recomputed_flops} == {"inner.0"}


def test_modules_that_are_never_called_are_named_and_have_no_time() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.forgotten = network(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.used(x)
            return y

    ledger = steps_of(Forgetful())
    assert any("never called: forgotten" in note for note in ledger.notes)
    forgotten = next(module for module in ledger.modules().walk() if module.name == "forgotten")
    assert forgotten.calls == 0 and forgotten.total_seconds == 0 and forgotten.parameters == 12


class InPlace(nn.Module):
    """Views changed in place, between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x[:, ::2].mul_(2.0)
        x.t()[0] += 1.0
        y: Tensor = self.second(x.view(-1, 32).relu_())
        return y


def test_views_changed_in_place_are_recorded() -> None:
    ledger = steps_of(InPlace())
    assert {part.name for part in ledger.parts} >= {"forward", "backward"}
    assert all(op.bytes == 0 for op in ledger.ops if op.name in ("aten.view", "aten.t", "aten.slice"))


def test_shapes_may_change_from_step_to_step() -> None:
    model = network()
    optimiser = torch.optim.SGD(model.parameters())
    with record(model, ceilings=CEILINGS) as recording:
        for step in range(12):
            model(torch.ones(4 + step, 32)).sum().backward()
            optimiser.step()
            optimiser.zero_grad()
    ledger = recording.result
    calls = sum(op.calls for op in ledger.ops if op.name == "aten.addmm")
    assert calls == pytest.approx(2)  # the mean over steps of different shapes


def test_steps_without_a_backward_pass() -> None:
    model = network()
    with record(model, ceilings=CEILINGS) as recording, torch.no_grad():
        for _ in range(4):
            model(torch.ones(16, 32))
            recording.step()
    ledger = recording.result
    assert [part.name for part in ledger.parts] == ["forward", "rest"]
    assert ledger.flops == 2 * 16 * 64 * (32 + 8)


def test_one_step_gives_a_ledger_that_says_what_it_lacks() -> None:
    ledger = steps_of(network(), 1)
    assert ledger.overhead.parts is None
    assert len(ledger.notes) >= 2 and ledger.step_seconds > 0


def test_two_models_have_one_tree() -> None:
    one, other = network(), nn.Linear(8, 8)
    optimiser = torch.optim.SGD([*one.parameters(), *other.parameters()])
    with record(one, other, ceilings=CEILINGS) as recording:
        for _ in range(4):
            other(one(torch.ones(16, 32))).sum().backward()
            optimiser.step()
    names = [module.name for module in recording.result.modules().walk()]
    assert names[0] == "" and "0-Sequential.2" in names and "1-Linear" in names


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Torch's functions that are replaced while a recording runs, and its hooks, are as before."""
    hooks = nn.modules.module._global_forward_hooks, optimizer_module._global_optimizer_post_hooks

    def state() -> tuple[object, ...]:
        return (
            torch.autograd._engine_run_backward,
            nn.utils.clip_grad._get_total_norm,
            torch.optim.Optimizer.zero_grad,
            torch._C._len_torch_dispatch_stack(),
            *map(len, hooks),
        )

    before = state()
    yield
    assert state() == before


def test_an_exception_inside_goes_on_and_leaves_torch_as_it_was() -> None:
    model = network()
    with unchanged(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"), record(model) as recording:
        model(torch.ones(16, 31))
    with pytest.raises(InputError, match="no step was complete"):
        _ = recording.result
    assert not model._forward_pre_hooks and not model._forward_hooks
    with unchanged():
        steps_of(model)  # and another recording may begin


def test_a_recording_inside_another_is_refused_and_the_outer_goes_on() -> None:
    model = network()
    optimiser = torch.optim.SGD(model.parameters())
    with unchanged(), record(model, ceilings=CEILINGS) as recording:
        for _ in range(4):
            with pytest.raises(InputError, match="running already"), record(model):
                pass
            model(torch.ones(16, 32)).sum().backward()
            optimiser.step()
    assert recording.result.flops


@pytest.mark.parametrize("models", [(), (3,)], ids=["none", "not-a-model"])
def test_what_is_not_a_model_is_refused(models: tuple[nn.Module, ...]) -> None:
    with pytest.raises(InputError, match=r"expected (the|a) torch\.nn\.Module"):
        record(*models)
