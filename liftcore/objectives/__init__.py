"""What is trained on: each objective turns a document into weighted samples.

The loop knows none of them. liftcore.training.source puts those of a run together.
"""

from __future__ import annotations

from collections.abc import Sequence

from liftcore.objectives.sample import Sample


class Objective:
    """A source of samples.

    One that knows everything at once only gives samples(). One whose samples arrive while training
    runs also has poll(), done and expected.
    """

    name = "objective"

    def samples(self, epoch: int) -> list[Sample]:
        """All that is known when this epoch begins, in the document's order or that of arrival.

        What arrives later comes from poll() in the running epoch, and from samples() in those that
        follow. The same arguments give the same samples again, but for what has arrived since.
        """
        raise NotImplementedError

    def poll(self) -> list[Sample]:
        """What has arrived since the last call of samples() or poll(); never waits."""
        return []

    @property
    def done(self) -> bool:
        """Nothing more will arrive, and everything that did has been given out."""
        return True

    @property
    def expected(self) -> int:
        """Samples of an epoch once nothing more arrives; before that an estimate that may
        change."""
        return len(self.samples(0))

    @property
    def longest(self) -> int:
        """Tokens of its longest sample in any epoch, as far as is known."""
        return max(map(len, self.samples(0)), default=0)

    @property
    def seconds(self) -> float:
        """How long making the samples took so far, where that can run beside training."""
        return 0.0

    def close(self) -> None:
        """Stops what still makes samples; called at the end of a run, failed or not."""


class Repeated(Objective):
    """An objective whose samples take a share of the epoch's tokens and come again as often as that
    needs, in an order that derives from (seed, epoch).

    share   of the tokens of all rows of an epoch, in [0, 1); may change between two steps
    """

    share: float

    def lengths(self, epoch: int) -> Sequence[int]:
        """Tokens of each sample in the order of the epoch; behind the last the first comes
        again."""
        raise NotImplementedError

    def drawn(self, epoch: int, start: int, stop: int) -> list[Sample]:
        """The samples start to stop − 1 of that order."""
        raise NotImplementedError
