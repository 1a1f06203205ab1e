"""Bytes of a file that a disk, a transfer or a careless tool changed; nothing is sealed anew."""

import json
from typing import Any

from runtime_tests.selftest.opened import Opened
from runtime_tests.selftest.registry import Random, file

PAGE = 4096


@file()
def one_bit_of_a_matrix_flipped(opened: Opened, rng: Random) -> list[str]:
    name = opened.any_matrix(rng)
    raw = bytearray(opened.read(name))
    bit = int(rng.integers(8 * len(raw)))
    raw[bit // 8] ^= 1 << bit % 8
    opened.write(name, bytes(raw))
    return [name]


@file()
def a_page_of_zeros(opened: Opened, rng: Random) -> list[str]:
    name = opened.any_matrix(rng)
    raw = opened.read(name)
    start = int(rng.integers(max(1, len(raw) - PAGE)))
    opened.write(name, raw[:start] + bytes(len(raw[start : start + PAGE])) + raw[start + PAGE :])
    return [name]


@file()
def data_of_a_matrix_shifted_by_a_block(opened: Opened, rng: Random) -> list[str]:
    """As where a tensor's offset is wrong."""
    name = opened.any_matrix(rng)
    raw = opened.read(name)
    opened.write(name, raw[32:] + raw[:32])
    return [name]


@file()
def data_of_two_matrices_exchanged(opened: Opened, rng: Random) -> list[str]:
    """Of one size."""
    one = opened.any_matrix(rng)
    other = next((n for n in opened.matrices if n != one and len(opened.read(n)) == len(opened.read(one))), None)
    if other is None:
        return []
    first, second = opened.read(one), opened.read(other)
    opened.write(one, second)
    opened.write(other, first)
    return [one, other]


@file()
def end_cut_off(opened: Opened, rng: Random) -> list[str]:
    data = opened.data.read_bytes()
    opened.data.write_bytes(data[:-64])
    return ["the end"]


@file()
def one_byte_more(opened: Opened, rng: Random) -> list[str]:
    opened.data.write_bytes(opened.data.read_bytes() + b"\0")
    return ["the end"]


@file()
def one_bit_before_the_data_flipped(opened: Opened, rng: Random) -> list[str]:
    """Of a GGUF file's header, or of an ONNX program."""
    raw = bytearray(opened.head.read_bytes())
    bit = int(rng.integers(8 * opened.head_size))
    raw[bit // 8] ^= 1 << bit % 8
    opened.head.write_bytes(raw)
    return ["the header"]


@file("onnx")
def config_beside_the_program_changed(opened: Opened, rng: Random) -> list[str]:
    return _json(opened, "config.json", lambda config: config.update(rms_norm_eps=10 * config["rms_norm_eps"]))


@file("onnx")
def accuracy_level_in_the_settings_changed(opened: Opened, rng: Random) -> list[str]:
    def change(settings: Any) -> None:
        options = settings["model"]["decoder"]["session_options"]
        key = next(key for key in options if key.endswith("accuracy_level"))
        options[key] = "1" if options[key] == "4" else "4"

    return _json(opened, "genai_config.json", change)


@file("onnx")
def two_pieces_of_the_vocabulary_beside_exchanged(opened: Opened, rng: Random) -> list[str]:
    def change(tokenizer: Any) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        one, other = (list(vocabulary)[i] for i in rng.choice(range(3, len(vocabulary)), 2, replace=False))
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    return _json(opened, "tokenizer.json", change)


@file("onnx")
def chat_template_beside_changed(opened: Opened, rng: Random) -> list[str]:
    return _json(opened, "tokenizer_config.json", lambda settings: settings.update(chat_template="{{ messages }}"))


def _json(opened: Opened, name: str, change: Any) -> list[str]:
    path = opened.path / name
    if not path.is_file():
        return []
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")
    return [name]
