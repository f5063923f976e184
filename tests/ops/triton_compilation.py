"""Triton kernels compiled for GPUs that are not there: what the interpreter lets pass, the compiler does not."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest.mock import patch

CAPABILITIES = (80, 90)  # A100 and H100


def assert_compiles(calls: Callable[[], None], expected: set[str]) -> None:
    """Compiles, to machine code, every Triton kernel that `calls()` launches; their names must be `expected`.

    `calls` is a function at the top of a test file. It runs in processes of its own, one for each of `CAPABILITIES`,
    where kernels are compiled for just these arguments and not run, so that functions of an op's `gpu.py` may be
    called with uninitialised CPU tensors of real sizes (`torch.empty`); what they return means nothing.
    """
    interpreted = os.environ.pop("TRITON_INTERPRET", None)  # the processes inherit the environment
    try:
        with ProcessPoolExecutor(len(CAPABILITIES), multiprocessing.get_context("spawn")) as processes:
            jobs = [processes.submit(_compile, calls, capability) for capability in CAPABILITIES]
            for capability, job in zip(CAPABILITIES, jobs, strict=True):
                assert job.result() == expected, f"kernels compiled for sm_{capability}"
    finally:
        if interpreted is not None:
            os.environ["TRITON_INTERPRET"] = interpreted


def _compile(calls: Callable[[], None], capability: int) -> set[str]:
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    class NoDevice:
        """As much of a driver as compiling asks for."""

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

    names, run = set(), JITFunction.run

    def compile_only(self: JITFunction, *args: Any, **keywords: Any) -> Any:
        kernel = run(self, *args, **(keywords | {"warmup": True}))
        assert kernel.asm["cubin"]
        names.add(kernel.metadata.name)
        return kernel

    driver.set_active(NoDevice())
    with patch.object(JITFunction, "run", compile_only):
        calls()
    return names
