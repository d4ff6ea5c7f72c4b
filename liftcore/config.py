"""Settings of one LIFT run."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import operator
from dataclasses import dataclass

from liftcore.errors import UsageError

OBJECTIVES = ("segments", "recitation", "qa", "distill", "distill-segments")
QA_CONTEXTS = ("none", "truncated")
QA_KINDS = ("question", "quiz", "gap", "continue", "summary", "rephrasing", "facts")
PRESETS = ("memorize", "understand", "large", "paper", "paper-v1", "paper-v4")
SCHEDULES = ("jitter", "overlap", "trivial")
OVERLAP_LOSSES = ("all", "new", "mean")
LR_SCHEDULES = ("constant", "cosine")
WHOLE = (
    "segment_length", "epochs", "batch_size", "rank", "seed", "segment_epochs", "recite_context",
)  # fmt: skip
NUMBERS = (
    "learning_rate", "warmup", "weight_decay", "max_grad_norm", "beta1", "beta2", "eps",
)  # fmt: skip
# Epochs and ranks beyond it are slips of the hand.
MOST = 100_000
LARGEST = 3.4e38  # of an fp32 number


def preset_for(tokenizer) -> str:
    """The preset for a model that nobody chose one for: a chat model is to answer, any other to
    recite."""
    return "understand" if getattr(tokenizer, "chat_template", None) else "memorize"


def _whole(name: str, value) -> int:
    """A whole number of Python, NumPy or another kind as Python's; bool is none."""
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            if abs(whole := operator.index(value)) < 2**63:
                return whole
            raise UsageError(f"{name} is too large: {whole}")
    raise UsageError(f"{name} must be a whole number, not {value!r}")


def _number(name: str, value) -> float:
    """A number of Python, NumPy or another kind, which fp32 can hold, as Python's; bool is none."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if abs(number := float(value)) <= LARGEST:
                return number
    raise UsageError(f"{name} must be a number, and not a huge one: {value!r}")


@dataclass(frozen=True)
class LiftConfig:
    """How a document is cut, scored and trained on.

    segment_length   S, tokens a segment.
    stride           tokens between the starts of neighbours; only for schedule "overlap", where
                     None means 3/8 of the segment length (LIFT, equation 3).
    schedule         "jitter": contiguous segments, boundaries moved by a fresh offset each
                     epoch; "overlap": fixed segments with a stride; "trivial": stride = length.
    overlap_loss     which tokens count as targets: "all", "new" (only in the first segment that
                     holds them) or "mean" (weight 1 / number of segments that hold them).
    epochs           passes over the document.
    batch_size       segments a step; shorter ones are packed to batch_size · segment_length.
    tokens_per_step  the same as a number of tokens, in place of batch_size.
    learning_rate    peak rate of AdamW; lr_schedule "constant" or "cosine" (to 0) after
                     `warmup` (a share of all steps, linear from 0).
    rank, alpha      LoRA on every linear layer with scaling alpha / rank; alpha None: 2 rank.
    weight_decay, max_grad_norm, beta1, beta2, eps: AdamW and clipping by the global norm.
    seed             everything random derives from it.
    objectives       what is trained on, any of OBJECTIVES; their samples share the steps. "distill"
                     teaches the questions where the run has any, else segments.
    mix              γ of each objective, which its token weights are multiplied by; None: 1 each.
    segment_epochs   the first so many epochs train on segments alone.
    qa_context       "none": a training question names the title only; "truncated": the document
                     stands beside it, cut to the model's window.
    qa_kinds         which of QA_KINDS the model's own pairs are (liftcore.questions.self_study).
    qa_first         training waits until all questions are made, and does not run beside it.
    recite_context   tokens of the document's head and tail that recitation shows, where they fit.

    Raises UsageError for values that make no sense together.
    """

    segment_length: int = 128
    stride: int | None = None
    schedule: str = "jitter"
    overlap_loss: str = "all"
    epochs: int = 12
    batch_size: int = 2
    tokens_per_step: int | None = None
    learning_rate: float = 2e-3
    lr_schedule: str = "cosine"
    warmup: float = 0.05
    rank: int = 64
    alpha: float | None = None
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    seed: int = 0
    objectives: tuple[str, ...] = ("segments",)
    mix: tuple[float, ...] | None = None
    segment_epochs: int = 0
    qa_context: str = "none"
    qa_kinds: tuple[str, ...] = ("quiz",)
    qa_first: bool = False
    recite_context: int = 4096

    def __post_init__(self):
        # JSON knows no tuples, and NumPy's numbers are not Python's.
        for name in ("objectives", "mix", "qa_kinds"):
            value = getattr(self, name)
            value = value.tolist() if hasattr(value, "tolist") else value
            if isinstance(value, list):
                self._set(name, tuple(value))

        def need(ok: bool, message: str) -> None:
            if not ok:
                raise UsageError(message)

        for name in WHOLE:
            self._set(name, _whole(name, getattr(self, name)))
        for name in NUMBERS:
            self._set(name, _number(name, getattr(self, name)))
        for name in ("stride", "tokens_per_step"):
            if getattr(self, name) is not None:
                self._set(name, _whole(name, getattr(self, name)))
        if self.alpha is not None:
            self._set("alpha", _number("alpha", self.alpha))
        if isinstance(self.mix, tuple):
            self._set("mix", tuple(_number("a weight of mix", each) for each in self.mix))
        if type(self.qa_first).__name__ in ("bool", "bool_"):
            self._set("qa_first", bool(self.qa_first))
        need(self.segment_length >= 2, f"segment_length must be at least 2: {self.segment_length}")
        for name, known in (
            ("schedule", SCHEDULES),
            ("overlap_loss", OVERLAP_LOSSES),
            ("lr_schedule", LR_SCHEDULES),
            ("qa_context", QA_CONTEXTS),
        ):
            value = getattr(self, name)
            need(value in known, f"unknown {name} {value!r}: choose from {', '.join(known)}")
        if self.stride is not None:
            need(
                1 <= self.stride <= self.segment_length,
                f"stride must lie between 1 and segment_length ({self.segment_length}): "
                f"{self.stride}",
            )
            need(
                self.schedule == "overlap" or self.stride == self.segment_length,
                f'schedule "{self.schedule}" has contiguous segments; '
                'a stride belongs to schedule "overlap"',
            )
        need(1 <= self.epochs <= MOST, f"epochs must lie between 1 and {MOST:,}: {self.epochs}")
        need(self.batch_size >= 1, f"batch_size must be at least 1: {self.batch_size}")
        tokens = self.tokens_per_step
        need(
            tokens is None or tokens >= self.segment_length,
            f"tokens_per_step must be at least segment_length ({self.segment_length}): {tokens}",
        )
        need(1 <= self.rank <= MOST, f"rank must lie between 1 and {MOST:,}: {self.rank}")
        need(self.alpha is None or self.alpha > 0, f"alpha must be above 0: {self.alpha}")
        need(self.learning_rate > 0, f"learning_rate must be above 0: {self.learning_rate}")
        need(0 <= self.warmup < 1, f"warmup is a share of all steps in [0, 1): {self.warmup}")
        need(self.weight_decay >= 0, f"weight_decay must not be negative: {self.weight_decay}")
        need(self.max_grad_norm > 0, f"max_grad_norm must be above 0: {self.max_grad_norm}")
        need(self.eps > 0, f"eps must be above 0: {self.eps}")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            need(0 <= value < 1, f"{name} must lie in [0, 1): {value}")
        need(0 <= self.seed < 2**63, f"seed must not be negative: {self.seed}")
        self._check_objectives(need)

    def _check_objectives(self, need) -> None:
        for what, known in (("objectives", OBJECTIVES), ("qa_kinds", QA_KINDS)):
            names, one = getattr(self, what), {"objectives": "objective", "qa_kinds": "kind"}[what]
            need(isinstance(names, tuple) and len(names) > 0, f"{what} is no list: {names!r}")
            for name in names:
                need(name in known, f"unknown {one} {name!r}: choose from {', '.join(known)}")
            need(len(set(names)) == len(names), f"{what} names one twice: {', '.join(names)}")
        names = self.objectives
        need(
            self.mix is None or (isinstance(self.mix, tuple) and len(self.mix) == len(names)),
            f"mix needs one number for each of {', '.join(names)}: {self.mix!r}",
        )
        for weight in self.weights:
            need(weight > 0, f"a weight of mix must be above 0: {weight}")
        first = self.segment_epochs
        need(first >= 0, f"segment_epochs must not be negative: {first}")
        need(
            first == 0 or ("segments" in names and first < self.epochs),
            f"segment_epochs ({first}) needs the objective segments, and more epochs than that",
        )
        need(isinstance(self.qa_first, bool), f"qa_first must be True or False: {self.qa_first!r}")
        shown = self.recite_context
        need(shown >= 0, f"recite_context must not be negative: {shown}")

    def _set(self, name: str, value) -> None:
        object.__setattr__(self, name, value)

    @property
    def step_length(self) -> int:
        """Tokens between the starts of neighbouring segments."""
        if self.schedule != "overlap":
            return self.segment_length
        return self.stride or max(1, self.segment_length * 3 // 8)

    @property
    def target_tokens(self) -> int:
        """Tokens that the segments of a step are packed to."""
        return self.tokens_per_step or self.batch_size * self.segment_length

    @property
    def lora_alpha(self) -> float:
        """alpha, with its default of twice the rank resolved."""
        return float(2 * self.rank if self.alpha is None else self.alpha)

    @property
    def weights(self) -> tuple[float, ...]:
        """γ of each objective, with mix's default of 1 resolved."""
        return (1.0,) * len(self.objectives) if self.mix is None else self.mix

    def replace(self, **changes) -> LiftConfig:
        """A copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def preset(cls, name: str, **changes) -> LiftConfig:
        """The settings of a name, with changes. Raises UsageError for an unknown name.

        memorize     the defaults: segments alone, tuned for the embedded model
        understand   segments and questions, for a chat model that is to answer: of the mixes that
                     cost nothing to make, one of the two best of bench understand
        large        segments alone, for models of 3 to 10 billion parameters; not measured
        paper        LIFT as published, segments alone; paper-v1 and paper-v4 with questions
        """
        if name not in PRESETS:
            raise UsageError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
        if name == "understand":
            names = changes.get("objectives", ("segments", "qa"))
            mix = tuple(4.0 if name == "qa" else 1.0 for name in names)
            settings = dict(objectives=tuple(names), mix=mix, rank=16, batch_size=1)
            return cls(**{**settings, **changes})
        if name == "paper-v1":
            return cls.paper_v1(**changes)
        if name == "paper-v4":
            return cls.paper(**{"objectives": ("segments", "qa"), **changes})
        return {"memorize": cls, "large": cls.large, "paper": cls.paper}[name](**changes)

    @classmethod
    def paper(cls, **changes) -> LiftConfig:
        """LIFT as published: stride 3/8, every token of every segment scored, r = 128, α = 256,
        batch 4, constant rate 5e-5, 5 epochs (arXiv 2502.14644 v4)."""
        settings = dict(
            segment_length=2048,
            schedule="overlap",
            overlap_loss="all",
            epochs=5,
            batch_size=4,
            learning_rate=5e-5,
            lr_schedule="constant",
            warmup=0.0,
            rank=128,
            alpha=256.0,
        )
        return cls(**{**settings, **changes})

    @classmethod
    def paper_v1(cls, **changes) -> LiftConfig:
        """The first version of the paper: 2 epochs on segments, then 3 on segments and questions
        beside the truncated document, constant rate 1e-5. It trained all weights or PiSSA of rank
        128; here it is LoRA of rank 128, with the batch of v4."""
        settings = dict(
            objectives=("segments", "qa"),
            segment_epochs=2,
            qa_context="truncated",
            learning_rate=1e-5,
        )
        return cls.paper(**{**settings, **changes})

    @classmethod
    def large(cls, **changes) -> LiftConfig:
        """A starting point for models of 3 to 10 billion parameters: longer segments and a
        smaller rate than the defaults, which are tuned for a 135M model. Not yet measured."""
        settings = dict(segment_length=1024, learning_rate=3e-4, rank=128, epochs=8)
        return cls(**{**settings, **changes})
