"""How well scores put one kind above another."""

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError


def auroc(positives: Float[Tensor, "positives"], negatives: Float[Tensor, "negatives"]) -> float:
    """Area under the receiver operating characteristic: P(positive > negative) + ½ P(equal), over all pairs.

    1 where every positive scores above every negative, ½ by chance (Hanley & McNeil 1982). By sorting: no pair is
    formed. Raises `InputError` where a side is empty or holds NaN.
    """
    for name, scores in (("positives", positives), ("negatives", negatives)):
        if scores.dim() != 1 or not len(scores) or bool(scores.isnan().any()):
            raise InputError(f"auroc: {name} have shape {tuple(scores.shape)}, expected one dimension of numbers")
    ordered = negatives.sort().values
    below = torch.searchsorted(ordered, positives.contiguous())
    up_to = torch.searchsorted(ordered, positives.contiguous(), right=True)
    return float((below + up_to).double().mean()) / (2 * len(negatives))
