"""One run on several processes: rank 0 draws the steps and tells the others, every rank computes
its share of a step's rows, and the gradients are summed once a step.

Rank 0 alone makes samples, measures, writes and prints, so that nothing that rounds differently
elsewhere, and nothing that arrives over time, can part the ranks. Where the base is sharded every
forward needs all of them: then no sample is made with the model, and all measure together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from liftcore.errors import ElsewhereError, LiftError, LostError, first_line
from liftcore.layers.sharded import is_sharded
from liftcore.objectives.sample import Sample
from liftcore.training.step import Step

if TYPE_CHECKING:
    from liftcore.training.source import StepSource

T = TypeVar("T")
# How long a rank waits for another: rank 0 may write questions for hours. One that has ended is
# noticed at once, since its connections close.
WAIT = timedelta(days=1)


@dataclass(frozen=True)
class Failed:
    """In place of what rank 0 would tell: why it cannot."""

    text: str
    interrupted: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        return cls(first_line(error), isinstance(error, KeyboardInterrupt))

    def raised(self) -> BaseException:
        return KeyboardInterrupt() if self.interrupted else ElsewhereError(self.text)


class Ranks:
    """The processes that share a run; alone, `size` is 1 and nothing here does anything.

    rank, size   this one's number, and how many there are
    sharded      whether every forward needs all ranks
    """

    def __init__(
        self, rank: int = 0, size: int = 1, *, sharded: bool = False, host: Any = None
    ) -> None:
        self.rank, self.size, self.sharded = rank, size, sharded
        self._host = host  # the group by which hosts tell each other

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def measures(self) -> bool:
        """Whether this rank runs the model where rank 0 measures."""
        return self.first or self.sharded

    @property
    def by_nccl(self) -> bool:
        """Whether sums on a GPU are NCCL's."""
        return self.size > 1 and "nccl" in str(dist.get_backend_config())

    def tell(self, value: T) -> T:
        """Rank 0's value, on every rank; raises what rank 0 failed with. Picklable values."""
        if self.size == 1:
            return value
        told: list[Any] = [value]
        with _reaching():
            dist.broadcast_object_list(told, src=0, group=self._host, device=torch.device("cpu"))
        if isinstance(told[0], Failed) and not self.first:
            raise told[0].raised()
        return told[0]

    @contextmanager
    def telling(self) -> Generator[None]:
        """Within it the other ranks wait for what rank 0 tells next: they hear of its failures."""
        try:
            yield
        except BaseException as error:
            if self.size > 1 and self.first and not isinstance(error, (LostError, GeneratorExit)):
                try:
                    self.tell(Failed.of(error))
                except LostError:
                    # Who starts the processes asks the others to end when one has ended.
                    if isinstance(error, KeyboardInterrupt):
                        raise
            raise

    @contextmanager
    def together(self) -> Generator[None]:
        """What fails within it on one rank fails on all. It must not need another rank, but where
        the base is sharded."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            if self.size == 1 or isinstance(caught, LostError):
                raise
            error = caught
        failures = self.gather(None if error is None else Failed.of(error))
        if error is not None:
            # The first that failed says so, however many did.
            first = next(rank for rank, failed in enumerate(failures) if failed is not None)
            if first == self.rank or isinstance(error, KeyboardInterrupt):
                raise error
            raise ElsewhereError(str(error)) from error
        for failed in failures:
            if failed is not None:
                raise failed.raised()

    def gather(self, value: T) -> list[T]:
        """The value of each rank, on every rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            with _reaching():
                dist.all_gather_object(values, value, group=self._host)
        return values

    def share(self, samples: Sequence[Sample]) -> list[Sample]:
        """This rank's samples of a step; none where there are fewer than ranks. Dealt out by
        length, so that every rank has as much to do."""
        return self.shares(samples)[self.rank]

    def shares(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """The samples of each rank."""
        by_length = sorted(samples, key=len, reverse=True)
        return [by_length[rank :: self.size] for rank in range(self.size)]

    def add_up(self, *tensors: Tensor) -> None:
        """Replaces each tensor by its sum over the ranks, with the same bits on each."""
        if self.size > 1:
            with _reaching():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def give(self, *tensors: Tensor) -> None:
        """Gives each tensor rank 0's values."""
        if self.size > 1:
            with _reaching():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def same(self, run: dict[str, str]) -> None:
        """Raises LiftError unless every rank is in the same run."""
        every = self.gather(run)
        for name in run:
            if len({repr(each.get(name)) for each in every}) > 1:
                raise LiftError(
                    f"the processes of this group absorb different things: another {name}; a "
                    "group trains one document together"
                )

    def steps(
        self,
        source: StepSource | Followed,
        asked: Callable[[], bool],
        between: Callable[[], AbstractContextManager],
    ) -> Iterator[Step]:
        """source.steps(), on every rank: those that rank 0 draws."""
        own = iter(()) if isinstance(source, Followed) else source.steps(asked, between)
        if self.size == 1:
            yield from own
            return
        while True:
            step = None
            with self.telling():
                step = next(own, None)
            step = self.tell(step)
            if step is None:
                return
            yield step


ALONE = Ranks()


def current(model: nn.Module | None = None) -> Ranks:
    """The ranks of the process group that is initialised, or this process alone. All ranks call
    it."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    sharded = model is not None and is_sharded(model)
    rank, size = dist.get_rank(), dist.get_world_size()
    return Ranks(rank, size, sharded=sharded, host=_host_group())


@dataclass(frozen=True)
class Followed:
    """What a rank must know of the source that rank 0 draws from: see StepSource."""

    config: Any
    rows: int
    length: int
    partly_scored: bool
    complete: bool
    expected_steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @classmethod
    def of(cls, source: StepSource) -> Followed:
        partly = source.partly_scored
        return cls(source.config, source.rows, source.length, partly, source.complete)


@contextmanager
def _reaching() -> Generator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostError("another process of this run has ended") from error


# (the process group, the one of its hosts)
_hosts: list[tuple[Any, Any]] = []


def _host_group() -> Any:
    """A group for what is told from host to host, whatever carries tensors; all ranks call it."""
    world = dist.group.WORLD
    if not _hosts or _hosts[0][0] is not world:
        _hosts[:] = [(world, dist.new_group(backend="gloo", timeout=WAIT))]
    return _hosts[0][1]
