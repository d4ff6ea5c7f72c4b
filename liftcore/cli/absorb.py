"""liftcore absorb and sft: a document becomes a memory, a corpus an adapter to begin from."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from liftcore.cli import options, runfile
from liftcore.cli.launched import launched, restarted
from liftcore.errors import LiftError, LostError, UsageError
from liftcore.terminal import RECALL, note, show

if TYPE_CHECKING:
    from liftcore.config import LiftConfig
    from liftcore.document import Document
    from liftcore.memory import Memory
    from liftcore.training.log import Result
    from liftcore.training.parallel import Ranks


def add(verbs: options.Verbs) -> None:
    parser = options.verb(verbs, "absorb", run, "train an adapter on a document")
    options.file_argument(parser)
    options.model_options(parser, options.EMBEDDED)
    parser.add_argument("--out", metavar="DIR", help="folder of the adapter (FILE's name-memory)")
    parser.add_argument("--title", help="how questions name the document (FILE's name)")
    parser.add_argument(
        "--init", metavar="DIR", help="begin from this adapter, as sft or absorb wrote it"
    )
    options.settings(parser, options.BY_MODEL)
    questions = question_options(parser)
    questions.add_argument(
        "--qa",
        metavar="JSONL",
        help="your own: one JSON object a line, or an array of them, with keys question and answer",
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    options.force_option(parser)
    parser.add_argument("--merge", action="store_true", help="also write the merged model")
    parser.add_argument(
        "--shard-base",
        action="store_true",
        help="spread the base model's layers over the processes of torchrun",
    )
    parser.add_argument(
        "--without-document",
        action="store_true",
        help="keep no copy of the text beside the adapter",
    )
    runfile.add(parser)
    options.tracking_options(parser)
    _add_sft(verbs)


def question_options(parser: argparse.ArgumentParser) -> Any:
    """Where questions come from but the user; the group of these options."""
    questions = parser.add_argument_group("questions")
    questions.add_argument(
        "--qa-server",
        metavar="URL",
        help="an OpenAI-compatible server that makes them; its key "
        "comes from LIFTCORE_QA_KEY or OPENAI_API_KEY",
    )
    questions.add_argument("--qa-model", metavar="NAME", help="what to ask there")
    questions.add_argument(
        "--qa-concurrency", type=int, default=64, metavar="N", help="requests at once (64)"
    )
    questions.add_argument(
        "--qa-self",
        action="store_true",
        help="the model makes them itself (what the objective qa does when no other is given)",
    )
    return questions


def _add_sft(verbs: options.Verbs) -> None:
    parser = options.verb(
        verbs, "sft", sft, "train a starting adapter on many documents, for absorb --init"
    )
    parser.add_argument(
        "corpus",
        metavar="CORPUS",
        help="a folder of documents, with questions in a .jsonl of the same name",
    )
    options.model_options(parser, options.EMBEDDED)
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the adapter")
    options.settings(parser, options.BY_MODEL)
    options.force_option(parser)
    runfile.add(parser)
    options.tracking_options(parser)


def run(args: argparse.Namespace) -> dict:
    with launched(args) as ranks:
        return _absorb(args, ranks)


def _absorb(args: argparse.Namespace, ranks: Ranks) -> dict:
    """The result on rank 0, {} elsewhere."""
    from liftcore import device_memory, lift, output
    from liftcore.training.metrics import metrics

    out = Path(args.out or f"{options.text_file(args.file).stem}-memory")
    state = out / output.STATE
    if restarted() and not args.force and (out / output.INFO).is_file() and not state.exists():
        return _known(args, out) if ranks.first else {}
    with ExitStack() as stack:
        with ranks.together():
            ready = _ready(args, ranks, out, stack)
            told = stack.enter_context(
                metrics(
                    *_trackers(args, ranks),
                    name=ready.document.title,
                    settings=vars(ready.config),
                )
            )
        started = time.perf_counter()
        device_memory.reset_peak(next(ready.model.parameters()).device)
        try:
            memory = lift.absorb(
                *(ready.model, ready.tokenizer, ready.document),
                config=ready.config,
                resume=out,
                qa=ready.sources,
                init=args.init,
                on_step=told.step,
            )
            seconds = time.perf_counter() - started
            with ranks.together():
                keep = not args.without_document
                memory.save(out, force=True, merge=args.merge, with_document=keep)
        except (KeyboardInterrupt, LostError) as error:
            if state.exists():
                note(f"\nliftcore: the same command with --resume goes on from {out}")
            elif isinstance(error, KeyboardInterrupt):
                note("\nliftcore: no step was taken; the same command takes up what was made")
            raise
        told.end(
            recall=memory.report.recall,
            forgotten=memory.report.forgotten,
            last_epoch_loss=memory.training.loss,
            seconds=memory.training.seconds,
        )
    if not ranks.first:
        return {}
    _print_absorbed(memory, out)
    training = memory.training
    return {
        "recall": memory.report.recall,
        "seconds": training.seconds,
        "tokens": memory.length,
        "out": str(out),
        "token_passes": training.token_passes,
        "loss": training.loss,
        "forgotten": memory.report.forgotten,
        "limit": training.limit,
        "kept": training.kept,
        "own_words_seconds": training.own_words,
        "objectives": memory.config.objectives,
        "making_seconds": training.making,
        "hidden_seconds": training.hidden,
        "waited_seconds": training.waited,
        "questions": training.questions,
        "total_seconds": seconds,
        "peak_bytes": device_memory.peak_bytes(memory.adapter.values.device),
        "processes": ranks.size,
    }


class _Ready(NamedTuple):
    """What absorb begins with."""

    model: Any
    tokenizer: Any
    document: Document
    config: LiftConfig
    sources: list[Any] | None


def _ready(args: argparse.Namespace, ranks: Ranks, out: Path, stack: ExitStack) -> _Ready:
    """Reads and loads, and tries what can be tried before; what writes or asks is rank 0's."""
    from liftcore import adapter, output, prepare
    from liftcore import document as documents
    from liftcore.layers.lora import lora_layers
    from liftcore.layers.targets import check_mergeable
    from liftcore.memory import check_output, check_room
    from liftcore.model import load_tokenizer
    from liftcore.objectives.build import SELF, named_sources

    tokenizer = load_tokenizer(args.model)
    preset = args.preset or options.preset(args, tokenizer)
    config = options.config(args, preset, **adapter.settings_of(args.init))
    if args.merge and config.base_dtype != "model":
        raise UsageError("--merge needs the model's own weights: leave out --base-dtype")
    file = options.text_file(args.file)
    reading = options.reading(file)
    title = args.title or (None if file == options.STDIN else documents.title_of(file))
    state, sources, resume = out / output.STATE, None, args.resume or restarted()
    if args.shard_base:
        options.check_sharding(args, ranks, config)
    if ranks.first:
        keep = not args.without_document
        check_output(out, force=args.force or restarted(), merge=args.merge, with_document=keep)
        if state.exists() and not resume and not args.force:
            raise LiftError(
                f"{out} holds an unfinished run: --resume goes on with it, --force starts anew"
            )
        # A server begins while the model is still being loaded.
        server, about = options.server(args), (reading.text, title or documents.UNTITLED)
        sources = named_sources(*about, args.qa or None, server, args.qa_self) or None
        for each in sources or ():
            if each != SELF:
                stack.callback(each.close)
    base, _ = options.load(args, tokenizer)
    config = prepare.with_layers_of(base, config, args.init)
    if args.merge:
        check_mergeable(base, lora_layers(base, config))
    document = documents.from_text(reading.text, tokenizer, title, reading.source)
    if ranks.first:
        check_room(out, base, config, merge=args.merge)
        runfile.save(args.save_config, args, config, preset)
        if not resume:
            state.unlink(missing_ok=True)
    return _Ready(base, tokenizer, document, config, sources)


def _trackers(args: argparse.Namespace, ranks: Ranks) -> tuple[str | None, str | None]:
    """Where rank 0 reports to; the others nowhere."""
    return (args.log, args.report_to) if ranks.first else (None, None)


def _known(args: argparse.Namespace, out: Path) -> dict:
    """The result of a run whose memory was already saved when another process ended."""
    from liftcore.info import read_info

    info = read_info(out)
    show(f"{info.report.text()}\nadapter in {out}")
    return {"recall": info.report.recall, "seconds": info.training.seconds, "out": str(out)} | {
        "tokens": info.about.tokens
    }


def _print_absorbed(memory: Memory, out: Path) -> None:
    from liftcore.adapter import vllm_rank

    training, rank = memory.training, vllm_rank(memory.config.rank)
    show(f"absorbed {memory.length:,} tokens in {options.trained(training)}")
    for each in training.questions:
        show(_questions(each))
    if training.making:
        show(
            f"questions were made in {training.making:.1f} s, {training.hidden:.1f} s of it behind "
            f"training, which waited {training.waited:.1f} s"
        )
    if training.starting:
        show(f"before that the adapter was fitted to the document in {training.starting:.1f} s")
    if training.own_words:
        show(f"the model's own words were written in {training.own_words:.1f} s, once a model")
    if memory.config.keep is not None:
        show(_limit(training, memory.config.keep))
    show(memory.report.text(), RECALL)
    served = (
        f"--lora-modules NAME={options.typed(out)} --max-lora-rank {rank}"
        if rank
        else "the rank is too large"
    )
    show(f"adapter in {out} (PEFT form; vLLM: {served})")
    show(f'next: liftcore ask {options.typed(out)} "your question"')


def _limit(training: Result, keep: float) -> str:
    """One line on what ended a run with a forgetting budget."""
    if training.limit == "epochs":
        return f"ended by its epochs, within the forgetting budget of {keep:g} nats"
    if not training.kept:
        return (
            f"nothing was learnt within the forgetting budget of {keep:g} nats: give a larger one"
        )
    return (
        f"ended by the forgetting budget of {keep:g} nats: the adapter is that behind "
        f"{training.kept:.0%} of the token-passes"
    )


def _questions(made: dict) -> str:
    """One line on what a source of pairs gave."""
    text = f"{made['pairs']} questions"
    if "windows" in made:
        text += f" from {made['answered']} of {made['windows']} windows"
    for name in ("failures", "rejected"):
        if made[name]:
            counts = ", ".join(f"{why} {n}" for why, n in made[name].items())
            text += f"; {name}: {counts}"
    return f"{text}; {made['stopped']}" if made.get("stopped") else text


def sft(args: argparse.Namespace) -> dict:
    with launched(args) as ranks:
        return _sft(args, ranks)


def _sft(args: argparse.Namespace, ranks: Ranks) -> dict:
    """The result on rank 0, {} elsewhere."""
    from liftcore import output
    from liftcore.memory import check_room
    from liftcore.model import load_tokenizer
    from liftcore.sft import DEFAULTS
    from liftcore.sft import sft as train
    from liftcore.training.metrics import metrics

    out = Path(args.out)
    with ExitStack() as stack:
        with ranks.together():
            tokenizer = load_tokenizer(args.model)
            defaults = {} if args.preset else DEFAULTS
            preset = args.preset or options.preset(args, tokenizer)
            config = options.config(args, preset, **defaults)
            if ranks.first:
                output.check(out, force=args.force, names=(*output.ADAPTER, output.START))
            model, _ = options.load(args, tokenizer)
            if ranks.first:
                check_room(out, model, config)
                runfile.save(args.save_config, args, config, preset)
            name = f"sft {Path(args.corpus).name}"
            told = stack.enter_context(
                metrics(*_trackers(args, ranks), name=name, settings=vars(config))
            )
        start = train(model, tokenizer, args.corpus, config=config, on_step=told.step)
        with ranks.together():
            start.save(out)
        told.end(last_epoch_loss=start.training.loss, seconds=start.training.seconds)
    if not ranks.first:
        return {}
    show(
        f"{start.documents} documents with {start.pairs} questions in "
        f"{options.trained(start.training)}\n"
        f"adapter in {out}\nnext: liftcore absorb FILE --init {options.typed(out)}"
    )
    return {
        "documents": start.documents,
        "pairs": start.pairs,
        "seconds": start.training.seconds,
        "token_passes": start.training.token_passes,
        "loss": start.training.loss,
        "out": str(out),
    }
