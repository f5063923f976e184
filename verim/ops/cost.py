"""What an op costs, in one set of conventions for the profiler, the planner and the roofline."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """FLOPs and bytes of one pass of an op.

    - `flops`: what the mathematics needs. A multiply-add is 2 FLOPs; an exponential, a division and every
      other elementwise function is 1 FLOP, whatever instructions it takes.
    - `recomputed_flops`: forward work done a second time in the backward pass to save memory. Hardware FLOPs
      are `flops + recomputed_flops`.
    - `bytes`: each input read once, each output written once. Traffic inside caches, and what an implementation
      keeps between the passes for itself, are not counted: no implementation can move less.
    """

    flops: int
    bytes: int
    recomputed_flops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.recomputed_flops + other.recomputed_flops,
        )
