"""Engines that compute something else than they should: stock libraries with a few bytes of their code changed.

The instructions are x86's; where a library has none of them, the kind is named as absent.
"""

import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from edgeqaf.protocols import Artifact, Configuration, Runtime, RuntimeOptions
from runtime_tests.selftest.machine import Code
from runtime_tests.selftest.registry import library, session

ROUNDING = r"quantize_row_q8|quantize_mat_q8"  # of activations, plain and for repacked matrices
PRODUCTS = r"vec_dot_q\d_|gem[mv]_q|tinyBLAS|sgemm"
# Registers in VEX and EVEX encodings, then the opcode; Intel's manual, volume 2, chapter 2.3 and 2.7.
ROUND = rb"(\xc4[\xe3\xc3\x63\x43][\x79\x7d]|\x62.[\x7d\xfd].)\x08[\xc0-\xff][\x00\x08]"  # to the nearest
TO_INTEGER = rb"\xc5[\xf9\xfd\x79\x7d]\x5b[\xc0-\xff]|\xc4[\xc1\x41][\x79\x7d]\x5b[\xc0-\xff]"  # of rounded floats
EXTENDED = rb"\x62[\xf2\xd2\xb2\x92\x72\x52\x32\x12].."  # the first four bytes of EVEX
FUSED = rb"\xc4[\xe2\xc2\x62\x42][\x01-\x7d][\x98\xa8\xb8][\xc0-\xff]|" + EXTENDED + rb"[\x98\xa8\xb8]"
SHIFT = rb"(\xc5.|\xc4[\xc1\xe1].|\x62....?)\x71[\xd0-\xd7]\x04"  # words right by four: the high nibbles
TIMES = rb"\xc5[\x80-\xff]\x59|\xc4[\xc1\x41\xe1\x61].\x59"


@library("llama_cpp")
def activations_rounded_down(code: Code) -> int:
    """Where they should be to the nearest of 8 bits."""

    def down(instruction: bytearray) -> None:
        instruction[-1] |= 1

    return code.replace(ROUNDING, ROUND, down)


@library("llama_cpp")
def activations_cut_to_integers(code: Code) -> int:
    """Conversion that truncates: where a library rounds before, it changes nothing."""

    def cut(instruction: bytearray) -> None:
        instruction[-3] += 1  # the prefix 66 becomes F3

    return code.replace(ROUNDING, TO_INTEGER, cut)


@library("llama_cpp")
def activations_in_126_steps(code: Code) -> int:
    """The constant 127 of whatever rounds to 8 bits."""
    return code.constant(struct.pack("<f", 127.0), struct.pack("<f", 126.0))


@library("llama_cpp")
def fused_products_negated(code: Code) -> int:
    def negate(instruction: bytearray) -> None:
        instruction[-2 if instruction[0] == 0xC4 else -1] |= 4

    return code.replace(PRODUCTS, FUSED, negate)


@library("llama_cpp")
def nibbles_shifted_by_three(code: Code) -> int:
    def three(instruction: bytearray) -> None:
        instruction[-1] = 3

    return code.replace(PRODUCTS, SHIFT, three)


@library("llama_cpp")
def nibbles_masked_to_three_bits(code: Code) -> int:
    return code.constant(b"\x0f" * 16, b"\x07" * 16) + code.constant(b"\x0f" * 4, b"\x07" * 4)


@library("llama_cpp")
def decoding_that_adds_where_it_should_multiply(code: Code) -> int:
    """In what R1 asks; products are as they were."""

    def add(instruction: bytearray) -> None:
        instruction[-1] = 0x58

    return code.replace(r"^dequantize_row_", TIMES + rb"|\xf3[\x40-\x4f]?\x0f\x59|\x0f\x59", add)


@library("onnxruntime")
def activations_of_level_4_in_126_steps(code: Code) -> int:
    """The constant 127 of whatever rounds to 8 bits, and its reciprocal."""
    found = [code.constant(struct.pack("<f", a), struct.pack("<f", b)) for a, b in ((127, 126), (1 / 127, 1 / 126))]
    return sum(found)


@session("onnxruntime")
def level_4_where_level_1_is_claimed(
    runtime: Runtime, artifact: Artifact, configuration: Configuration, options: RuntimeOptions
) -> AbstractContextManager[Any] | None:
    """Activations are rounded to 8 bits by kernels that are said to take them as they are."""
    from runtime_tests.runtimes.onnxruntime import WAYS

    if configuration.name != "fused level 1":
        return None
    other = next(c for c in runtime.configurations if c.name == "fused level 4")
    return _opened(replace(WAYS[configuration], setting=WAYS[other].setting), artifact, options)


@session("torch_cpu")
def lower_precision_of_products_allowed(
    runtime: Runtime, artifact: Artifact, configuration: Configuration, options: RuntimeOptions
) -> AbstractContextManager[Any]:
    """A global setting of PyTorch that a library may have left behind: other kernels, or bfloat16."""
    return _allowed(runtime, artifact, configuration, options)


@session("torch_cpu")
def one_weight_of_the_built_model_one_ulp_off(
    runtime: Runtime, artifact: Artifact, configuration: Configuration, options: RuntimeOptions
) -> AbstractContextManager[Any]:
    """What the model in memory holds is not what the file holds."""
    return _nudged(runtime, artifact, configuration, options)


@contextmanager
def _opened(way: Any, artifact: Artifact, options: RuntimeOptions) -> Iterator[Any]:
    from runtime_tests.onnx import worker

    yield way.session(artifact, worker.load, options.threads)


@contextmanager
def _allowed(*arguments: Any) -> Iterator[Any]:
    import torch

    runtime, *rest = arguments
    before = torch.get_float32_matmul_precision()
    with runtime.open(*rest) as session:
        torch.set_float32_matmul_precision("medium")
        try:
            yield session
        finally:
            torch.set_float32_matmul_precision(before)


@contextmanager
def _nudged(*arguments: Any) -> Iterator[Any]:
    import torch

    runtime, *rest = arguments
    with runtime.open(*rest) as session, torch.no_grad():
        *_, (_, weight) = session.model.named_parameters()  # the last norm's, or a head's
        flat = weight.view(-1)
        i = int(flat.abs().argmax())
        flat[i] = torch.nextafter(flat[i], torch.tensor(float("inf")))
        yield session
