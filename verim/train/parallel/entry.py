"""A model, made ready for its ranks: what the trainer asks for and need not know how."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from verim.errors import InputError, RankError
from verim.models import LanguageModel
from verim.nn import MixtureOfExperts
from verim.runs.shards import Held, SliceOf
from verim.train.optimisers.clipping import clip_factor
from verim.train.parallel.checkpointing import recompute
from verim.train.parallel.config import ParallelConfig
from verim.train.parallel.context import WholeSequences, context_parallel, piece
from verim.train.parallel.data import replicate
from verim.train.parallel.expert import expert_parallel, expert_weights
from verim.train.parallel.mesh import Mesh, build_mesh
from verim.train.parallel.pipeline import Pipeline
from verim.train.parallel.plans import Cut
from verim.train.parallel.shard import shard, share_state
from verim.train.parallel.tensor import Layout, parallelize_tensor
from verim.train.task import Batch, WeighedLoss


class Whole(nn.Module):
    """The model as one that runs any function of it, so that whatever the function reads of the model (its features,
    the head's weight) happens inside one forward pass of DDP or FSDP, which makes weights and gradients ready."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


class Parallel:
    """A model on this rank. Make one with `parallelize`; build the optimiser from `module` after that.

    - `module`: the model, this rank's part of it; its parameters are what the optimiser updates. It is called through
      `run` or `backward`, which have the weights in place.
    - `layouts`: of the weights that tensor ranks divide, by name.
    """

    def __init__(self, model: LanguageModel, config: ParallelConfig, length: int) -> None:
        device = next(model.parameters()).device
        self.module: nn.Module = model
        self.config = config
        self.layouts: dict[str, Layout] = {}
        self.mesh: Mesh | None = build_mesh(config, device.type) if config.ranks > 1 or config.offload else None
        self._sharded = config.zero > 1 and (config.shard > 1 or config.offload)
        if config.activation_checkpointing != "none":
            recompute(model.blocks, config.activation_checkpointing, config.checkpoint_every)
        if self.mesh is not None:
            self._divide(model, self.mesh, length)
        self._whole: nn.Module = Whole(self.module)
        own = [name for name, layout in self.layouts.items() if layout.dimension == "expert"]
        if self.mesh is not None and self._sharded:
            spread = [model.get_parameter(name) for name in own]
            shard(self._whole, model.blocks, self.mesh.sharing, config.zero, config.offload, spread)
        elif self.mesh is not None and config.rows * config.context > 1 and config.pipeline == 1:
            self._whole = replicate(self._whole, self.mesh.group("batch"), [f"model.{name}" for name in own])

    def _divide(self, model: LanguageModel, mesh: Mesh, length: int) -> None:
        """What is divided inside the layers and between them."""
        config = self.config
        if config.tensor > 1:
            self.layouts = parallelize_tensor(model, mesh.group("tensor"), config.sequence_parallel)
        if config.context > 1:
            context_parallel(model, mesh.group("context"))
        elif config.rows > 1 and any(isinstance(layer, MixtureOfExperts) for layer in model.modules()):
            shapes = {name: tuple(model.get_parameter(name).shape) for name in expert_weights(model)}
            expert_parallel(model, mesh.group("expert"), mesh.group("batch"))
            if config.expert > 1:
                self.layouts = {name: Layout(shape, Cut(0, shape[:1]), "expert") for name, shape in shapes.items()}
        if config.pipeline > 1:
            pipeline = mesh.group("pipeline")
            self.module = Pipeline(model, pipeline, config.micro_batches, config.pipeline_schedule, length)

    def share(self, batch: Batch) -> Batch:
        """This rank's part of the global `batch`, which every rank has: its rows, and of these its positions."""
        rows = self.config.rows
        if len(batch[0]) % rows:
            raise InputError(
                f"batch: got {len(batch[0])} sequences for {rows} ranks that share them; expected a multiple"
            )
        if self.mesh is None:
            return batch
        place = self.mesh.place("data")
        for name in ("expert", "shard"):
            place = place * getattr(self.config, name) + self.mesh.place(name)
        own = tuple(tensor.chunk(rows)[place] for tensor in batch)
        if self.config.context == 1:
            return own
        return tuple(piece(tensor, self.mesh.group("context")) for tensor in own)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(model, *arguments) with the weights in place: an evaluation, for instance, of whole sequences. All
        ranks call it alike, and differentiate nothing of it."""
        with torch.no_grad(), lost_ranks_said():
            if self.mesh is None or self.config.context == 1:
                return self._whole(function, *arguments)
            group = self.mesh.group("context")
            return self._whole(lambda model: function(WholeSequences(model, group), *arguments))

    def backward(self, task: WeighedLoss, *batches: Batch) -> Tensor:
        """Adds the gradient of the global mean loss to the weights; the global mean loss, a scalar.

        `batches` are this rank's parts (`share`), of one batch or of several micro-batches whose gradients add up;
        gradients are exchanged once, at the last. Loss and gradient are those of all ranks' batches as one batch,
        however unevenly the weight of the task (its targets) is spread; only what is not a mean over targets (the
        balance loss of a mixture of experts) is the weighted mean of the ranks' own.

        Raises `InputError`, on all ranks, where the part of one has no weight: its loss would be 0 / 0; `RankError`
        where another rank has died, or has not answered within the timeout of the process group.
        """
        with lost_ranks_said():
            return self._backward(task, *batches)

    def _backward(self, task: WeighedLoss, *batches: Batch) -> Tensor:
        weights = [float(task.weight(batch)) for batch in batches]
        device = next(self.module.parameters()).device
        reached = torch.zeros((), device=device)
        everything, empty = self._over_batch(torch.tensor([sum(weights), float(min(weights) <= 0)], device=device))
        if empty:
            raise InputError("batch: some rank's rows have no targets; expected some in each rank's part of a batch")
        ranks = 1 if self.mesh is None else self.mesh.batch.size()
        for index, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            self._exchange_after(index == len(batches) - 1)
            if isinstance(self.module, Pipeline):
                reached += self.module.backward(task, batch, float(everything / ranks)) / ranks
                continue
            loss = self._whole(_loss, task, batch)
            (loss * (weight * ranks / everything)).backward()  # DDP and FSDP take the mean over the ranks
            reached += loss.detach() * (weight / everything)
        self._average_own()
        self._average_buffers()
        total: Tensor = self._over_batch(reached)
        return total

    def clip(self, norm: float) -> Tensor:
        """Scales the gradient down to `norm` where it is larger; the global norm before."""
        gradients = [weight.grad for weight in self.module.parameters() if weight.grad is not None]
        squares = torch.zeros((), device=gradients[0].device)
        for name, weight in self.module.named_parameters():
            if weight.grad is not None:
                squares = squares + self._squares(name, weight.grad)
        if self.mesh is not None:
            with lost_ranks_said():
                distributed.all_reduce(squares)
        total = squares.sqrt()
        scale = clip_factor(total, norm)
        for gradient in gradients:
            _local(gradient).mul_(scale)
        return total

    def agreed(self, decision: bool) -> bool:
        """What the first rank decides: clocks differ, and all ranks must save, or stop, at the same step."""
        if self.mesh is None:
            return decision
        said = torch.tensor([float(decision)], device=next(self.module.parameters()).device)
        with lost_ranks_said():
            distributed.broadcast(said, src=0)
        return bool(said.item())

    def prepare(self, optimiser: torch.optim.Optimizer) -> None:
        """To be called once, before the first step: with `zero` 1 the optimiser keeps this rank's states alone."""
        if self.mesh is not None and self.config.shard > 1 and self.config.zero == 1:
            share_state(optimiser, self.mesh.group("shard"))

    def gather(self, name: str, tensor: Tensor) -> Tensor:
        """The whole of weight `name`, or of something of its shape (a moment), from what each rank keeps of it.

        All ranks call it alike, and all get the whole, as one rank without parallelism has it.
        """
        kept = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if name not in self.layouts:
            return kept.detach()
        assert self.mesh is not None, "several ranks have a mesh"
        return self.layouts[name].gather(kept.detach(), self.mesh.group(self.layouts[name].dimension))

    def scatter(self, name: str, whole: Tensor) -> Tensor:
        """What this rank keeps of the whole of weight `name`, or of something of its shape: `gather`'s inverse."""
        like = self.module.get_parameter(name)
        if name in self.layouts:
            assert self.mesh is not None, "several ranks have a mesh"
            layout = self.layouts[name]
            whole = layout.own(whole, self.mesh.place(layout.dimension), getattr(self.config, layout.dimension))
        if isinstance(like, DTensor):
            return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
        return whole.to(like.device)

    def held(self, name: str, tensor: Tensor) -> Held:
        """What a checkpoint's writer (`verim.runs`) needs of weight `name`, or of something of its shape: a tensor that
        is whole here, a `DTensor`, or a slice with the place of its ranges in the whole."""
        if name not in self.layouts:
            return tensor
        assert self.mesh is not None, "several ranks have a mesh"
        layout = self.layouts[name]
        ranges = layout.cut.ranges(self.mesh.place(layout.dimension), getattr(self.config, layout.dimension))
        return SliceOf(tensor, layout.shape, layout.cut.dim, ranges)

    def _squares(self, name: str, gradient: Tensor) -> Tensor:
        """This rank's share of the sum of squares: an entry counts by one over the number of ranks that hold it."""
        local = _local(gradient)
        copies = self.config.ranks / (self.config.shard if isinstance(gradient, DTensor) else 1)
        if isinstance(self.module, Pipeline):
            copies /= self.config.pipeline
        if name not in self.layouts:
            return local.float().square().sum() / copies
        cut, ranks = self.layouts[name].cut, getattr(self.config, self.layouts[name].dimension)
        if not cut.whole:
            return local.float().square().sum() / (copies / ranks)
        rows = torch.full(gradient.shape[:1], ranks / copies, device=local.device)
        for start, stop in cut.shared(ranks):
            rows[start:stop] = 1 / copies
        if isinstance(gradient, DTensor):
            rows = distribute_tensor(rows, gradient.device_mesh, gradient.placements, src_data_rank=None).to_local()
        return local.float().square().flatten(1).sum(1) @ rows if local.dim() > 1 else local.float().square() @ rows

    def _over_batch(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks with parts of the batch."""
        if self.mesh is not None:
            distributed.all_reduce(tensor, group=self.mesh.group("batch"))
        return tensor

    def _exchange_after(self, last: bool) -> None:
        """Whether the next backward pass exchanges gradients."""
        if isinstance(self._whole, FSDPModule):
            self._whole.set_requires_gradient_sync(last)
        elif isinstance(self._whole, nn.parallel.DistributedDataParallel):
            self._whole.require_backward_grad_sync = last

    def _average_own(self) -> None:
        """Gradients that neither DDP nor FSDP looks after become means over the ranks that keep the same weights."""
        if self.mesh is None:
            return
        names: Iterable[str] = (name for name, layout in self.layouts.items() if layout.dimension == "expert")
        if self.config.pipeline > 1:
            names = (name for name, _ in self.module.named_parameters())
        for name in names:
            gradient = self.module.get_parameter(name).grad
            for dimension in ("data", "context", "shard"):
                ranks = getattr(self.config, dimension)
                if ranks > 1 and gradient is not None:
                    distributed.all_reduce(gradient, group=self.mesh.group(dimension))
                    gradient /= ranks

    def _average_buffers(self) -> None:
        """What layers count in training (the thresholds of expert choice) is the mean over the ranks."""
        if self.mesh is None or self.mesh.batch.size() == 1:
            return
        for buffer in self.module.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer, group=self.mesh.group("batch"))
                buffer /= self.mesh.batch.size()


def parallelize(model: LanguageModel, config: ParallelConfig, batch: int, length: int) -> Parallel:
    """`model`, whose weights are the same on every rank, divided over the ranks in place as `config` says.

    To be called on all ranks of the default process group, and before the optimiser is built. `batch` is the number
    of sequences of the global batch, `length` theirs. With one rank no process group is needed.

    Raises `InputError` where `config` does not fit the model, the batch or the number of ranks
    (`ParallelConfig.check`), before anything is changed.
    """
    started = distributed.is_available() and distributed.is_initialized()
    config.check(model.config, distributed.get_world_size() if started else 1, batch, length)
    return Parallel(model, config, length)


@contextmanager
def lost_ranks_said() -> Iterator[None]:
    """An exchange that breaks off inside the block raises `RankError`, which says what to do."""
    try:
        yield
    except RuntimeError as error:
        words = str(error)
        if not isinstance(error, distributed.DistError) and "gloo" not in words.lower():
            raise
        raise RankError(
            f"another rank has died or does not answer ({words.strip().splitlines()[0][:120]}): this rank stops; "
            "torchrun --max-restarts starts all again from the last whole checkpoint; the standard error of the rank "
            "that died first says why"
        ) from error


def _loss(model: nn.Module, task: WeighedLoss, batch: Batch) -> Tensor:
    return task.loss(model, batch)


def _local(tensor: Tensor) -> Tensor:
    """What of `tensor` lies here."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
