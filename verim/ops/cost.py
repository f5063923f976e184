"""What an op costs, in one set of conventions for the profiler, the planner and the roofline."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """FLOPs and bytes of one pass of an op.

    - `flops`: what the mathematics needs. A multiply-add is 2 FLOPs; an exponential, a division and every
      other elementwise function is 1 FLOP, whatever instructions it takes.
    - `recomputed_flops`: forward work done a second time in the backward pass to save memory. Hardware FLOPs
      are `flops + recomputed_flops`.
    - `bytes`: each input read once, each output written once, and what is kept between the passes. Traffic
      inside caches is not counted: this is the least that any implementation with the same memory plan can
      move.
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
