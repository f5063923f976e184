"""`verim generate`: a model goes on with your text."""

import json as json_module
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TextIO

import torch
import tyro

from verim.errors import InputError
from verim.generate import Completion, Event, Limits, Sampling, Speculation, collect, generate
from verim.generate.loading import Loaded, load_for_generation
from verim.report.depths import depths_page
from verim.runtime.allocator import keep_freed_blocks
from verim.runtime.files import write_text

_COLOURS = (24, 30, 64, 94, 130, 88)  # of a terminal's 256: blue for one recursion, red for six and more


@dataclass(frozen=True)
class GenerateCommand:
    """Go on with a text, token by token.

    The model is a run directory of Verim (its newest checkpoint), a folder in the layout of Hugging Face or of Verim,
    or a GGUF file. One prompt streams; several are worked on together and print as they are done.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|MODEL")]
    """Where the model is."""

    prompt: tuple[str, ...] = ()
    """What to go on with; several make a batch."""

    temperature: float = 1.0
    """0 takes the likeliest token; below 1 is safer, above 1 wilder."""

    top_k: int = 0
    """Only so many likeliest tokens; 0 for all."""

    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability."""

    min_p: float = 0.0
    """Only tokens at least so many times as likely as the likeliest."""

    repetition_penalty: float = 1.0
    """Above 1: tokens that came before get less likely."""

    seed: int = 0
    """Seed of the draws; prompt number n, counted from 0, draws with seed + n."""

    max_tokens: int = 256
    """So many tokens at most."""

    stop: tuple[str, ...] = ()
    """Strings that end the text, and do not belong to it."""

    endless: bool = False
    """Go on after the token with which the model ends a text."""

    draft: Annotated[Path | None, tyro.conf.arg(metavar="RUN|MODEL")] = None
    """A small model with the same tokens that proposes several at a time: faster, the same distribution."""

    ahead: int = 4
    """How many tokens the draft proposes."""

    rows: int = 16
    """So many prompts at once."""

    show_depth: bool = False
    """Colour every piece of text by the recursions that were taken to predict it (Mixture-of-Recursions)."""

    depth_page: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the same as a page of HTML."""

    device: str | None = None
    """cpu, cuda or cuda:N; a GPU where there is one, if none is given."""

    json: bool = False
    """Print one JSON object as the last line of standard output, instead of the text."""

    def run(self) -> None:
        """Loads the model, goes on with the prompts, and says on standard error how fast it went."""
        if not self.prompt:
            raise InputError("no prompt: give --prompt TEXT")
        sampling = self._sampling()
        device = self._device()
        keep_freed_blocks()
        with _warnings_as_lines():
            loaded = _load(self.model, device)
            self._require_depths(loaded)
            if not self.endless:
                sampling = replace(sampling, stop_tokens=loaded.end_tokens)
            prompts = [loaded.encode(_text(prompt)) for prompt in self.prompt]
            began = time.perf_counter()
            speculations: list[Speculation] = []
            if self.draft is None:
                events = generate(loaded.model, prompts, sampling, loaded.tokenizer, Limits(rows=self.rows))
            else:
                draft = _load(self.draft, device)
                speculations = [
                    Speculation(
                        loaded.model,
                        draft.model,
                        prompt,
                        replace(sampling, seed=sampling.seed + number),
                        loaded.tokenizer,
                        self.ahead,
                    )
                    for number, prompt in enumerate(prompts)
                ]
                events = _one_after_another(speculations)
            pieces: list[list[tuple[str, int]]] = [[] for _ in prompts]
            events = _noted(events, pieces)
            done = collect(events if self.json else self._shown(events), len(prompts))
        self._tell(done, prompts, speculations, time.perf_counter() - began)
        if self.depth_page is not None and loaded.model.routed is not None:
            recursions = loaded.model.routed.config.recursions
            write_text(self.depth_page, depths_page(zip(self.prompt, pieces, strict=True), recursions))

    def _require_depths(self, loaded: Loaded) -> None:
        for option, given in (("--show-depth", self.show_depth), ("--depth-page", self.depth_page is not None)):
            if given and loaded.model.routed is None:
                raise InputError(
                    f"{option}: all tokens of {self.model} take the same depth; expected a model with routing"
                )
            if given and self.draft is not None:
                raise InputError(
                    f"{option}: with --draft tokens are judged several at a time; leave one of the two out"
                )
            if given and self.json and option == "--show-depth":
                raise InputError("--show-depth: --json prints no text, but tells the depths; leave one of the two out")

    def _sampling(self) -> Sampling:
        return Sampling(
            repetition_penalty=self.repetition_penalty,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            max_tokens=self.max_tokens,
            stop=self.stop,
        )

    def _device(self) -> torch.device:
        try:
            device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError as error:
            raise InputError(f"--device {self.device}: expected cpu, cuda or cuda:N") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"--device {self.device}: this machine or this build of torch has no CUDA; use cpu")
        return device

    def _shown(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, their text printed: of one prompt as it comes, of several in their order once each is whole."""
        texts, finished, told = [""] * len(self.prompt), [False] * len(self.prompt), 0
        for event in events:
            if len(self.prompt) == 1:
                print(self._coloured(event), end="\n" if event.finish else "", flush=True)
            texts[event.request] += self._coloured(event)
            finished[event.request] = event.finish != ""
            while len(self.prompt) > 1 and told < len(self.prompt) and finished[told]:
                print(f"{_printable(f'--- {self.prompt[told]}')}\n{texts[told]}", flush=True)
                told += 1
            yield event

    def _coloured(self, event: Event) -> str:
        text = _printable(event.text)
        return (
            f"\033[48;5;{_COLOURS[min(event.depth, len(_COLOURS)) - 1]}m{text}\033[0m"
            if self.show_depth and text
            else text
        )

    def _tell(
        self, done: list[Completion], prompts: list[list[int]], speculations: list[Speculation], seconds: float
    ) -> None:
        tokens = sum(len(completion.tokens) for completion in done)
        record: dict[str, Any] = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
        line = f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} a second"
        if speculations:
            proposed, accepted = (sum(getattr(one, name) for one in speculations) for name in ("proposed", "accepted"))
            record |= {"proposed": proposed, "accepted": accepted}
            line += f"; {accepted} of {proposed} proposals accepted"
        depths = [depth for completion in done for depth in completion.depths]
        if depths:
            record["mean_depth"] = sum(depths) / len(depths)
            line += f"; mean depth {record['mean_depth']:.2f}"
        if not self.json:
            print(f"verim: {line}", file=sys.stderr)
            return
        texts = zip(self.prompt, prompts, done, strict=True)
        record["completions"] = [
            {"prompt": prompt, "prompt_tokens": len(tokens)}
            | {name: value for name, value in completion._asdict().items() if name != "depths" or value}
            for prompt, tokens, completion in texts
        ]
        print(json_module.dumps({"model": str(self.model), **record}))


def _load(path: Path, device: torch.device) -> Loaded:
    loaded = load_for_generation(path, device)
    if loaded.warning is not None:
        warnings.warn(loaded.warning, stacklevel=2)
    return loaded


def _one_after_another(speculations: list[Speculation]) -> Iterator[Event]:
    for number, speculation in enumerate(speculations):
        for event in speculation.events():
            yield event._replace(request=number)


def _noted(events: Iterator[Event], pieces: list[list[tuple[str, int]]]) -> Iterator[Event]:
    """The events; their texts and depths are added to `pieces`."""
    for event in events:
        pieces[event.request].append((event.text, event.depth))
        yield event


def _text(prompt: str) -> str:
    """The prompt, if it is text: bytes of the command line that are not UTF-8 come as lone surrogates."""
    for place, letter in enumerate(prompt):
        if "\ud800" <= letter <= "\udfff":
            raise InputError(f"--prompt: what stands at position {place} is not UTF-8 text: leave it out")
    return prompt


def _printable(text: str) -> str:
    """On a terminal control characters show as symbols: a model may write any, and terminals obey them."""
    if not sys.stdout.isatty():
        return text
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"verim: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield
