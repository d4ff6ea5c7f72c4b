"""A memory as a repository of the Hugging Face Hub: the adapter, what is known of it, a card.

The document stays at home unless it is asked for, and the repository is private unless it is to
be public: an adapter that has learnt a text may recite it.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liftcore import embedded, files
from liftcore.adapter import CONFIG, WEIGHTS
from liftcore.errors import LiftError, UsageError
from liftcore.export.saved import Saved
from liftcore.output import DOCUMENT, INFO, PICTURE, QUESTIONS
from liftcore.pretrained import HUB_NAME
from liftcore.terminal import note, one_line

CARD = "README.md"
# What the embedded model was before it was quantised for its package.
EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
TAGS = ["liftcore", "lift", "lora", "memory"]


@dataclass(frozen=True)
class Upload:
    """repo     USER/NAME
    base        the base model's name on the Hub
    document    whether the text goes along
    public      whether everybody may read the repository
    """

    repo: str
    base: str
    document: bool = False
    public: bool = False


def upload_of(
    saved: Saved,
    repo: str,
    *,
    base: str | None = None,
    document: bool = False,
    public: bool = False,
) -> Upload:
    """Raises UsageError for a name that no repository has, and where the base model's name on the
    Hub is not known; LiftError for a document that the memory does not have."""
    if not HUB_NAME.fullmatch(repo):
        raise UsageError(f"not the name of a repository: {repo!r}; USER/NAME")
    own = saved.info.about.base_model
    base = base or (EMBEDDED if own == embedded.NAME else own)
    if not HUB_NAME.fullmatch(base) or Path(base).is_dir():
        raise UsageError(
            f"{base} is no name on the Hub, and others will look for it there: "
            "--base-model USER/NAME says what it is called"
        )
    if document and not (saved.folder / DOCUMENT).is_file():
        raise LiftError(f"{saved.folder} holds no {DOCUMENT} to go along")
    return Upload(repo, base, document, public)


def stage(saved: Saved, upload: Upload, folder: Path) -> list[str]:
    """Writes what would be uploaded into an empty folder; returns the names."""
    with_document = [DOCUMENT, QUESTIONS] if upload.document else []
    for name in (WEIGHTS, PICTURE, *with_document):
        if (saved.folder / name).is_file():
            shutil.copyfile(saved.folder / name, folder / name)
    (folder / CONFIG).write_text(
        json.dumps({**saved.settings, "base_model_name_or_path": upload.base}, indent=2) + "\n"
    )
    (folder / CARD).write_text(_card(saved, upload, (folder / PICTURE).exists()), "utf-8")
    info = json.loads((saved.folder / INFO).read_bytes())
    if saved.info.about.base_model != embedded.NAME:
        info["base_model"] = upload.base
    names = sorted([*files.names_in(folder), INFO])
    info["files"] = [name for name in names if name != CARD]
    (folder / INFO).write_text(json.dumps(info, indent=2) + "\n")
    return names


def push(saved: Saved, upload: Upload) -> str:
    """Uploads the memory; returns its address. What an earlier memory left there of its document
    goes.

    Raises LiftError with the Hub's reason, and when everybody may read a repository that is there
    already, unless the upload is to be public.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix="liftcore-hub-") as new:
        stage(saved, upload, Path(new))
        try:
            api = HfApi()
            api.create_repo(upload.repo, private=not upload.public, exist_ok=True)
            # One that was there keeps its own setting.
            private = api.repo_info(upload.repo).private
            if not (private or upload.public):
                raise LiftError(
                    f"everybody can read {upload.repo}, and the adapter may recite the document: "
                    "--public uploads it all the same, or make the repository private first"
                )
            if private and upload.public:
                note(f"liftcore: {upload.repo} stays private, as it was")
            done: Any = api.upload_folder(
                repo_id=upload.repo,
                folder_path=new,
                commit_message="A memory made with liftcore",
                delete_patterns=[DOCUMENT, QUESTIONS, PICTURE],
            )
        except LiftError:
            raise
        except Exception as error:
            raise LiftError(
                f"cannot upload to {upload.repo}: {one_line(str(error)) or type(error).__name__}; "
                "`hf auth login` gives access"
            ) from error
    return str(getattr(done, "commit_url", done))


def _card(saved: Saved, upload: Upload, picture: bool) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        library_name="peft", base_model=upload.base, tags=TAGS, pipeline_tag="text-generation"
    )
    info, name = saved.info, upload.repo.split("/")[1]
    recall = info.report.recall
    settings = {
        "rank": saved.rank,
        "alpha": f"{saved.alpha:g}",
        "objectives": ", ".join(info.config.objectives),
        "epochs": info.config.epochs,
        "learning rate": info.config.learning_rate,
        "segment length": info.config.segment_length,
        "seed": info.config.seed,
    }
    lines = [
        f"# {name}",
        f"A LoRA adapter that has learnt one document of {info.about.tokens:,} tokens, "
        f"{_text(info.about.title)}, by LIFT (Long Input Fine-Tuning, arXiv 2412.13626). It was "
        "made with liftcore.",
        "Recall was not measured."
        if recall is None
        else f"Greedy recall: **{recall:.1%}**, the share of {info.report.new_tokens} tokens "
        f"generated behind {info.report.prompt_tokens} tokens of the document that equal the "
        f"document's, at {len(info.report.positions)} places.",
    ]
    if picture:
        lines.append(f"![recall along the document]({PICTURE})")
    if saved.info.about.base_model == embedded.NAME:
        lines.append(
            f"It was trained on {embedded.NAME}, which is {upload.base} after quantisation to "
            "four bits and back. On the model itself its recall has not been measured; "
            "`liftcore.load_memory` takes the one that it was trained on."
        )
    lines += [
        f'```python\nimport liftcore\n\nmemory = liftcore.load_memory("{upload.repo}")\n'
        'print(memory.ask("What is it about?"))\n```',
        "or with PEFT alone:",
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{upload.base}")\n'
        f'model = PeftModel.from_pretrained(base, "{upload.repo}")\n```',
        "| setting | value |\n|---|---|\n"
        + "\n".join(f"| {name} | {value} |" for name, value in settings.items()),
        "The adapter may recite the document.",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(lines) + "\n"))


def _text(title: str) -> str:
    """A title as words of Markdown, whatever it spells."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~$&-])", r"\\\1", one_line(title))
