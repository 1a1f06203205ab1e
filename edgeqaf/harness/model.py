"""A `Subject` as lm-eval wants a model: its three kinds of request, turned into losses and answers.

Tokens are cut as lm-eval's own HFLM cuts them, so the same weights give the same numbers, up to the
order of float sums.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from edgeqaf.console import progress
from edgeqaf.data import IGNORED, Example
from edgeqaf.errors import Refused, UsageError
from edgeqaf.jsonfile import read_json
from edgeqaf.material import context_of
from edgeqaf.scoring import Subject

LONGEST = 2048  # tokens of context by default, where the model could attend to more
GENERATED = 256  # tokens, where a task sets no max_gen_toks; HFLM's number
FIRST, THEN = 16, 96  # tokens generated before the full number is: most answers stop soon


class SubjectLM(TemplateLM):  # type: ignore[misc]
    """A `Subject` as the harness wants a model; truncated counts requests that lost the beginning of their context."""

    def __init__(self, subject: Subject, max_length: int | None = None) -> None:
        super().__init__()
        self.subject = subject
        context = context_of(subject.folder)
        if max_length is not None and context is not None and max_length > context:
            raise UsageError(
                f"--max-length {max_length} is beyond the model's context of {context} tokens", f"at most {context}"
            )
        self.max_length = max_length or min(context or LONGEST, LONGEST)
        self.truncated = 0

    @property
    def eot_token_id(self) -> int:
        return self.subject.tokenizer.eos[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the token a prompt starts with, else the end token."""
        bos = read_json(self.subject.folder / "config.json").get("bos_token_id")
        return bos if isinstance(bos, int) else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.subject.tokenizer.encode(string, prompt=add_special_tokens is not False)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """(sum of log p in nats, whether greedy decoding gives it) of each (texts, context ids, continuation ids)."""
        examples = [self._example(context, continuation) for _, context, continuation in requests]
        found = []
        with progress(f"losses in {self.subject.runtime}", len(examples)) as advance:
            for one in self.subject.losses(examples):
                found.append((-float(one.nats.sum()), one.greedy))
                advance(len(found))
        return found

    def _example(self, context: list[int], continuation: list[int]) -> Example:
        if not 0 < len(continuation) <= self.max_length:
            raise Refused(
                f"the task asks for the likelihood of {len(continuation)} tokens; a window holds {self.max_length}",
                "raise --max-length" if continuation else "a choice must not be empty",
            )
        ids = (context + continuation)[-(self.max_length + 1) :]  # the last token is only a target
        self.truncated += len(ids) < len(context) + len(continuation)
        return Example(ids, [IGNORED] * (len(ids) - len(continuation)) + continuation)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """log p of each whole text, in disjoint windows, each predicted from one token before it on."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *utils.make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (log_p, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += log_p
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """The greedy continuation of each prompt, cut at the first of its stop texts."""
        wanted = [self._generation(*request.args) for request in requests]
        found = [""] * len(requests)
        for limit in sorted({limit for _, _, limit in wanted}):
            rest = [i for i, one in enumerate(wanted) if one[2] == limit]
            for size in [n for n in (FIRST, THEN) if n < limit] + [limit]:
                for i, text in zip(rest, self._answers([wanted[i][0] for i in rest], size), strict=True):
                    found[i] = text
                rest = [i for i in rest if not any(stop in found[i] for stop in wanted[i][1])]
        return [_cut(text, stops) for text, (_, stops, _) in zip(found, wanted, strict=True)]

    def _generation(self, prompt: str, settings: dict[str, Any]) -> tuple[str, list[str], int]:
        """(prompt, stop texts, tokens at most); raises Refused for sampling, and for a prompt that leaves no room."""
        asked = normalize_gen_kwargs(dict(settings), GENERATED)
        if asked.get("do_sample") or asked.get("num_beams", 1) != 1:
            raise Refused(
                f"the task asks for {settings}; edgeqaf generates greedily", "set do_sample: false in the task"
            )
        limit, length = int(asked["max_gen_toks"]), len(self.tok_encode(prompt))
        if length + limit > self.max_length:
            raise Refused(
                f"a prompt of {length} tokens and {limit} new ones are more than a window of {self.max_length}",
                "raise --max-length, or lower the task's max_gen_toks or --shots",
            )
        until = asked.get("until") or []
        return prompt, [stop for stop in ([until] if isinstance(until, str) else until) if stop], limit

    def _answers(self, prompts: Sequence[str], limit: int) -> list[str]:
        found: list[str] = []
        if prompts:
            with progress(f"answers in {self.subject.runtime}", len(prompts)) as advance:
                for text in self.subject.answers(prompts, limit):
                    found.append(text)
                    advance(len(found))
        return found


def _cut(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text
