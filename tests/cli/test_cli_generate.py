"""`verim generate`: runs and models go on with a text; what cannot be done is said in one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from verim.cli import generate
from verim.cli import main as cli
from verim.generate import ByteTokenizer, Sampling, complete
from verim.models import LanguageModel, architecture_config, interop
from verim.runs import RunDirectory


@pytest.fixture(autouse=True)
def same_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests of this process keep the allocator that they have."""
    monkeypatch.setattr(generate, "keep_freed_blocks", lambda: True)


def small(seed: int = 0, **changes: int) -> LanguageModel:
    torch.manual_seed(seed)
    model = LanguageModel(replace(architecture_config("mamba", 16), **changes))
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def run_of(path: Path, model: LanguageModel, checkpoint: bool = True) -> Path:
    run = RunDirectory(path)
    with run.writing():
        run.start({"model": model.config.to_json()})
        if checkpoint:
            run.save_checkpoint(1, {f"model.{name}": value for name, value in model.state_dict().items()}, {})
    return path


Said = tuple[int, str, str]


@pytest.fixture
def verim(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def run(*arguments: object) -> Said:
        with pytest.raises(SystemExit) as leaving:
            cli.main(["generate", *map(str, arguments)])
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, *capsys.readouterr()

    return run


def test_a_run_goes_on_with_a_prompt(verim: Callable[..., Said], tmp_path: Path) -> None:
    model = small()
    run = run_of(tmp_path / "run", model)
    expected = complete(model.eval(), ["né"], Sampling(seed=3, top_k=50, max_tokens=20), ByteTokenizer())[0]
    options = ("--prompt", "né", "--seed", 3, "--top-k", 50, "--max-tokens", 20, "--endless", "--device", "cpu")
    code, out, err = verim(run, *options)
    assert (code, out) == (0, expected.text + "\n")
    assert "verim: 20 tokens in" in err
    code, out, _ = verim(run, *options, "--json")
    record = json.loads(out.splitlines()[-1])
    assert code == 0 and record["tokens"] == 20 and record["tokens_per_second"] > 0
    assert record["completions"] == [
        {"prompt": "né", "prompt_tokens": 3, "tokens": expected.tokens, "text": expected.text, "finish": "length"}
    ]


def test_several_prompts_print_in_their_order(verim: Callable[..., Said], tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", small())
    options = ("--max-tokens", 4, "--temperature", 0, "--endless")
    _, out, _ = verim(run, "--prompt", "abc", "z", *options)
    texts = [verim(run, "--prompt", prompt, *options)[1] for prompt in ("abc", "z")]
    assert out == f"--- abc\n{texts[0]}--- z\n{texts[1]}"


def test_the_separator_of_documents_ends_a_text_of_a_run(verim: Callable[..., Said], tmp_path: Path) -> None:
    model = small()
    torch.nn.init.zeros_(model.head.weight)  # all logits equal: the first token is the likeliest
    run = run_of(tmp_path / "run", model)
    record = json.loads(verim(run, "--prompt", "a", "--temperature", 0, "--json")[1].splitlines()[-1])
    assert record["completions"][0]["tokens"] == [0] and record["completions"][0]["finish"] == "stop"


def test_a_draft_gives_the_same_greedy_text(verim: Callable[..., Said], tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", small())
    draft = run_of(tmp_path / "draft", LanguageModel(architecture_config("transformer", 16)))
    options = ("--prompt", "abc", "b", "--max-tokens", 12, "--temperature", 0, "--endless", "--json")
    plain, fast = (
        json.loads(verim(run, *options, *more)[1].splitlines()[-1]) for more in ((), ("--draft", draft, "--ahead", 3))
    )
    assert plain["completions"] == fast["completions"]
    assert 0 <= fast["accepted"] <= fast["proposed"] > 0


def with_tokenizer(path: Path) -> Path:
    words = {word: number for number, word in enumerate(["<unk>", "one", "two", "three"])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    interop.save(small(vocab=4), path, tokenizer=interop.Tokenizer(tokenizer), end=2)
    return path


def test_a_models_folder_brings_its_tokenizer(verim: Callable[..., Said], tmp_path: Path) -> None:
    folder = with_tokenizer(tmp_path / "model")
    code, out, _ = verim(folder, "--prompt", "one two", "--max-tokens", 40, "--json")
    completion = json.loads(out.splitlines()[-1])["completions"][0]
    assert code == 0 and completion["prompt_tokens"] == 2
    assert completion["finish"] == "stop" and completion["tokens"][-1] == 2
    assert completion["text"].split() == [["<unk>", "one", "two", "three"][t] for t in completion["tokens"][:-1]]


def test_going_beyond_the_trained_length_is_a_line_of_warning(verim: Callable[..., Said], tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", small(context=8))
    code, _, err = verim(run, "--prompt", "abcdefgh", "abcdefgh", "--max-tokens", 3)
    assert code == 0
    assert [line for line in err.splitlines() if "warning" in line] == [
        "verim: warning: a prompt of 8 tokens and up to 3 more exceed the 8 that the model was trained on: what it "
        "writes beyond them may be worse"
    ]


def bad_inputs(tmp_path: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    run = run_of(tmp_path / "run", small())
    narrow = run_of(tmp_path / "narrow", small(vocab=128))
    broken = run_of(tmp_path / "broken", small())
    config = json.loads((broken / "config.json").read_text())
    config["config"]["model"]["pattern"][0]["mixer"]["state"] = 5
    (broken / "config.json").write_text(json.dumps(config))
    nan = small()
    torch.nn.init.constant_(nan.blocks[0].mixer.skip, torch.nan)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no model")
    prompt = ("--prompt", "a")
    return {
        "no such path": ((tmp_path / "absent", *prompt), "absent does not exist: expected a run directory"),
        "no model": ((tmp_path / "empty", *prompt), "empty holds no config.json"),
        "a text file": ((tmp_path / "notes.txt", *prompt), "notes.txt is a file, not a GGUF file"),
        "no checkpoint": ((run_of(tmp_path / "new", small(), False), *prompt), "new has no checkpoint yet"),
        "another model": (
            (broken, *prompt),
            "does not fit config.json: blocks.0.mixer.log_decay is (32, 16) there, (32, 5)",
        ),
        "no prompt": ((run,), "no prompt: give --prompt TEXT"),
        "an empty prompt": ((run, "--prompt", ""), "prompt 0: got no token"),
        "outside the vocabulary": (
            (narrow, "--prompt", "naïve"),
            "the character 'ï' at position 2 is outside the vocabulary",
        ),
        "not UTF-8": ((run, "--prompt", "a\udcff"), "--prompt: what stands at position 1 is not UTF-8 text"),
        "temperature": ((run, *prompt, "--temperature", -1), "temperature: got -1.0, expected 0"),
        "top-p": ((run, *prompt, "--top-p", 0), "top_p: got 0.0, expected more than 0"),
        "a word for a number": ((run, *prompt, "--top-k", "many"), "--top-k"),
        "no such device": ((run, *prompt, "--device", "abacus"), "--device abacus: expected cpu, cuda"),
        "not finite": ((run_of(tmp_path / "nan", nan), *prompt), "first in blocks.0.mixer"),
        "another vocabulary": ((run, *prompt, "--draft", narrow), "draft: got a model of 128 tokens for one of 256"),
        "ahead": ((run, *prompt, "--draft", run, "--ahead", 0), "ahead: got 0"),
    }


def test_what_cannot_be_done_is_said_in_one_line(verim: Callable[..., Said], tmp_path: Path) -> None:
    for name, (arguments, words) in bad_inputs(tmp_path).items():
        code, out, err = verim(*arguments)
        assert code == 2, name
        assert out == "" and len(err.splitlines()) == 1 and words in err, (name, err)


def test_text_streams_through_a_pipe_before_it_is_finished(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", small())
    command = [
        sys.executable,
        "-m",
        "verim",
        "generate",
        str(run),
        "--prompt",
        "a",
        "--max-tokens",
        "100000",
        "--endless",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 64)
        assert first and process.poll() is None
        process.kill()
