"""What a run reports of itself while it goes on: to a file of JSON lines, and to trackers of
experiments through their own libraries."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from liftcore.errors import LiftError, first_line
from liftcore.training.log import Progress

PROJECT = "liftcore"

# Takes an event ("start", "step", "end") and its values.
Sink = Callable[[str, dict[str, Any]], None]


class Metrics:
    """The sinks of a run. One that fails on the way is left out, with a warning: it must not end a
    run that goes well."""

    def __init__(self, sinks: dict[str, Sink]):
        self.sinks = sinks

    def step(self, at: Progress) -> None:
        """A step of training; epochs count from 1."""
        self._say(
            "step",
            step=at.step,
            steps=at.steps,
            epoch=at.epoch + 1,
            loss=at.loss,
            learning_rate=at.rate,
            tokens=at.tokens,
            seconds=round(at.seconds, 3),
        )

    def end(self, **figures: float | None) -> None:
        """The figures of the whole run; what was not measured is None."""
        self._say("end", **figures)

    def _say(self, event: str, **values: Any) -> None:
        for name, sink in [*self.sinks.items()]:
            try:
                sink(event, values)
            except Exception as error:
                del self.sinks[name]
                warnings.warn(f"{name} gets no more of this run: {first_line(error)}", stacklevel=3)


@contextmanager
def metrics(
    log: str | Path | None, tracker: str | None, *, name: str, settings: dict[str, Any]
) -> Generator[Metrics]:
    """The sinks of a run, closed at its end.

    log        a file, to which one JSON object a line is added: an event "start" with the
               settings, one "step" for each step, "end" with the figures
    tracker    of TRACKERS
    name       of the run, there

    Raises LiftError when the file cannot be written, or the tracker's library is missing or does
    not start.
    """
    with ExitStack() as stack:
        sinks: dict[str, Sink] = {}
        if log is not None:
            try:
                file = stack.enter_context(Path(log).open("a", encoding="utf-8"))
            except OSError as error:
                raise LiftError(f"cannot write {log}: {error.strerror}") from error
            sinks[str(log)] = _lines(file)
        if tracker is not None:
            try:
                sinks[tracker], close = TRACKERS[tracker](name, settings)
            except ImportError as error:
                raise LiftError(
                    f"reporting to {tracker} needs its library: pip install {tracker}, or "
                    "'liftcore[trackers]' for all"
                ) from error
            except Exception as error:
                raise LiftError(f"{tracker} does not start: {first_line(error)}") from error
            stack.callback(_closed, tracker, close)
        made = Metrics(sinks)
        made._say("start", name=name, **settings)
        yield made


def _closed(tracker: str, close: Callable[[], Any]) -> None:
    try:
        close()
    except Exception as error:
        warnings.warn(f"{tracker} did not end as it should: {first_line(error)}", stacklevel=2)


def _lines(file: IO[str]) -> Sink:
    def sink(event: str, values: dict[str, Any]) -> None:
        file.write(json.dumps({"event": event, **values}) + "\n")
        file.flush()

    return sink


def _to_wandb(name: str, settings: dict[str, Any]) -> tuple[Sink, Callable[[], Any]]:
    wandb: Any = importlib.import_module("wandb")

    run = wandb.init(project=PROJECT, name=name, config=settings)
    return _numbers(lambda values, step: run.log(values, step=step)), run.finish


def _to_trackio(name: str, settings: dict[str, Any]) -> tuple[Sink, Callable[[], Any]]:
    trackio: Any = importlib.import_module("trackio")

    trackio.init(project=PROJECT, name=name, config=settings)
    return _numbers(lambda values, step: trackio.log(values, step=step)), trackio.finish


def _to_tensorboard(name: str, settings: dict[str, Any]) -> tuple[Sink, Callable[[], Any]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter()
    writer.add_text("settings", f"{name}\n\n```\n{json.dumps(settings, indent=1)}\n```")

    def log(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return _numbers(log), writer.close


def _numbers(log: Callable[[dict[str, float], int], Any]) -> Sink:
    """A tracker's own log(values, step): of steps and of the end the numbers alone."""
    at = 0

    def sink(event: str, values: dict[str, Any]) -> None:
        nonlocal at
        if event == "start":
            return
        at = values.get("step", at)
        log({k: v for k, v in values.items() if v is not None and k not in ("step", "steps")}, at)

    return sink


TRACKERS = {"trackio": _to_trackio, "tensorboard": _to_tensorboard, "wandb": _to_wandb}
