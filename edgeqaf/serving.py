"""What people need beside a model file to serve it: where generation stops, how it samples, and what does not agree.

All of it is read from the companion files of a model folder. Chat templates are never rendered.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqaf.jsonfile import read_json
from edgeqaf.tokenizer import Tokenizer

# generation_config.json -> (Ollama's parameter, llama-server's option); only where it says do_sample
SAMPLING = {
    "temperature": ("temperature", "--temp"),
    "top_k": ("top_k", "--top-k"),
    "top_p": ("top_p", "--top-p"),
    "min_p": ("min_p", "--min-p"),
    "repetition_penalty": ("repeat_penalty", "--repeat-penalty"),
}
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Serving:
    """How to serve a model.

    stops: texts of the end tokens. context: tokens, None if the config does not say. sampling: named as in `SAMPLING`.
    template: whether there is a chat template. doubts: sentences about files that contradict each other.
    """

    stops: list[str]
    context: int | None
    sampling: dict[str, float]
    template: bool
    doubts: list[str]

    def modelfile(self, file: str) -> str:
        """An Ollama Modelfile for a GGUF file beside it; Ollama takes the chat template from the file."""
        lines = [f"FROM ./{file}"]
        if self.context is not None:
            lines.append(f"PARAMETER num_ctx {self.context}")
        lines += [f"PARAMETER {SAMPLING[name][0]} {value:g}" for name, value in self.sampling.items()]
        lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in self.stops]
        return "\n".join(lines) + "\n"

    def llama_server(self, file: str) -> str:
        """The command that serves a GGUF file."""
        line = f"llama-server -m {file}" + ("" if self.context is None else f" -c {self.context}")
        line += "".join(f" {SAMPLING[name][1]} {value:g}" for name, value in self.sampling.items())
        return line + (" --jinja" if self.template else "")


def serving(folder: Path) -> Serving:
    """What the companion files of a model folder say."""
    config, generation, settings = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    tokenizer = Tokenizer(folder)
    context = config.get("max_position_embeddings")
    sampling = {
        name: float(generation[name])
        for name in SAMPLING
        if generation.get("do_sample") is True and isinstance(generation.get(name), (int, float))
    }
    stops = [tokenizer.text(i) for i in tokenizer.eos]
    template = tokenizer.chat_template()
    doubts = list(_doubts(tokenizer, config, generation, settings, template))
    return Serving(
        [text for text in stops if text], context if isinstance(context, int) else None, sampling,
        template is not None, doubts,
    )  # fmt: skip


def _doubts(
    tokenizer: Tokenizer, config: Json, generation: Json, settings: Json, template: str | None
) -> Iterator[str]:
    for name in ("bos", "eos"):
        said = {
            file: _ids(found.get(f"{name}_token_id"))
            for file, found in (("config.json", config), ("generation_config.json", generation))
        }
        if text := _text(settings.get(f"{name}_token")):
            said["tokenizer_config.json"] = _ids(tokenizer.id(text))
        stated = {file: ids for file, ids in said.items() if ids}
        if stated and not set.intersection(*map(set, stated.values())):
            each = ", ".join(f"{file} {' or '.join(map(str, ids))}" for file, ids in stated.items())
            yield f"the files name different {name} tokens: {each}; generation ends at {list(tokenizer.eos)}"
    begun = tokenizer.encode("a", prompt=True)[:1] != tokenizer.encode("a", prompt=False)[:1]
    begin = _text(settings.get("bos_token"))
    if template and begun and begin and ("bos_token" in template or begin in template):
        yield f"the chat template writes {begin}, and the tokenizer puts one before every prompt too"


def _ids(value: Any) -> list[int]:
    found = value if isinstance(value, list) else [value]
    return [i for i in found if isinstance(i, int)]


def _text(value: Any) -> str | None:
    found = value.get("content") if isinstance(value, Mapping) else value
    return found if isinstance(found, str) else None
