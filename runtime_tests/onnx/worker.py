"""ONNX Runtime at the far end of a pipe. This file runs by its path in any Python with numpy and onnxruntime.

A message is a JSON object, its length before it in four bytes (little-endian), and after it the bytes
of the arrays that its key "arrays" lists as [name, dtype, shape]. `worker.mjs` speaks the same.

    greet                                                        ->  version, sessions (how many are held)
    load  session, setting, the model: "path" or array "model"   ->  inputs, outputs, rewritten_by, threads
    run   session, feeds as arrays                               ->  outputs as arrays
    drop  session                                                ->  nothing

What fails answers {"error": text}, and the worker goes on.
"""

import json
import os
import struct
import sys
from typing import IO, Any, Dict, List, Mapping, Optional, Tuple, TypedDict, Union  # noqa: UP035 (older Pythons)

import numpy as np

LEVELS = {"off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED"}
LENGTH = struct.Struct("<I")
Arrays = Dict[str, Any]  # noqa: UP006


class Setting(TypedDict, total=False):
    """How a session is made, in terms that ONNX Runtime has in every language.

    level:     graph optimization: "off", "basic", "extended" or "all" (the default).
    config:    entries of the session's configuration.
    providers: execution providers: a name, or [name, options].
    threads:   that one operator may use; 1 unless said.
    arena:     false: memory goes back to the system when a value dies.
    folder:    where the external data of a model given as bytes lies, in the files ``data``.
    optimized: file to write the optimized graph to.
    """

    level: str
    config: Dict[str, str]  # noqa: UP006
    providers: List[Any]  # noqa: UP006
    threads: int
    arena: bool
    folder: str
    data: List[str]  # noqa: UP006
    optimized: str


class Loaded:
    """A model in the onnxruntime of this process. threads: of one operator; None where ours has no say in it."""

    def __init__(self, session: Any, threads: Optional[int]) -> None:  # noqa: UP045
        self.threads = threads
        self._session = session
        self.inputs: Dict[str, List[Any]] = {i.name: list(i.shape) for i in session.get_inputs()}  # noqa: UP006
        self.outputs: List[str] = [o.name for o in session.get_outputs()]  # noqa: UP006
        self.rewritten_by: Optional[List[str]] = None  # noqa: UP006, UP045

    def run(self, feeds: Mapping[str, Any]) -> Arrays:
        """Every output by name."""
        return dict(zip(self.outputs, self._session.run(self.outputs, dict(feeds))))  # noqa: B905 (older Pythons)


def load(model: Union[str, bytes], setting: Setting) -> Loaded:  # noqa: UP007
    """Load a model from its path or bytes; raises whatever onnxruntime does."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    level = LEVELS.get(setting.get("level", "all"), "ORT_ENABLE_ALL")
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads, options.inter_op_num_threads = setting.get("threads", 1), 1
    options.enable_cpu_mem_arena = setting.get("arena", True)
    entries = {"session.intra_op.allow_spinning": "0", **setting.get("config", {})}
    if "folder" in setting:
        entries["session.model_external_initializers_file_folder_path"] = setting["folder"]
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    if "optimized" in setting:
        options.optimized_model_filepath = setting["optimized"]
    providers = [p if isinstance(p, str) else tuple(p) for p in setting.get("providers", ["CPUExecutionProvider"])]
    session = ort.InferenceSession(model, options, providers=providers)
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if first not in session.get_providers():  # onnxruntime warns, and takes another
        raise ValueError(f"no {first} here; there is {', '.join(session.get_providers())}")
    return Loaded(session, options.intra_op_num_threads if first == "CPUExecutionProvider" else None)


def write(stream: IO[bytes], message: Mapping[str, Any], arrays: Optional[Arrays] = None) -> None:  # noqa: UP045
    """Send one message."""
    whole = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in (arrays or {}).items()}
    listed = [[name, a.dtype.name, list(a.shape)] for name, a in whole.items()]
    header = json.dumps({**message, "arrays": listed}).encode()
    stream.write(LENGTH.pack(len(header)) + header)
    for array in whole.values():
        stream.write(array.tobytes())
    stream.flush()


def read(stream: IO[bytes]) -> Optional[Tuple[Dict[str, Any], Arrays]]:  # noqa: UP006, UP045
    """Receive one message, or None at the end of the stream."""
    start = stream.read(LENGTH.size)
    if len(start) < LENGTH.size:
        return None
    message = json.loads(stream.read(LENGTH.unpack(start)[0]))
    arrays = {}
    for name, dtype, shape in message["arrays"]:
        raw = stream.read(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
        arrays[name] = np.frombuffer(raw, dtype).reshape(shape)
    return message, arrays


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Answer messages until the stream ends."""
    sessions: Dict[int, Loaded] = {}  # noqa: UP006
    while True:
        received = read(source)
        if received is None:
            return
        try:
            answer, arrays = _answer(*received, sessions)
        except Exception as error:
            answer, arrays = {"error": str(error).strip() or type(error).__name__}, {}
        write(sink, answer, arrays)


def _answer(message: Dict[str, Any], given: Arrays, sessions: Dict[int, Loaded]) -> Tuple[Dict[str, Any], Arrays]:  # noqa: UP006
    operation, number = message["op"], message.get("session", 0)
    if operation == "greet":
        import onnxruntime

        return {"version": onnxruntime.__version__, "sessions": len(sessions)}, {}
    if operation == "load":
        model = given["model"].tobytes() if "model" in given else message["path"]
        made = sessions[number] = load(model, message["setting"])
        return {name: getattr(made, name) for name in ("inputs", "outputs", "rewritten_by", "threads")}, {}
    if operation == "run":
        return {}, sessions[number].run(given)
    del sessions[number]
    return {}, {}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    serve(sys.stdin.buffer, answers)
