"""What the ops share: the choice of the backend, the vectors, the workers, the compiled kernels' cache."""

import doctest
import importlib
import os
import subprocess
import sys
import threading
import warnings

import numba.core.caching
import numpy as np
import pytest
import torch
from numba import njit

from verim.errors import InputError
from verim.ops import backend, causal_conv1d, force_backend, team, workers
from verim.ops import compiled as compiled_module
from verim.ops.causal_conv1d.cost import backward_cost, forward_cost
from verim.ops.compiled import FINGERPRINT
from verim.ops.lanes import between, log2
from verim.ops.selective_scan import cost as scan_cost
from verim.ops.selective_scan import cpu as scan_kernels
from verim.ops.vectors import ROW, exp2, load, load_lanes, store, store_lanes, store_scalar, sum_rows, upper_half


@njit
def apply_exp2(source: int, target: int, vectors: int) -> None:
    for i in range(vectors):
        store(target + i * ROW, exp2(load(source + i * ROW)))


@njit
def copy_lanes(source: int, target: int, count: int) -> None:
    store_lanes(target, count, load_lanes(source, count))


@njit
def apply_log2(source: int, target: int, vectors: int) -> None:
    for i in range(vectors):
        store(target + i * ROW, log2(load(source + i * ROW)))


@njit
def replace_outside(source: int, target: int, first: int, last: int, other: int) -> None:
    store(target, between(load(source), first, last, load(other)))


@njit
def sum_pairs(source: int, stride: int, other: int, target: int) -> None:
    sums = sum_rows(source, stride, other)
    store(target, sums)
    store(target + ROW, upper_half(sums))


def check_exp2() -> None:
    """Run in a process of its own too, compiled for a processor without vector extensions."""
    x = torch.cat([torch.linspace(-126, 127.49, 16 * 4000), torch.linspace(-1e-3, 1e-3, 1600)])
    y = torch.empty_like(x)
    apply_exp2(x.data_ptr(), y.data_ptr(), len(x) // 16)
    exact = torch.exp2(x.double())
    error = ((y - exact) / exact).abs().max()
    assert error < 3e-7, error
    inf, nan = np.inf, np.nan
    special = torch.tensor([0, -0.0, 128, 1e30, inf, -150, -1e30, -inf, nan, -nan, 1, -1, 10, -3, 127, 0.5])
    apply_exp2(special.data_ptr(), y.data_ptr(), 1)
    expected = torch.tensor([1, 1, inf, inf, inf, 0, 0, 0, nan, nan, 2, 0.5, 1024, 0.125, 2.0**127, 2**0.5])
    torch.testing.assert_close(y[:16], expected, rtol=3e-7, atol=1e-44, equal_nan=True)


def test_exp2() -> None:
    check_exp2()


def test_exp2_on_a_processor_without_vector_extensions() -> None:
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "OMP_NUM_THREADS": "1"}
    code = "import test_ops_machinery; test_ops_machinery.check_exp2()"
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    subprocess.run([sys.executable, "-c", code], check=True, env=environment | {"PYTHONPATH": path}, timeout=120)


@pytest.mark.parametrize("count", [0, 1, 7, 15, 16, 40])
def test_the_lanes_beyond_the_count_are_left_alone(count: int) -> None:
    source, target = torch.arange(1.0, 17.0), torch.full((16,), -1.0)
    copy_lanes(source.data_ptr(), target.data_ptr(), count)
    assert torch.equal(target, torch.where(torch.arange(16) < count, source, -1.0))


def test_log2() -> None:
    powers = 2.0 ** torch.arange(-126, 128)
    x = torch.cat([torch.linspace(1, 2, 16 * 2000), torch.logspace(-37, 38, 16 * 1000), powers, powers[:2]])
    y = torch.empty_like(x)
    apply_log2(x.data_ptr(), y.data_ptr(), len(x) // 16)
    exact = torch.log2(x.double())
    assert ((y - exact).abs() <= 2e-7 * exact.abs().clamp(min=1)).all()
    assert torch.equal(y[-256:], exact[-256:].float())
    special = torch.tensor([np.inf, np.nan] * 8)
    apply_log2(special.data_ptr(), y.data_ptr(), 1)
    assert torch.equal(y[:16].isnan(), special.isnan()) and torch.equal(y[:16:2], special[::2])


FAR = [-(2**40), -17, -1, 0, 3, 15, 16, 17, 2**31, 2**40]  # bounds may lie anywhere


@pytest.mark.parametrize("first", FAR)
@pytest.mark.parametrize("last", FAR)
def test_lanes_between_two_bounds(first: int, last: int) -> None:
    source, other, target = torch.arange(16.0), torch.full((16,), -1.0), torch.empty(16)
    source[4] = torch.nan
    replace_outside(source.data_ptr(), target.data_ptr(), first, last, other.data_ptr())
    lanes = torch.arange(16)
    expected = torch.where((lanes >= first) & (lanes < last), source, other)
    torch.testing.assert_close(target, expected, rtol=0, atol=0, equal_nan=True)


def test_sums_of_rows_that_lie_apart() -> None:
    rows = torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0))
    sums = torch.empty(2, 16)
    sum_pairs(rows.data_ptr(), 3 * ROW, 2 * ROW, sums.data_ptr())
    expected = torch.cat([rows[:, 0].sum(1), rows[:, 2].sum(1)])
    torch.testing.assert_close(sums[0], expected)
    assert torch.equal(sums[1, :8], sums[0, 8:])


def test_the_reference_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1)
    assert backend.takes_fast_path("op", x)
    with force_backend("reference"):
        assert not backend.takes_fast_path("op", x)
    backend._named.cache_clear()
    monkeypatch.setenv("VERIM_BACKEND", "reference")
    assert not backend.takes_fast_path("op", x)
    with force_backend("auto"):
        assert backend.takes_fast_path("op", x)
    backend._named.cache_clear()
    monkeypatch.setenv("VERIM_BACKEND", "fastest")
    with pytest.raises(InputError, match="VERIM_BACKEND is 'fastest', expected one of auto, reference"):
        backend.takes_fast_path("op", x)
    backend._named.cache_clear()
    with pytest.raises(InputError, match="'gpu'"), force_backend("gpu"):
        pass


def test_a_missing_fast_path_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_warned", set())
    x, weight = torch.ones(1, 2, 1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"causal_conv1d has no fast version for torch.float64 on cpu"):
        y = causal_conv1d(x, weight)
    assert y.flatten().tolist() == [1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        causal_conv1d(x, weight)


def test_an_error_in_a_task_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(first: int, last: int, scratch: int) -> None:
        done.append((first, last))
        if last == 10:
            raise RuntimeError("task 9")

    done: list[tuple[int, int]] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(RuntimeError, match="task 9"):
        workers.run_tasks(kernel, 10, 1e9, 16, ())
    assert sorted(done)[0][0] == 0 and all(first < last for first, last in done)


def test_large_work_runs_side_by_side_and_each_task_once(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(3, timeout=20)
    done: list[int] = []
    waited = threading.local()
    scratches: set[int] = set()

    def kernel(first: int, last: int, scratch: int) -> None:
        if not getattr(waited, "once", False):
            waited.once = True
            meeting.wait()  # all three threads must come
        scratches.add(scratch)
        done.extend(range(first, last))

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    workers.run_tasks(kernel, 100, 1e9, 16, ())
    assert sorted(done) == list(range(100))
    assert len(scratches) == 3 and all(scratch % 64 == 0 for scratch in scratches)


def test_small_work_stays_in_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(workers, "_pool", lambda size: pytest.fail("a thread was woken"))
    workers.run_tasks(lambda first, last, scratch: calls.append((first, last)), 100, 1e5, 16, ())
    assert calls == [(0, 100)]


@njit(nogil=True)
def count_tasks(
    first: int,
    last: int,
    scratch: int,
    counts: int,
    scratches: int,
    whole: int,
    half: float,
    single: np.float32,
    pair: np.complex64,
    flag: np.bool_,
) -> None:
    """Each task writes down its scratch, and a sum of the other arguments."""
    for task in range(first, last):
        store_scalar(counts + 4 * task, np.float32(whole + half + single + pair.real + 10 * pair.imag + 100 * flag))
        store_scalar(scratches + 4 * task, np.float32(scratch - scratches))


@pytest.mark.skipif(team._parallel() is None, reason="torch runs on another OpenMP library than GNU's")
@pytest.mark.parametrize("threads", [2, 3])
def test_a_kernel_runs_on_the_threads_of_torch_with_all_its_arguments(threads: int) -> None:
    arguments = 1, 0.5, np.float32(0.25), np.complex64(2 + 3j), np.bool_(True)
    sums, scratches = torch.zeros(1000), torch.zeros(1000)
    places = sums.data_ptr(), scratches.data_ptr()
    for _ in range(20):
        assert team.run_in_team(count_tasks, 1000, threads, 30, places[1] + 64, 128, (*places, *arguments))
        assert torch.equal(sums, torch.full((1000,), 133.75))
        assert set(scratches.tolist()) <= {64.0 + 128 * thread for thread in range(threads)}
        sums.zero_()


def test_without_a_team_our_own_threads_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 64, 64)
    expected = causal_conv1d(x, torch.ones(64, 4))
    monkeypatch.setattr(workers, "_WORTH_A_THREAD", 1.0)
    monkeypatch.setattr(workers, "_WORTH_OUR_THREAD", 1.0)
    monkeypatch.setattr(team, "_parallel", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(causal_conv1d(x, torch.ones(64, 4)), expected)


def test_a_change_of_the_shared_sources_invalidates_cached_kernels() -> None:
    from_disk = scan_kernels._forward._cache._cache_file
    assert from_disk._source_stamp[1] == FINGERPRINT
    stamp = from_disk._source_stamp
    from_disk._source_stamp = (stamp[0], "of other sources")
    try:
        assert not from_disk._load_index()
    finally:
        from_disk._source_stamp = stamp


SECOND_PROCESS = """
import os, torch
from verim.ops import causal_conv1d, selective_scan
from verim.ops.causal_conv1d import cpu as convolution
from verim.ops.selective_scan import cpu as scan
from verim.ops import workers

workers._WORTH_A_THREAD = 1.0
torch.set_num_threads(2)
def run():
    x = torch.ones(2, 3, 40, requires_grad=True)
    u = causal_conv1d(x, torch.ones(40, 4), activation="silu")
    selective_scan(u, torch.ones(2, 3, 40), -torch.ones(40, 4), *torch.ones(2, 2, 3, 4)).sum().backward()
    return x.grad
first = run()
for kernel in (scan._forward, scan._backward, convolution._forward, convolution._backward):
    assert sum(kernel.stats.cache_hits.values()) == 1 and not kernel.stats.cache_misses, kernel
child = os.fork()  # after threads were used
if child == 0:
    os._exit(0 if torch.equal(run(), first) else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_second_process_compiles_nothing_and_may_fork() -> None:
    path = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    for _ in range(2):  # the first fills the cache where no test has done so yet
        result = subprocess.run(
            [sys.executable, "-c", SECOND_PROCESS], env=os.environ | path, capture_output=True, text=True, timeout=120
        )
        if result.returncode == 0:
            break
    assert result.returncode == 0, result.stderr


def test_costs_count_a_multiply_add_as_two() -> None:
    forward, backward = forward_cost(2, 8, 4, 4), backward_cost(2, 8, 4, 4)
    assert forward.flops == 2 * 8 * 4 * 8 and forward.bytes == 4 * (2 * 64 + 4 * 5)
    assert backward.recomputed_flops == 0 and backward_cost(2, 8, 4, 4, "silu").recomputed_flops == 64 * 11
    scan = scan_cost.forward_cost(1, 2048, 1536, 16) + scan_cost.backward_cost(1, 2048, 1536, 16)
    assert scan.flops == 2048 * 1536 * (21 * 16 + 10) and scan.recomputed_flops == 2048 * 1536 * 81


@pytest.mark.parametrize("name", ["selective_scan", "causal_conv1d"])
def test_the_examples_in_the_docstrings(name: str) -> None:
    module = importlib.import_module(f"verim.ops.{name}")
    outcome = doctest.testmod(module, extraglobs={"torch": torch})
    assert outcome.attempted and not outcome.failed


def test_without_a_place_for_the_cache_kernels_still_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    compiled_module._warn_of_no_cache.cache_clear()
    with pytest.warns(UserWarning, match=r"every process compiles for itself. Set NUMBA_CACHE_DIR"):
        double = compiled_module.compiled(lambda x: 2 * x)
    assert double(21) == 42
