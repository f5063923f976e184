"""What ranks keep of a model and its optimiser, named for a checkpoint that any number of ranks can read."""

import torch

from verim.runs import Checkpoint
from verim.runs.shards import Held, shape_of
from verim.train.parallel.entry import Parallel

_OPTIMISER = "optimiser."


def held_by(parallel: Parallel, optimiser: torch.optim.Optimizer) -> dict[str, Held]:
    """The tensors of this rank: "model.<name>", and "optimiser.<what>.<name>" of the weights whose state it keeps."""
    tensors: dict[str, Held] = {
        f"model.{name}": parallel.held(name, value) for name, value in parallel.module.state_dict().items()
    }
    for name, weight in parallel.module.named_parameters():
        for what, value in optimiser.state.get(weight, {}).items():
            tensors[f"{_OPTIMISER}{what}.{name}"] = parallel.held(name, value) if value.dim() else value
    return tensors


def take_up(parallel: Parallel, optimiser: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Puts what `held_by` gave back, on as many ranks as there are now: each reads the pieces that it keeps.

    Moments have the shape and are kept as float32 of their weights, or are scalars.
    """
    targets = {f"model.{name}": parallel.held(name, value) for name, value in parallel.module.state_dict().items()}
    kept = {id(weight) for group in optimiser.param_groups for weight in group["params"]}
    weights = {name: weight for name, weight in parallel.module.named_parameters() if id(weight) in kept}
    for key in checkpoint.tensors:
        what, _, name = key.removeprefix(_OPTIMISER).partition(".")
        if not key.startswith(_OPTIMISER) or name not in weights:
            continue
        like = weights[name]
        moment = torch.empty_like(like.detach(), dtype=torch.float32)
        target = parallel.held(name, moment)
        if what == "step" and shape_of(target) != ():
            moment = checkpoint.tensors[key].clone()
        else:
            targets[key] = target
        optimiser.state[like][what] = moment
    with torch.no_grad():
        checkpoint.load_into(targets)
