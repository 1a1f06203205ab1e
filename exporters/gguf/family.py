"""What the architectures that llama.cpp computes have in common; each file of `families` has one of them.

A family says how a Hugging Face model and a GGUF file stand for each other: config.json and ``<arch>.*``
metadata, both ways, and the place of every tensor. Keys and their meaning: ggml docs/gguf.md, llama.cpp
llama-model.cpp (load_hparams). Tensor names: gguf-py tensor_mapping.py. A config that asks for anything
llama.cpp would compute differently is refused by the name of the setting, before any work is done.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from edgeqaf.digest import Floats
from edgeqaf.errors import Refused
from edgeqaf.source import EMBEDDING, HEAD
from exporters.gguf import rope
from exporters.gguf.container import Type, Value, uint32
from exporters.gguf.numbers import Config, Metadata, count_in, float32, number_in, size
from exporters.gguf.places import Dimensions, Place

OUTPUT = "output.weight"  # absent where the head is tied to the embedding
UNSUPPORTED = "export a model without it, or leave GGUF out"
# dimension -> (metadata key after the architecture, config key)
SIZES = {
    "layers": ("block_count", "num_hidden_layers"),
    "hidden": ("embedding_length", "hidden_size"),
    "feed_forward": ("feed_forward_length", "intermediate_size"),
    "heads": ("attention.head_count", "num_attention_heads"),
    "kv_heads": ("attention.head_count_kv", "num_key_value_heads"),
    "rotary": ("rope.dimension_count", ""),
    "vocab": ("vocab_size", "vocab_size"),
    "head_dim": ("attention.key_length", "head_dim"),
}
TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding"}  # special token in config.json: in tokenizer.ggml.*_token_id


class Family:
    """One architecture of llama.cpp and the Hugging Face models that it computes.

    architecture: its name in GGUF, which is the file's name too.
    model_types:  config.json's ``model_type`` of the models it serves; the first is what `config` says.
    model_class:  transformers' class for that first one.
    only:         config key -> (transformers' default, the one value that llama.cpp computes).
    usual_head_dim: the size of a head where config.json has none; None: the hidden size divided by the heads.
    rope_types:   rope types that llama.cpp computes for it.
    rotates_part: whether a part of a head may be rotated and the rest left.
    factor_names: tensors of the file that follow from the config (`factors`) and are no parameters.
    """

    architecture: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    model_class: ClassVar[str]
    only: ClassVar[Mapping[str, tuple[Any, Any]]] = {}
    usual_head_dim: ClassVar[int | None] = None
    rope_types: ClassVar[tuple[str, ...]] = ("default", "linear")
    rotates_part: ClassVar[bool] = False
    factor_names: ClassVar[tuple[str, ...]] = ()

    # ---- from a Hugging Face config.json

    def check(self, config: Config) -> None:
        """Refuse a model that llama.cpp's graph for this architecture does not compute."""
        for key, (default, wanted) in self.only.items():
            found = config.get(key, default)
            if found != wanted and (found or wanted):  # null and false mean the same
                raise Refused(f"config.json: {key} is {found!r}; GGUF export supports {wanted!r}", UNSUPPORTED)

    def dimensions(self, config: Config) -> Dimensions:
        """The model's sizes."""
        heads, hidden = size(config, "num_attention_heads"), size(config, "hidden_size")
        optional = {"num_key_value_heads": heads, "head_dim": self.usual_head_dim or hidden // heads}
        defaults = {key: value for key, value in optional.items() if config.get(key) is None}
        found = {field: size({**config, **defaults}, key) for field, (_, key) in SIZES.items() if key}
        if found["head_dim"] % 2 or heads % found["kv_heads"]:
            raise Refused(
                f"config.json: {heads} heads of {found['head_dim']} with {found['kv_heads']} key-value heads",
                "head_dim must be even, and the key-value heads must divide the heads",
            )
        return Dimensions(**found, rotary=self.rotary(config, found["head_dim"]))

    def rotary(self, config: Config, head_dim: int) -> int:
        """How many dimensions of a head are rotated; Refused where llama.cpp rotates others."""
        part = self.rope(config).get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
        if part != 1.0:
            raise Refused(f"config.json: partial_rotary_factor is {part!r}, not 1.0", UNSUPPORTED)
        return head_dim

    def rope(self, config: Config) -> dict[str, Any]:
        """The rope parameters that metadata states."""
        return rope.parameters(config, self.rope_types)

    def context_length(self, config: Config) -> int:
        """The longest sequence that llama.cpp computes as transformers does: a window it leaves out ends it."""
        window = self.ignored_window(config)
        return min(size(config, "max_position_embeddings"), window or 2**31)

    def ignored_window(self, config: Config) -> int | None:
        """The sliding window of layers to which llama.cpp gives none; a sequence no longer than it is not cut."""
        return None

    def metadata(self, config: Config) -> dict[str, Value]:
        """Every ``<arch>.*`` key of a file."""
        self.check(config)
        name, d, rotations = self.architecture, self.dimensions(config), self.rope(config)
        return {
            f"{name}.context_length": uint32(self.context_length(config)),
            **{f"{name}.{key}": uint32(getattr(d, field)) for field, (key, _) in SIZES.items()},
            f"{name}.attention.value_length": uint32(d.head_dim),
            f"{name}.attention.layer_norm_rms_epsilon": float32(config, "rms_norm_eps"),
            f"{name}.rope.freq_base": float32(rotations, "rope_theta"),
            **rope.scaling_metadata(name, rotations),
        }

    def factors(self, config: Config) -> dict[str, Floats]:
        """The tensors ``factor_names`` that this model has."""
        return {}

    # ---- from the metadata of a file

    def dimensions_in(self, metadata: Metadata) -> Dimensions:
        """The sizes that a file states, with llama.cpp's own defaults for what it leaves out; raises Refused."""
        key = {field: f"{self.architecture}.{stated}" for field, (stated, _) in SIZES.items()}
        heads, hidden = count_in(metadata, key["heads"]), count_in(metadata, key["hidden"])
        head_dim = count_in(metadata, key["head_dim"], hidden // heads)
        return Dimensions(
            layers=count_in(metadata, key["layers"]),
            hidden=hidden,
            feed_forward=count_in(metadata, key["feed_forward"]),
            heads=heads,
            kv_heads=count_in(metadata, key["kv_heads"], heads),
            head_dim=head_dim,
            rotary=count_in(metadata, key["rotary"], head_dim),
            vocab=count_in(metadata, key["vocab"], _tokens(metadata)),
        )

    def config(self, metadata: Metadata, factors: Mapping[str, Floats]) -> dict[str, Any]:
        """A config.json from which transformers builds the model that llama.cpp computes; raises Refused.

        factors: the file's tensors among ``factor_names``, by name. What is not said here is what only the other
        tensors tell: ``tie_word_embeddings``.
        """
        d, name = self.dimensions_in(metadata), self.architecture
        if count_in(metadata, f"{name}.attention.value_length", d.head_dim) != d.head_dim:
            raise Refused(f"metadata {name}.attention.value_length is not the key length {d.head_dim}", UNSUPPORTED)
        if d.rotary != d.head_dim and not self.rotates_part:
            raise Refused(f"metadata {name}.rope.dimension_count is {d.rotary}, not {d.head_dim}", UNSUPPORTED)
        return {
            "architectures": [self.model_class],
            "model_type": self.model_types[0],
            **{key: getattr(d, field) for field, (_, key) in SIZES.items() if key},
            "max_position_embeddings": count_in(metadata, f"{name}.context_length"),
            "rms_norm_eps": number_in(metadata, f"{name}.attention.layer_norm_rms_epsilon"),
            "rope_theta": number_in(metadata, f"{name}.rope.freq_base", 10000.0),
            **rope.scaling_config(name, metadata, self.rope_types),
            **{key: wanted for key, (_, wanted) in self.only.items()},
            **{f"{token}_token_id": _token(metadata, stated) for token, stated in TOKENS.items()},
        }

    # ---- tensors

    def places(self, d: Dimensions, *, tied: bool) -> Iterator[Place]:
        """Every tensor of the model but the factors, in the order of the file. tied: there is no head of its own."""
        yield Place(EMBEDDING, "token_embd.weight", (d.vocab, d.hidden))
        yield self.norm("model.norm", "output_norm", d)
        if not tied:
            yield Place(HEAD, OUTPUT, (d.vocab, d.hidden))
        for i in range(d.layers):
            for place in self.layer(d):
                yield place.within(f"model.layers.{i}.", f"blk.{i}.")

    def layer(self, d: Dimensions) -> Iterator[Place]:
        """The tensors of one layer, by their names within it."""
        raise NotImplementedError

    def norm(self, logical: str, stored: str, d: Dimensions) -> Place:
        """The weight of a norm over the hidden state."""
        return vector(logical, stored, d.hidden)


def vector(logical: str, stored: str, length: int, added: float = 0.0) -> Place:
    return Place(f"{logical}.weight", f"{stored}.weight", (length,), added=added)


def matrix(logical: str, stored: str, out: int, inputs: int, heads: int = 0) -> Place:
    return Place(f"{logical}.weight", f"{stored}.weight", (out, inputs), heads)


def attention(d: Dimensions, *, interleaved: bool = False) -> Iterator[Place]:
    """Separate projections for queries, keys and values, and the one of the output."""
    wide, narrow = d.heads * d.head_dim, d.kv_heads * d.head_dim
    yield matrix("self_attn.q_proj", "attn_q", wide, d.hidden, d.heads if interleaved else 0)
    yield matrix("self_attn.k_proj", "attn_k", narrow, d.hidden, d.kv_heads if interleaved else 0)
    yield matrix("self_attn.v_proj", "attn_v", narrow, d.hidden)
    yield matrix("self_attn.o_proj", "attn_output", d.hidden, wide)


def feed_forward(d: Dimensions) -> Iterator[Place]:
    """A gated feed-forward network with separate gate and up projections."""
    yield matrix("mlp.gate_proj", "ffn_gate", d.feed_forward, d.hidden)
    yield matrix("mlp.up_proj", "ffn_up", d.feed_forward, d.hidden)
    yield matrix("mlp.down_proj", "ffn_down", d.hidden, d.feed_forward)


def require_square(d: Dimensions) -> None:
    """Refuse heads that do not add up to the hidden size, where llama.cpp takes them to."""
    if d.heads * d.head_dim != d.hidden:
        raise Refused(
            f"config.json: {d.heads} heads of {d.head_dim} are not the hidden size {d.hidden}, as llama.cpp needs",
            UNSUPPORTED,
        )


def sliding_window(config: Config, default: int | None) -> int | None:
    """``sliding_window`` of config.json; None where there is none."""
    found = config.get("sliding_window", default)
    return None if found is None else size({"sliding_window": found}, "sliding_window")


def _token(metadata: Metadata, name: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return value.data if value and value.type is Type.UINT32 and isinstance(value.data, int) else None


def _tokens(metadata: Metadata) -> int | None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    return len(tokens.data) if tokens and tokens.type is Type.ARRAY and isinstance(tokens.data, list) else None
