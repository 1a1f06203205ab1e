"""Real tokenizers as Hugging Face folders, made of the files beside the checkout; and texts that are hard to cut."""

import base64
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from family_models import SHARED
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ONE_DIGIT_WORDS = LLAMA3_WORDS.replace("{1,3}", "")
LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>")

TEXTS = {
    "prose": "Hello world! It's 3 o'clock; they'll say we've DON'T'VE she's I'M you'D 'tis ''s.",
    "code": 'def f(x: int) -> str:\n    return f"{x:>08.3f}"  # TODO\n\n\tif (a[i] != b->c) {\r\n\t\t++i;\r\n\t}\n\n\n',
    "digits": "1 12 123 1234 12345 3.14159 1,000,000 0x1F 2026-11-26 ٣٤٥ ½ ² Ⅷ ①",
    "spaces": "  leading and  double   triple    four \t tab\u00a0nbsp\u2003em\u3000wide \n \n\n trailing   ",
    "unicode": "Grüße, naïve café – élan… «Привет мир» Ελλάδα שלום עולם مرحبا नमस्ते สวัสดี 한국어 日本語テキスト 中文字符",
    "combining": "e\u0301 n\u0303 a\u0308\u0323 \u1e9b\u0323 ﬁ ½ Å \u212b",
    "emoji": "😀👍🏽👩‍👩‍👧‍👦🇩🇪❤️‍🔥 🦙🦙 \u200b\ufeff\u200d",
    "rare": "\U00020000\U000e0041 \u0000\u0001\x7f \ue000 ꧁༺ ༻꧂ ʘ‿ʘ ¯\\_(ツ)_/¯ ℕ𝔸𝒞",
    "punctuation": "!!! ... ?! -- --- === /// \\\\ ### $$ %%% ^^ && ** (( )) [[ ]] {{ }} <> <<>> ~~ `` ''\" @@ |||_|_",
    "mixed": "ABCdefGHI iPhone15Pro HTTPServer2 snake_case camelCase kebab-case ÀÉÎÕÜ ÀbCd ß ẞ ǅ İı 'S 'LL",
    "underscores": "▁ ▁▁ a▁b ▁the _the",
}


def llama2(folder: Path) -> None:
    """The SentencePiece model alone, as Llama 2 shipped it."""
    shutil.copyfile(SHARED / "tokenizers" / "llama2" / "tokenizer.model", folder / "tokenizer.model")
    settings = {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def llama3(folder: Path) -> None:
    """Ranks of byte strings: any two tokens may merge into one, in the order of its rank."""
    lines = (SHARED / "tokenizers" / "llama3" / "tokenizer.model").read_text("ascii").splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    shown = pre_tokenizers.ByteLevel.alphabet()
    letters = _byte_letters(shown)

    def text(raw: bytes) -> str:
        return "".join(letters[b] for b in raw)

    vocabulary = {text(token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])}
    _byte_level(folder, vocabulary, [cut for token in vocabulary for cut in _cuts(token, vocabulary)])


def llama3_2(folder: Path) -> None:
    """An encoder and a list of merges, in GPT-2's own two files."""
    source = SHARED / "tokenizers" / "llama3.2"
    vocabulary = json.loads((source / "encoder.json").read_text("utf-8"))
    lines = (source / "vocab.bpe").read_text("utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if " " in line and not line.startswith("#version")]
    _byte_level(folder, vocabulary, merges)


def copied(name: str) -> Callable[[Path], None]:
    """A folder that has a tokenizer.json already."""

    def copy(folder: Path) -> None:
        for file in sorted((SHARED / "tokenizers" / name).glob("tokenizer*.json")):
            shutil.copyfile(file, folder / file.name)

    return copy


def gemma(folder: Path) -> None:
    """The shape of Gemma's tokenizer.json, its words learned here.

    Runs of newlines and spaces are added tokens and come first among the merges; the tab has its byte's id;
    spaces are replaced, and then split at.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", "never")
    learner.train_from_iterator(
        [" ".join(TEXTS.values())] * 3, trainers.BpeTrainer(vocab_size=900, show_progress=False)
    )
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    unlearned = set("\0\t\u0301😀")  # left to the bytes
    words = [text for text, _ in learned if not unlearned & set(text)]
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    runs = [c * n for c in "\n\u2581" for n in range(2, 9)]
    texts = dict.fromkeys([*control, *runs, *(f"<0x{b:02X}>" for b in range(256)), "\n", *words])
    vocabulary = {text: i for i, text in enumerate(texts)}
    merges = [cut for text in [*runs, *words] for cut in _cuts(text, vocabulary)]
    tokenizer = Tokenizer(
        models.BPE(
            {**vocabulary, "\t": vocabulary["<0x09>"]}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_tokens([AddedToken(t, special=t in control, normalized=False) for t in [*control, *runs]])
    tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def _cuts(text: str, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every two tokens that make ``text``, those of lowest ids first."""
    cuts = [(text[:i], text[i:]) for i in range(1, len(text))]
    known = [(a, b) for a, b in cuts if a in vocabulary and b in vocabulary]
    return sorted(known, key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))


def split_at(words: str, *, compose: bool = False) -> Callable[[Path], None]:
    """A byte-level tokenizer trained here, its words cut by the regular expression ``words``, maybe after NFC."""

    def make(folder: Path) -> None:
        tokenizer = Tokenizer(models.BPE())
        if compose:
            tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(words), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        trainer = trainers.BpeTrainer(
            vocab_size=1500, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )  # fmt: skip
        tokenizer.train_from_iterator([" ".join(TEXTS.values())] * 3, trainer)
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")

    return make


O200K_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MADE = {
    "gemma": gemma, "qwen2": split_at(ONE_DIGIT_WORDS), "qwen2, composed": split_at(ONE_DIGIT_WORDS, compose=True),
    "smaug-bpe": split_at(LLAMA3_WORDS), "gpt-4o": split_at(O200K_WORDS),
}  # fmt: skip
FOLDERS = MADE | {
    "llama2": llama2, "llama3": llama3, "llama3.2": llama3_2, "minimind": copied("minimind"), "phi3": copied("phi3"),
    "smollm": copied("smollm"),
}  # fmt: skip


def make(name: str, folder: Path) -> Path:
    """The tokenizer ``name`` as files in ``folder``; skips where its source is not beside the checkout."""
    if name not in MADE and not (SHARED / "tokenizers" / name).is_dir():
        pytest.skip(f"tokenizer {name} is not beside the checkout")
    FOLDERS[name](folder)
    return folder


def _byte_level(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, ...]]) -> None:
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))  # type: ignore[arg-type]
    split = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in LLAMA3_SPECIAL if text not in vocabulary])
    begin = tokenizer.token_to_id(LLAMA3_SPECIAL[0])
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{LLAMA3_SPECIAL[0]} $A", special_tokens=[(LLAMA3_SPECIAL[0], begin)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": LLAMA3_SPECIAL[0],
        "eos_token": LLAMA3_SPECIAL[1],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def _byte_letters(alphabet: list[str]) -> dict[int, str]:
    """GPT-2's printable stand-in for every byte: itself where printable, else the next free one from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
    assert set(letters.values()) == set(alphabet)
    return letters
