"""Recitation ("contextualized training"): the model is shown the document's beginning and end and
told to recite a passage. It keeps the ability to use what stands in the prompt."""

from __future__ import annotations

import numpy as np

from liftcore import answer
from liftcore.config import LiftConfig
from liftcore.errors import UsageError
from liftcore.objectives import Objective
from liftcore.objectives.sample import Sample, prompted
from liftcore.segments import cut
from liftcore.tokens import Tokenizer
from liftcore.truncation import truncate

CUE = "\nPassage:"


class Recitation(Objective):
    """Each segment of the epoch behind a prompt with config.recite_context tokens of the document,
    head half and tail half; fewer where the model's window of `window` tokens has no more room.

    Only the segment is scored, with the weights of overlap_loss. Raises UsageError when the window
    does not even hold a segment and the instruction.
    """

    name = "recitation"

    def __init__(
        self, tokenizer: Tokenizer, title: str, tokens: np.ndarray, config: LiftConfig, window: int
    ):
        self.tokenizer, self.title, self.tokens, self.config = tokenizer, title, tokens, config
        self.text = self._shown(window - min(config.segment_length, len(tokens)))

    def _shown(self, window: int) -> str:
        """What of the document stands in a prompt of at most `window` tokens."""
        # As many passages as the shortest segments would give: the longest instruction.
        most = len(self.tokens)
        room = min(self.config.recite_context, window - len(self._prompt("...", most, most)))
        while room >= 2:
            text = truncate(self.tokenizer, self.tokens.tolist(), room)
            # Text does not always give the tokens back that it came from.
            surplus = len(self._prompt(text, most, most)) - window
            if surplus <= 0:
                return text
            room -= surplus
        if len(self._prompt("", most, most)) > window:
            raise UsageError(
                f"segment_length {self.config.segment_length} leaves no room for recitation's "
                "instruction in the model's window"
            )
        return ""

    def _prompt(self, text: str, number: int, total: int) -> list[int]:
        about = f'Please recite a passage of "{self.title}".\n\n'
        prompt = (f"{about}{text}\n\n" if text else about) + f"Recite passage {number} of {total}."
        return answer.prompt_ids(self.tokenizer, prompt, CUE)

    @property
    def longest(self) -> int:
        # The first epoch need not hold a segment of full length.
        segment = min(self.config.segment_length, len(self.tokens))
        return segment + len(self._prompt(self.text, len(self.tokens), len(self.tokens)))

    def samples(self, epoch: int) -> list[Sample]:
        segments = cut(len(self.tokens), self.config, epoch)
        samples = []
        for i, weights in enumerate(segments.weights):
            prompt = self._prompt(self.text, i + 1, len(segments))
            passage = self.tokens[segments.start[i] : segments.stop[i]]
            samples.append(prompted(prompt, passage, self.name, weights))
        return samples
