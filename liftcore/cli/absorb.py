"""The verbs that train: absorb and sft."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path

from liftcore.cli.options import EMBEDDED, config, dtype, model_options, settings
from liftcore.config import preset_for
from liftcore.errors import LiftError, UsageError
from liftcore.terminal import note, show

PRESET = "(understand for a chat model, else memorize; memorize with --objective)"

STDIN = Path("/dev/stdin")


def absorb_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a UTF-8 text file; - is standard input")
    model_options(parser, EMBEDDED)
    parser.add_argument("--out", metavar="DIR", help="folder of the adapter (FILE's name-memory)")
    parser.add_argument("--title", help="how questions name the document (FILE's name)")
    parser.add_argument(
        "--init", metavar="DIR", help="begin from this adapter, as sft or absorb wrote it"
    )
    settings(parser, PRESET)
    questions = parser.add_argument_group("questions")
    questions.add_argument(
        "--qa",
        metavar="JSONL",
        help="your own: one JSON object a line, or an array of them, with keys question and answer",
    )
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
    questions.add_argument(
        "--qa-first",
        action="store_true",
        default=None,
        help="make all questions before training, not beside it",
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument(
        "--force", action="store_true", help="write into a folder that is not empty"
    )
    parser.add_argument("--merge", action="store_true", help="also write the merged model")
    parser.add_argument(
        "--without-document",
        action="store_true",
        help="keep no copy of the text beside the adapter",
    )


def sft_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "corpus",
        metavar="CORPUS",
        help="a folder of .txt files, with questions in a .jsonl of the same name",
    )
    model_options(parser, EMBEDDED)
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the adapter")
    settings(parser, PRESET)
    parser.add_argument(
        "--force", action="store_true", help="write into a folder that is not empty"
    )


def absorb(args) -> dict:
    from liftcore import adapter, document, lift, model
    from liftcore import device_memory as usage
    from liftcore.layers.targets import check_mergeable, targets
    from liftcore.memory import check_output, check_room
    from liftcore.objectives.build import SELF
    from liftcore.training import checkpoint

    tokenizer = model.load_tokenizer(args.model)
    chosen = config(args, _preset(args, tokenizer), **adapter.settings_of(args.init))
    file = text_file(args.file)
    text = document.read_text(file)
    title = args.title or (None if file == STDIN else document.title_of(file))
    out = Path(args.out or f"{file.stem}-memory")
    keep = not args.without_document
    check_output(out, force=args.force, merge=args.merge, with_document=keep)
    state = out / checkpoint.FILE_NAME
    if state.exists() and not args.resume and not args.force:
        raise LiftError(
            f"{out} holds an unfinished run: --resume goes on with it, --force starts anew"
        )
    with ExitStack() as stack:
        # A server begins while the model is still being loaded.
        sources = _sources(args, text, title or document.UNTITLED)
        for each in sources or ():
            if each != SELF:
                stack.callback(each.close)
        base, _ = model.load(
            args.model, device=args.device, dtype=dtype(args.dtype), tokenizer=tokenizer
        )
        if args.merge:
            check_mergeable(base, targets(base).layers)
        check_room(out, base, chosen.rank, merge=args.merge)
        source = document.from_text(text, tokenizer, title)
        if not args.resume:
            state.unlink(missing_ok=True)
        started = time.perf_counter()
        usage.reset_peak(next(base.parameters()).device)
        try:
            memory = lift.absorb(
                base, tokenizer, source, config=chosen, resume=out, qa=sources, init=args.init
            )
            seconds = time.perf_counter() - started
            memory.save(out, force=True, merge=args.merge, with_document=keep)
        except KeyboardInterrupt:
            if state.exists():
                note(f"\nliftcore: the same command with --resume goes on from {out}")
            raise
    _print_absorbed(memory, out)
    training = memory.training
    return {
        "recall": memory.report.recall,
        "seconds": training.seconds,
        "tokens": memory.length,
        "out": str(out),
        "token_passes": training.token_passes,
        "loss": training.loss,
        "objectives": memory.config.objectives,
        "making_seconds": training.making,
        "hidden_seconds": training.hidden,
        "waited_seconds": training.waited,
        "questions": training.questions,
        "total_seconds": seconds,
        "peak_bytes": usage.peak_bytes(memory.adapter.values.device),
    }


def text_file(name: str) -> Path:
    """The file of a command line, where - stands for standard input."""
    return STDIN if name == "-" else Path(name)


def _preset(args, tokenizer) -> str:
    """The preset of a command line that names none."""
    return "memorize" if args.objectives is not None else preset_for(tokenizer)


def _sources(args, text: str, title: str) -> list | None:
    """The sources of question-answer pairs that a command line names; None for none."""
    from liftcore.embedded import cache_folder
    from liftcore.objectives.build import SELF, pair_sources
    from liftcore.questions.server import ServerPairs

    found = pair_sources(args.qa) if args.qa else []
    if bool(args.qa_server) != bool(args.qa_model):
        raise UsageError("--qa-server URL and --qa-model NAME go together")
    if args.qa_server:
        cache = cache_folder() / "qa"
        options = dict(cache=cache, concurrency=args.qa_concurrency)
        found.append(ServerPairs(text, title, args.qa_server, args.qa_model, **options))
    if args.qa_self:
        found.append(SELF)
    return found or None


def _print_absorbed(memory, out: Path) -> None:
    from liftcore.adapter import vllm_rank

    training, rank = memory.training, vllm_rank(memory.config.rank)
    show(f"absorbed {memory.length:,} tokens in {_trained(training)}")
    for each in training.questions:
        show(_questions(each))
    if training.making:
        show(
            f"questions were made in {training.making:.1f} s, {training.hidden:.1f} s of it behind "
            f"training, which waited {training.waited:.1f} s"
        )
    show(memory.report.text())
    served = (
        f"--lora-modules NAME={out} --max-lora-rank {rank}" if rank else "the rank is too large"
    )
    show(f"adapter in {out} (PEFT form; vLLM: {served})")
    show(f'next: liftcore ask {out} "your question"')


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


def sft(args) -> dict:
    from liftcore import model, output
    from liftcore import sft as starting
    from liftcore.memory import check_room

    tokenizer = model.load_tokenizer(args.model)
    chosen = config(args, _preset(args, tokenizer), **({} if args.preset else starting.DEFAULTS))
    out = Path(args.out)
    output.check(out, force=args.force, names=(*output.ADAPTER, output.START))
    base, _ = model.load(
        args.model, device=args.device, dtype=dtype(args.dtype), tokenizer=tokenizer
    )
    check_room(out, base, chosen.rank)
    start = starting.sft(base, tokenizer, args.corpus, config=chosen)
    start.save(out)
    show(
        f"{start.documents} documents with {start.pairs} questions in {_trained(start.training)}\n"
        f"adapter in {out}\nnext: liftcore absorb FILE --init {out}"
    )
    return {
        "documents": start.documents,
        "pairs": start.pairs,
        "seconds": start.training.seconds,
        "token_passes": start.training.token_passes,
        "loss": start.training.loss,
        "out": str(out),
    }


def _trained(training) -> str:
    rate = training.token_passes / training.seconds
    return (
        f"{training.seconds:.1f} s ({training.token_passes:,} token-passes, {rate:,.0f} tokens/s, "
        f"last loss {training.loss:.3f})\n{training.how}"
    )
