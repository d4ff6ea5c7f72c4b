"""How a question is put to a model, in the same words for every method of a comparison."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from liftcore import model as models
from liftcore.tokens import chat_ids, text_ids

ALONE = 'Please answer a question about "{title}".\n\nQuestion: {question}'
BESIDE = 'Please answer a question about "{title}".\n\n{document}\n\nQuestion: {question}'


@dataclass(frozen=True)
class Prompt:
    """Templates in the form of str.format, with {title}, {document} and {question}.

    beside    the user's turn with the document's text in it
    alone     the same for a method that puts no text beside the question
    opening   how the answer begins; it stands after the prompt, and the model goes on with it
    chat      through the tokenizer's chat template, where it has one; without, question and
              answer keep their white space (code)
    cue       what follows the prompt when `chat` is wanted and the tokenizer has no template
    """

    beside: str = BESIDE
    alone: str = ALONE
    opening: str = ""
    chat: bool = True
    cue: str = "\nAnswer:"

    def ids(
        self, tokenizer: PreTrainedTokenizerBase, title: str, document: str, question: str
    ) -> list[int]:
        """Token ids of the prompt; an empty `document` gives the one without it."""
        template = self.beside if document else self.alone
        question = question.strip() if self.chat else question
        text = template.format(title=title, document=document, question=question)
        if self.chat and tokenizer.chat_template:
            turn = {"role": "user", "content": text}
            return [*chat_ids(tokenizer, [turn]), *text_ids(tokenizer, self.opening)]
        opening = f" {self.opening}" if self.chat and self.opening else self.opening
        text += (self.cue if self.chat else "") + opening
        return models.prefix_ids(tokenizer) + text_ids(tokenizer, text)
