"""`verim train`: data and a budget are enough; a killed run goes on to the same bits; what cannot be is said."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from verim.cli import main as cli
from verim.cli import train
from verim.data import BuildConfig, build
from verim.runs import RunDirectory

Said = tuple[int, str, str]


@pytest.fixture(autouse=True)
def same_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests of this process keep the allocator that they have."""
    monkeypatch.setattr(train, "keep_freed_blocks", lambda: True)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    root = Path(__file__).parents[2]
    for number, path in enumerate(sorted((root / "verim" / "nn").rglob("*.py"))):
        (folder / f"{number:03}.txt").write_text(path.read_text())
    return folder


@pytest.fixture
def verim(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def run(*arguments: object) -> Said:
        with pytest.raises(SystemExit) as leaving:
            cli.main(list(map(str, arguments)))
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, *capsys.readouterr()

    return run


def test_text_becomes_a_model_that_generates(verim: Callable[..., Said], text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, said = verim("train", text, "--tokens", 30000, "--width", 16, "--out", run, "--json")
    assert code == 0
    result = json.loads(out.splitlines()[-1])["result"]
    assert result["bits_per_byte"] < 6.5
    for word in ("The plan", "non-embedding", "expected", "bits/byte", "tokens/s", "GB", "s left", "held out"):
        assert word in said
    line = RunDirectory(run).metrics()[-1]
    assert {"loss", "training_bits_per_byte", "gradient_norm", "tokens_per_second", "memory_bytes"} <= line.keys()
    assert 0 < line["utilisation"] < 1
    code, out, _ = verim("generate", run, "--prompt", "def ", "--max-tokens", 8)
    assert code == 0 and out


def test_a_tokenizer_of_its_own_goes_with_the_run(verim: Callable[..., Said], text: Path, tmp_path: Path) -> None:
    build([text], tmp_path / "data", BuildConfig(tokenizer="bpe:400"))
    run = tmp_path / "run"
    options = ("--tokens", 20000, "--width", 16, "--architecture", "mamba", "--average", 0.9, "--evaluations", 2)
    code, out, _ = verim("train", tmp_path / "data", *options, "--out", run)
    assert code == 0 and "bits per byte" in out and "nats per token" in out
    assert RunDirectory(run).config()["model"]["vocab"] >= 400
    code, out, _ = verim("generate", run, "--prompt", "def ", "--max-tokens", 8)
    assert code == 0 and out


def test_a_budget_of_time_alone_chooses_the_rest(verim: Callable[..., Said], text: Path, tmp_path: Path) -> None:
    began = time.perf_counter()
    code, _, said = verim("train", text, "--minutes", 0.05, "--out", tmp_path / "run", "--seed", 3)
    assert code == 0 and "The plan" in said
    assert time.perf_counter() - began < 60
    assert RunDirectory(tmp_path / "run").config()["seed"] == 3


def test_a_model_of_a_file_is_trained(verim: Callable[..., Said], text: Path, tmp_path: Path) -> None:
    block = {"mixer": {"kind": "gru"}, "feed_forward": {"kind": "gelu", "hidden": 24}}
    (tmp_path / "model.json").write_text(json.dumps({"pattern": [block], "width": 16, "depth": 2}))
    options = ("--flops", 2e9, "--model", tmp_path / "model.json", "--optimiser", "muon", "--learning-rate", 0.02)
    code, _, said = verim("train", text, *options, "--schedule", "cosine", "--out", tmp_path / "run")
    assert code == 0 and "Muon, 0.02" in said
    config = RunDirectory(tmp_path / "run").config()
    assert config["trainer"]["schedule"]["kind"] == "cosine" and config["model"]["depth"] == 2


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(verim: Callable[..., Said], text: Path, tmp_path: Path) -> None:
    build([text], tmp_path / "data", BuildConfig())
    options = ["--tokens", "120000", "--width", "16", "--checkpoint-seconds", "0.2", "--batch", "4"]
    command = [sys.executable, "-m", "verim", "train", str(tmp_path / "data"), *options, "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    victim = subprocess.Popen([*command, str(tmp_path / "parts")], env=environment, stderr=subprocess.DEVNULL)
    while len(RunDirectory(tmp_path / "parts").metrics()) < 60:
        assert victim.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    resume = [sys.executable, "-m", "verim", "train", "--resume", str(tmp_path / "parts")]
    subprocess.run(resume, env=environment, check=True, capture_output=True)
    whole, parts = (RunDirectory(tmp_path / name) for name in ("whole", "parts"))
    assert whole.result()["bits_per_byte"] == parts.result()["bits_per_byte"]
    one, other = whole.latest_checkpoint(), parts.latest_checkpoint()
    assert one is not None and other is not None
    learnt = [name for name in one.tensors if name.startswith(("model.", "optimiser."))]
    assert learnt and all((one.tensors[name] == other.tensors[name]).all() for name in learnt)


@pytest.mark.slow
def test_a_rank_that_is_killed_is_started_again_and_the_run_ends_as_on_one_rank(text: Path, tmp_path: Path) -> None:
    build([text], tmp_path / "data", BuildConfig())
    options = [str(tmp_path / "data"), "--tokens", "60000", "--width", "16", "--batch", "4"]
    options += ["--checkpoint-seconds", "0.3", "--evaluations", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    verim = ["-m", "verim", "train", *options]
    alone = tmp_path / "alone"
    subprocess.run([sys.executable, *verim, "--out", str(alone)], env=environment, check=True, capture_output=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ranks = tmp_path / "ranks"
    command = [*launcher, "--max-restarts", "1", *verim, "--out", str(ranks), "--parallel.shard", "2"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as started:
        while len(RunDirectory(ranks).metrics()) < 30:
            assert started.poll() is None, "the run ended before a rank could be killed"
            time.sleep(0.02)
        victim = max(children(started.pid))
        os.kill(victim, signal.SIGKILL)
        _, said = started.communicate(timeout=240)
    assert started.returncode == 0, said
    one, two = RunDirectory(alone).result(), RunDirectory(ranks).result()
    assert two["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=1e-3)
    assert two["steps"] == one["steps"]


def children(process: int) -> list[int]:
    """The processes that `process` has started."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(number) for number in found.split()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "1e4"], "data: got none"),
        (["TEXT"], "minutes, tokens, flops: got none"),
        (["TEXT", "--tokens", "1e4", "--minutes", "1"], "got seconds, tokens"),
        (["TEXT", "--tokens", "-5"], "tokens: got -5"),
        (["TEXT", "--tokens", "1e4", "--architecture", "perceiver"], "architecture: got 'perceiver'"),
        (["TEXT", "--tokens", "1e4", "--width", "0"], "width: got 0"),
        (["TEXT", "--tokens", "1e4", "--width", "16", "--optimiser", "sophia"], "optimiser: got 'sophia'"),
        (["TEXT", "--tokens", "1e4", "--width", "16", "--optimiser", "lion"], "learning-rate: none given"),
        (["TEXT", "--tokens", "1e4", "--width", "16", "--batch", "4", "--accumulation", "3"], "accumulation: got 3"),
        (["TEXT", "--tokens", "1e4", "--width", "16", "--tracker", "wand"], "tracker: got 'wand'"),
        (["TEXT", "--tokens", "1e4", "--width", "16", "--length", "1000000"], "too few for windows"),
        (["TEXT", "--tokens", "1e4", "--width", "16", "--parallel.data", "2"], "data 2: 2 ranks, but 1 were given"),
        (["TEXT", "--tokens", "1e4", "--architecture", "mamba", "--within-documents"], "documents: a convolution"),
        (["nowhere", "--tokens", "1e4"], "nowhere does not exist"),
        (["--resume", "nowhere"], "nowhere is not there"),
        (["TEXT", "--resume", "nowhere"], "resume: got other options"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    arguments: list[str], message: str, verim: Callable[..., Said], text: Path, tmp_path: Path
) -> None:
    given = [str(text) if word == "TEXT" else word for word in arguments]
    given += [] if "--resume" in given else ["--out", str(tmp_path / "run")]
    code, _, said = verim("train", *given)
    assert code == 2
    last = said.strip().splitlines()[-1]
    assert message in last and last.startswith("verim: error: ")
    if "wand" not in arguments:  # the tracker is looked for when the run is described already
        assert not (tmp_path / "run").exists()


def test_a_resume_with_other_data_is_refused(verim: Callable[..., Said], text: Path, tmp_path: Path) -> None:
    build([text], tmp_path / "data", BuildConfig())
    run = tmp_path / "run"
    verim("train", tmp_path / "data", "--tokens", 5000, "--width", 16, "--out", run)
    (run / "result.json").unlink()
    (tmp_path / "data").rename(tmp_path / "before")
    (text / "more.txt").write_text("another text, of some length, to be read\n" * 50)
    build([text], tmp_path / "data", BuildConfig())
    (text / "more.txt").unlink()
    code, _, said = verim("train", "--resume", run)
    assert code == 2 and "corpus_sha256" in said
