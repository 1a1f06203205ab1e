"""A climb held against a golden file: equal, no golden, or what changed: weights, program, tokenizer or kernel.

Only equal circumstances are compared, as other builds and processors may round otherwise. What explains a difference
is told from what does not: a product of a matrix whose digest is the golden's can differ only by its kernel.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from edgeqaf.companions import TOKENIZER_FILES
from edgeqaf.report import GOLDEN, Check, Difference, Verdict
from runtime_tests.golden.file import Entry, Golden, Key
from runtime_tests.golden.observation import BATCHES

CIRCUMSTANCES = {"build", "isa", "threads"}  # an entry that differs in these alone was of the same computation
NOTHING = "nothing"  # in the place of a digest, where one of two has none


@dataclass(frozen=True)
class Findings:
    """What differs between two entries.

    causes: of "weights", "program", "tokenizer or template", "kernel", those that changed.
    parts:  what there is to say, in that order; first: the first difference, likewise.
    compared, differing: numbers of digests, and of prompts' token ids.
    """

    causes: tuple[str, ...]
    parts: tuple[str, ...]
    first: Difference | None
    compared: int
    differing: int

    def __str__(self) -> str:
        return "; ".join(self.parts) or f"{self.compared:,} digests equal"


def tensors(golden: Golden, digests: Mapping[str, str], file: str) -> Check:
    """The model's tensors, by the receipt's digests."""
    changed = differences(golden.tensors, digests)
    verdict = Verdict.DIFFERENT if changed else Verdict.EXACT
    count = len(golden.tensors.keys() | digests.keys())
    detail = f"{_named(changed)} not as in {file}" if changed else f"as in {file}"
    first = next(iter(changed.values()), None)
    return Check(GOLDEN, "weights", verdict, count, count, len(changed), "tensors", detail, first, tuple(changed))


def entry(golden: Golden, found: Entry, subject: str, changed: Mapping[str, Difference]) -> Check:
    """What one runtime computed. changed: the tensors that are not the golden's."""
    known = next((known for known in golden.entries if known.key == found.key), None)
    if known is None:
        return Check(GOLDEN, subject, Verdict.ABSENT, detail=no_golden(golden.entries, found, changed))
    findings = compare(known, found, changed)
    verdict = Verdict.DIFFERENT if findings.causes else Verdict.EXACT
    wrong = tuple(sorted({name for _, name, _ in _layers(known, found)}))
    return Check(
        GOLDEN, subject, verdict, len(found.layers[next(iter(BATCHES))]), findings.compared, findings.differing,
        "digests", str(findings) if findings.causes else "", findings.first, wrong,
    )  # fmt: skip


def no_golden(entries: Sequence[Entry], found: Entry, changed: Mapping[str, Difference]) -> str:
    """Which part of the key is unknown, by the nearest entry; and what that one says, if it was of the same thing."""
    same = [known for known in entries if known.key.runtime == found.key.runtime]
    if not same:
        others = sorted({known.key.runtime for known in entries})
        return f"no golden for {found.key.runtime}: there is one for {', '.join(others) or 'none'}"
    nearest = min(same, key=lambda known: (_distance(known.key, found.key), known.key))
    parts = found.key.differing(nearest.key)
    named = ", ".join(f"{p} {getattr(found.key, p)!r} (the nearest has {getattr(nearest.key, p)!r})" for p in parts)
    held = f"; held against it: {compare(nearest, found, changed)}" if set(parts) <= CIRCUMSTANCES else ""
    return f"no golden for {named}{held}"


def compare(known: Entry, found: Entry, changed: Mapping[str, Difference]) -> Findings:
    """Two entries, whatever their keys. changed: the tensors that differ between their models."""
    stated = differences(known.stated, found.stated)
    read = {name: d for name, d in stated.items() if name.startswith("tokenizer.") or name in TOKENIZER_FILES}
    program = {name: d for name, d in stated.items() if name not in read}
    ids = _first_id(known, found)
    layers = _layers(known, found)
    own = [layer for layer in layers if layer[1] not in changed]
    logits = list(_logits(known, found))
    explained = bool(changed or program)
    told: dict[str, tuple[str, Difference]] = {}
    if changed and (layers or logits):
        told["weights"] = _named(changed), next(iter(changed.values()))
    if program:
        told["program"] = _named(program), next(iter(program.values()))
    if read or ids:
        told["tokenizer or template"] = _of_tokenizer(read, ids), [*read.values(), *filter(None, [ids])][0]
    if own and not program:
        told["kernel"] = f"{_of_layers(own)} on unchanged weights", own[0][2]
    elif logits and not explained:
        told["kernel"] = "no product of a matrix, but the logits", logits[0]
    parts = [f"{cause}: {text}" for cause, (text, _) in told.items()]
    if told:
        parts.append(_of_logits(logits, len(_asked_alike(known, found)), len(found.asked)))
    count, equal = _compared(known, found), len(stated) + len(layers) + len(logits) + bool(ids)
    return Findings(tuple(told), tuple(parts), next((d for _, d in told.values()), None), count, equal)


def differences(known: Mapping[str, str], found: Mapping[str, str]) -> dict[str, Difference]:
    """What differs between two listings of digests, sorted by name."""
    return {
        name: Difference(name, (), known.get(name, NOTHING)[:16], found.get(name, NOTHING)[:16])
        for name in sorted(known.keys() | found.keys())
        if known.get(name) != found.get(name)
    }


def _layers(known: Entry, found: Entry) -> list[tuple[str, str, Difference]]:
    """(batch, tensor, difference) of every product that differs."""
    return [
        (title, name, difference)
        for title in BATCHES
        for name, difference in differences(known.layers.get(title, {}), found.layers.get(title, {})).items()
    ]


def _logits(known: Entry, found: Entry) -> Iterable[Difference]:
    """Every token whose logits differ, of prompts that both entries were asked alike."""
    for prompt in _asked_alike(known, found):
        for token, (a, b) in enumerate(zip(known.logits[prompt], found.logits[prompt], strict=True)):
            if a != b:
                yield Difference("logits", (prompt, token), a, b)


def _asked_alike(known: Entry, found: Entry) -> list[int]:
    """The prompts of which both entries have the same token ids, and so as many logits."""
    return [i for i, (a, b) in enumerate(zip(known.asked, found.asked, strict=False)) if a == b]


def _first_id(known: Entry, found: Entry) -> Difference | None:
    """The first token in which a prompt is encoded otherwise, or asked otherwise."""
    for what in ("tokens", "asked"):
        for prompt, (a, b) in enumerate(zip_longest(getattr(known, what), getattr(found, what), fillvalue="")):
            if a != b:
                old, new = [*a.split(), NOTHING], [*b.split(), NOTHING]
                token = next(i for i, (x, y) in enumerate(zip(old, new, strict=False)) if x != y)
                return Difference("token ids", (prompt, token), old[token], new[token])
    return None


def _compared(known: Entry, found: Entry) -> int:
    """How many digests and prompts two entries have between them."""
    layers = sum(len(known.layers.get(b, {}).keys() | found.layers.get(b, {}).keys()) for b in BATCHES)
    logits = sum(len(found.logits[prompt]) for prompt in _asked_alike(known, found))
    return len(known.stated.keys() | found.stated.keys()) + layers + logits + len(found.tokens)


def _distance(known: Key, found: Key) -> int:
    """How far two keys of one runtime are apart: another computation is farther than other circumstances."""
    parts = set(found.differing(known))
    return len(parts & CIRCUMSTANCES) + 10 * len(parts - CIRCUMSTANCES)


def _named(found: Mapping[str, Difference]) -> str:
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{next(iter(found))}{more}"


def _of_tokenizer(read: Mapping[str, Difference], ids: Difference | None) -> str:
    where = f"token ids from prompt {ids.index[0]}, token {ids.index[1]}" if ids else "the prompts' token ids are equal"
    return f"{_named(read)}, {where}" if read else where


def _of_layers(layers: Sequence[tuple[str, str, Difference]]) -> str:
    title, name, _ = layers[0]
    return f"{len(layers)} products, first {name} ({title}),"


def _of_logits(logits: Sequence[Difference], alike: int, prompts: int) -> str:
    of = "" if alike == prompts else f" of the {alike} prompts with the same ids"
    return f"logits{of} from prompt {logits[0].index[0]}, token {logits[0].index[1]}" if logits else f"logits{of} equal"
