"""Settings of one LIFT run."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import operator
from dataclasses import dataclass
from typing import Any

from liftcore.errors import UsageError
from liftcore.presets import PRESETS

OBJECTIVES = ("segments", "recitation", "qa", "distill", "distill-segments", "replay")
QA_CONTEXTS = ("none", "truncated")
QA_KINDS = ("question", "quiz", "order", "gap", "continue", "summary", "rephrasing", "facts")
SCHEDULES = ("jitter", "overlap", "trivial")
OVERLAP_LOSSES = ("all", "new", "mean")
LR_SCHEDULES = ("constant", "cosine")
BASE_DTYPES = ("model", "fp8")
ADAPTER_INITS = ("random", "document")
REPLAY_TARGETS = ("soft", "hard")
# Which names a setting may take.
CHOICES = {
    "schedule": SCHEDULES,
    "overlap_loss": OVERLAP_LOSSES,
    "lr_schedule": LR_SCHEDULES,
    "base_dtype": BASE_DTYPES,
    "adapter_init": ADAPTER_INITS,
    "objectives": OBJECTIVES,
    "qa_context": QA_CONTEXTS,
    "qa_kinds": QA_KINDS,
    "replay_targets": REPLAY_TARGETS,
}
ABOVE_0 = ("alpha", "learning_rate", "max_grad_norm", "eps", "init_damping", "keep")
NOT_NEGATIVE = ("weight_decay", "seed", "min_steps", "segment_epochs", "recite_context")
# Epochs and ranks beyond it are slips of the hand.
MOST = 100_000
LARGEST = 3.4e38  # of an fp32 number


def _whole(name: str, value: Any) -> int:
    """A whole number of Python, NumPy or another kind as Python's; bool is none."""
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            if abs(whole := operator.index(value)) < 2**63:
                return whole
            raise UsageError(f"{name} is too large: {whole}")
    raise UsageError(f"{name} must be a whole number, not {value!r}")


def _number(name: str, value: object) -> float:
    """A number of Python, NumPy or another kind, which fp32 can hold, as Python's; bool is none."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if abs(number := float(value)) <= LARGEST:
                return number
    raise UsageError(f"{name} must be a number, and not a huge one: {value!r}")


def _layers(value: Any) -> float | tuple[int, int]:
    """A share of the layers in (0, 1], or (first, last); whether they exist only a model says."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        _need(len(value) == 2, f"layers needs a first and a last one: {value!r}")
        return _whole("layers", value[0]), _whole("layers", value[1])
    share = _number("layers", value)
    _need(0 < share <= 1, f"layers is a share in (0, 1], or a first and a last one: {value!r}")
    return share


def _meant(changes: dict[str, Any]) -> dict[str, Any]:
    """Changed settings: who says a number of epochs means it, whatever min_steps was."""
    return {"min_steps": 0, **changes} if "epochs" in changes else changes


def _need(ok: bool, message: str) -> None:
    if not ok:
        raise UsageError(message)


@dataclass(frozen=True)
class LiftConfig:
    """How a document is cut, scored and trained on; each setting is a flag of the command line.

    As it stands it is plain LoRA on all layers. What liftcore takes for a document by itself are
    the presets "memorize" and "understand" (LiftConfig.preset).

    segment_length   S, tokens a segment
    stride           tokens between the starts of neighbours; only for schedule overlap, and 3/8 S
                     where it is not given (LIFT, equation 3)
    schedule         jitter: contiguous segments, boundaries moved by a fresh offset each epoch;
                     overlap: fixed segments with a stride; trivial: stride = S
    overlap_loss     which tokens count as targets: all, new (only in the first segment that holds
                     them) or mean (weight 1 / number of segments that hold them)
    epochs           passes over the document
    min_steps        steps on segments that the run has at least: a document that is too short for
                     as many has more epochs. 0 where a preset or a copy is given its epochs
    batch_size       segments a step; shorter ones are packed to batch_size times S tokens
    tokens_per_step  the same as a number of tokens, in place of batch_size
    learning_rate    peak rate of AdamW
    lr_schedule      constant, or cosine to 0, after the warm-up
    warmup           share of all steps, linear from 0
    rank             of LoRA
    alpha            LoRA is scaled by alpha / rank; 2 rank where it is not given
    layers           which decoder layers get LoRA: a share of them from the top (0.5: the upper
                     half), or the first and the last, both included, negative ones counted from
                     the end (15,29 or 15,-1). Below the first nothing is kept and no gradient
                     is computed
    exclude_modules  ends of the paths of linear layers that get no LoRA (PEFT's exclude_modules)
    train_a          train LoRA's A as well as its B; without, A stays as it begins
    adapter_init     how A begins: random, or document: the directions in which the document's
                     inputs differ most from those of the model's own words
    init_damping     of adapter_init document: what is added to the second moment of the model's
                     own words, as a share of its mean diagonal
    base_dtype       what the frozen linear layers are: model, as they were loaded; fp8, in which
                     they are put in place, for good (e4m3, a scale a row); the adapter's dtype
                     stays. Faster on GPUs from sm_89 on, on a CPU slower
    weight_decay     of AdamW
    max_grad_norm    gradients are clipped by this global norm
    beta1            of AdamW
    beta2            of AdamW
    eps              of AdamW
    seed             everything random derives from it
    objectives       what is trained on; their samples share the steps. distill teaches the
                     questions where the run has any, else segments
    mix              weight of each objective, which its token weights are multiplied by; 1 each
                     where it is not given
    segment_epochs   the first so many epochs train on segments alone
    qa_context       none: a training question names the title only; truncated: the document
                     stands beside it, cut to the model's window
    qa_kinds         what the model asks itself (liftcore.questions.self_study)
    qa_length        tokens of a chat of several questions, which need a chat template and
                     qa_context none; segment_length where it is not given
    qa_first         training waits until all questions are made, and does not run beside it
    recite_context   tokens of the document's head and tail that recitation shows, where they fit
    replay_share     of the tokens of an epoch, those of the objective replay, prompts included;
                     0.2 where it is not given; 0.05 at first where keep brings in a replay that the
                     settings have not
    replay_rows      how many of the model's own words replay has; they are made once a model
    replay_targets   what replay teaches: soft, the base model's likeliest tokens; hard, its words
    keep             nats that the loss on held-out own words may rise by: replay's share grows
                     while it is above, and the run ends with its last adapter within it

    Raises UsageError for values that make no sense together.
    """

    segment_length: int = 128
    stride: int | None = None
    schedule: str = "jitter"
    overlap_loss: str = "all"
    epochs: int = 12
    min_steps: int = 0
    batch_size: int = 2
    tokens_per_step: int | None = None
    learning_rate: float = 2e-3
    lr_schedule: str = "cosine"
    warmup: float = 0.05
    rank: int = 64
    alpha: float | None = None
    layers: float | tuple[int, int] | None = None
    exclude_modules: tuple[str, ...] = ()
    train_a: bool = True
    adapter_init: str = "random"
    init_damping: float = 0.001
    base_dtype: str = "model"
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
    qa_length: int | None = None
    qa_first: bool = False
    recite_context: int = 4096
    replay_share: float | None = None
    replay_rows: int = 256
    replay_targets: str = "soft"
    keep: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._take(field.name, str(field.type), getattr(self, field.name))
        for name, choices in CHOICES.items():
            self._check_choice(name, getattr(self, name), choices)
        names = self.exclude_modules
        fine = isinstance(names, tuple) and all(isinstance(n, str) and n for n in names)
        _need(fine, f"exclude_modules is no list of names: {names!r}")
        for name in ABOVE_0:
            value = getattr(self, name)
            _need(value is None or value > 0, f"{name} must be above 0: {value}")
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            _need(value >= 0, f"{name} must not be negative: {value}")
        for name in ("epochs", "rank"):
            value = getattr(self, name)
            _need(1 <= value <= MOST, f"{name} must lie between 1 and {MOST:,}: {value}")
        _need(self.min_steps <= MOST, f"min_steps must be at most {MOST:,}: {self.min_steps}")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _need(0 <= value < 1, f"{name} must lie in [0, 1): {value}")
        size, stride, tokens = self.segment_length, self.stride, self.tokens_per_step
        _need(size >= 2, f"segment_length must be at least 2: {size}")
        chat = self.qa_length
        _need(chat is None or chat >= 2, f"qa_length must be at least 2: {chat}")
        if stride is not None:
            _need(
                1 <= stride <= size,
                f"stride must lie between 1 and segment_length ({size}): {stride}",
            )
            _need(
                self.schedule == "overlap" or stride == size,
                f'schedule "{self.schedule}" has contiguous segments; '
                'a stride belongs to schedule "overlap"',
            )
        _need(self.batch_size >= 1, f"batch_size must be at least 1: {self.batch_size}")
        _need(
            tokens is None or tokens >= size,
            f"tokens_per_step must be at least segment_length ({size}): {tokens}",
        )
        _need(0 <= self.warmup < 1, f"warmup is a share of all steps in [0, 1): {self.warmup}")
        share = self.shared_by_replay
        _need(0 <= share < 1, f"replay_share is a share of all tokens in [0, 1): {share}")
        _need(self.replay_rows >= 1, f"replay_rows must be at least 1: {self.replay_rows}")
        names, first = self.objectives, self.segment_epochs
        _need(
            self.mix is None or (isinstance(self.mix, tuple) and len(self.mix) == len(names)),
            f"mix needs one number for each of {', '.join(names)}: {self.mix!r}",
        )
        for weight in self.weights:
            _need(weight > 0, f"a weight of mix must be above 0: {weight}")
        _need(
            first == 0 or ("segments" in names and first < self.epochs),
            f"segment_epochs ({first}) needs the objective segments, and more epochs than that",
        )

    def _take(self, name: str, kind: str, value: Any) -> None:
        """Keeps a value as Python's: JSON knows no tuples, and NumPy's numbers are not Python's."""
        if value is None and kind.endswith("None"):
            return
        if name == "layers":
            value = _layers(value)
        elif kind.startswith("int"):
            value = _whole(name, value)
        elif kind.startswith("float"):
            value = _number(name, value)
        elif kind.startswith("tuple"):
            value = value.tolist() if hasattr(value, "tolist") else value
            value = tuple(value) if isinstance(value, list) else value
            if isinstance(value, tuple) and "float" in kind:
                value = tuple(_number(f"a weight of {name}", each) for each in value)
        elif kind == "bool":
            _need(
                type(value).__name__ in ("bool", "bool_"),
                f"{name} must be True or False: {value!r}",
            )
            value = bool(value)
        object.__setattr__(self, name, value)

    def _check_choice(self, name: str, value: Any, choices: tuple[str, ...]) -> None:
        one = {"objectives": "objective", "qa_kinds": "kind"}.get(name)
        listed = isinstance(value, tuple) and len(value) > 0
        _need(one is None or listed, f"{name} is no list: {value!r}")
        for each in value if one else (value,):
            known = ", ".join(choices)
            _need(each in choices, f"unknown {one or name} {each!r}: choose from {known}")
        if one:
            _need(len(set(value)) == len(value), f"{name} names one twice: {', '.join(value)}")

    @property
    def start_distance(self) -> int:
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
    def shared_by_replay(self) -> float:
        """replay_share, with its default resolved."""
        return 0.2 if self.replay_share is None else self.replay_share

    @property
    def weights(self) -> tuple[float, ...]:
        """γ of each objective, with mix's default of 1 resolved."""
        return (1.0,) * len(self.objectives) if self.mix is None else self.mix

    def replace(self, **changes: Any) -> LiftConfig:
        """A copy with some settings changed."""
        return dataclasses.replace(self, **_meant(changes))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> LiftConfig:
        """The settings of a name, with changes. Raises UsageError for an unknown name.

        memorize     segments alone, with an adapter made for the document on the upper half of
                     the layers; tuned for the embedded model
        understand   segments, questions and a little of the model's own words, for a chat model
                     that is to answer
        large        memorize with longer segments and a lower rate, a starting point for models of
                     3 to 10 billion parameters; not measured
        plain        LiftConfig() as it stands: plain LoRA on all layers
        paper        LIFT as published, segments alone; paper-v1 and paper-v4 with questions
        """
        _need(name in PRESETS, f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
        settings: dict[str, Any] = {**PRESETS[name], **_meant(changes)}
        if name == "understand" and "mix" not in settings:
            gammas = {"qa": 4.0, "replay": 2.0}
            settings["mix"] = tuple(gammas.get(o, 1.0) for o in settings["objectives"])
        return cls(**settings)

    @classmethod
    def paper(cls, **changes: Any) -> LiftConfig:
        """preset("paper"): LIFT as published."""
        return cls.preset("paper", **changes)

    @classmethod
    def large(cls, **changes: Any) -> LiftConfig:
        """preset("large"): a starting point for models of 3 to 10 billion parameters."""
        return cls.preset("large", **changes)
