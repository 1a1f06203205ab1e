"""Conversations by real chat templates: what the loss covers, what the model sees, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from edgeqaf.data import IGNORED, Example, tasks, tokenize
from edgeqaf.data.chat import DATE, template_of
from edgeqaf.data.examples import pieces
from edgeqaf.errors import Refused
from edgeqaf.tokenizer import Tokenizer

Make = Callable[..., Tokenizer]
TALK = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye?"), ("assistant", "See you.")]
CALL = {"type": "function", "function": {"name": "find_tea", "arguments": {"what": "green"}}}
TOOL = {"type": "function", "function": {"name": "find_tea", "description": "Finds.", "parameters": {}}}


# llama-models, llama3/tokenizer.py: Tokenizer.pat_str
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def messages(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in turns]


def ids_of(file: Path, *tokens: str) -> list[int]:
    backend = tokenizers.Tokenizer.from_file(str(file))
    return [backend.token_to_id(token) for token in tokens]


@pytest.fixture
def made(tmp_path: Path, shared: Path) -> Make:
    """A folder with a real tokenizer, the end tokens named, and a template: its own, or one given."""

    def make(name: str, *ends: str, template: str | None = None) -> Tokenizer:
        folder = tmp_path / name
        folder.mkdir()
        source = shared / "tokenizers" / name / "tokenizer.json"
        (folder / "tokenizer.json").write_bytes(source.read_bytes())
        config = source.with_name("tokenizer_config.json")
        if config.is_file():
            (folder / config.name).write_bytes(config.read_bytes())
        if template is not None:
            (folder / "chat_template.jinja").write_text(template, "utf-8")
        (folder / "config.json").write_text(json.dumps({"eos_token_id": ids_of(source, *ends)}), "utf-8")
        return Tokenizer(folder)

    return make


@pytest.fixture(scope="module")
def llama(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Llama 3.2's published vocabulary and merges with its published template and special tokens."""
    folder = tmp_path_factory.mktemp("llama")
    files, config = shared / "tokenizers/llama3.2", shared / "configs/Llama-3.2-1B-Instruct/tokenizer_config.json"
    model = tokenizers.models.BPE.from_file(str(files / "encoder.json"), str(files / "vocab.bpe"), ignore_merges=True)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = json.loads(config.read_text("utf-8"))["added_tokens_decoder"]
    backend.add_special_tokens([special[i]["content"] for i in sorted(special, key=int)])
    begin = "<|begin_of_text|>"
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, backend.token_to_id(begin))]
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes(config.read_bytes())
    ends = [backend.token_to_id(token) for token in ("<|eot_id|>", "<|eom_id|>")]
    (folder / "config.json").write_text(json.dumps({"eos_token_id": ends}), "utf-8")
    return Tokenizer(folder)


def transformers_own(tokenizer: Tokenizer) -> Any:
    config = json.loads((tokenizer.folder / "tokenizer_config.json").read_text("utf-8"))
    own = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer.folder / "tokenizer.json"), bos_token=config["bos_token"]
    )
    own.chat_template = config["chat_template"]
    return own


def text(ids: list[int], tokenizer: Tokenizer) -> str:
    return str(tokenizer._backend.decode(ids, skip_special_tokens=False))


def learned(example: Example, tokenizer: Tokenizer) -> str:
    return text([label for label in example.labels if label != IGNORED], tokenizer)


def test_llama_s_tokens_are_transformers_own(llama: Tokenizer) -> None:
    """The begin token once, every token as apply_chat_template gives it, the loss on both answers and their ends."""
    talk = messages(*TALK)
    (example,), _ = tokenize([{"messages": talk}], llama, 512)
    theirs = transformers_own(llama)
    assert example.ids == theirs.apply_chat_template(talk, date_string=DATE, return_dict=False)
    assert learned(example, llama) == "Hello!<|eot_id|>See you.<|eot_id|>"
    (task,) = tasks([{"messages": talk}], llama)
    asked = theirs.apply_chat_template(talk[:-1], date_string=DATE, add_generation_prompt=True, return_dict=False)
    assert llama.encode(task.prompt, prompt=True) == asked == example.ids[: len(asked)]
    assert task.answer == "See you."


def test_the_day_does_not_change_the_tokens(llama: Tokenizer) -> None:
    (task,) = tasks([{"messages": messages(*TALK)}], llama)
    assert f"Today Date: {DATE}\n" in task.prompt


def test_llama_s_tools_calls_and_results(llama: Tokenizer) -> None:
    turns = [
        {"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "yes"}, {"role": "assistant", "content": "There is."},
    ]  # fmt: skip
    row = {"messages": turns, "tools": [TOOL]}
    (example,), _ = tokenize([row], llama, 1024)
    theirs = transformers_own(llama)
    assert example.ids == theirs.apply_chat_template(turns, tools=[TOOL], date_string=DATE, return_dict=False)
    call = '{"name": "find_tea", "parameters": {"what": "green"}}'
    assert learned(example, llama) == f"{call}<|eot_id|>There is.<|eot_id|>"
    (task,) = tasks([{"messages": turns[:2], "tools": [TOOL]}], llama)
    assert task.answer == call


def test_phi_s_turns_begin_once_and_end_with_their_own_token(made: Make) -> None:
    phi = made("phi3", "<|end|>", "<|endoftext|>")
    (example,), _ = tokenize([{"messages": messages(*TALK)}], phi, 512)
    begin = ids_of(phi.folder / "tokenizer.json", "<s>")
    assert example.ids.count(begin[0]) == 1
    assert example.ids[:1] == begin
    assert learned(example, phi) == "Hello!<|end|> See you.<|end|>"
    (task,) = tasks([{"messages": messages(*TALK)}], phi)
    asked = phi.encode(task.prompt, prompt=True)
    assert example.ids[: len(asked)] == asked


def test_a_template_that_leaves_tools_out_is_refused(made: Make) -> None:
    phi = made("phi3", "<|end|>")
    called = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    for row in ({"messages": called}, {"messages": messages(*TALK), "tools": [TOOL]}):
        with pytest.raises(Refused, match="phi3 does not write the tool 'find_tea'"):
            tokenize([row], phi, 512)


def test_a_thought_opened_by_the_prompt_belongs_to_the_answer(made: Make) -> None:
    """MiniMind's prompt closes an empty thought; a turn that has one departs from it within the prompt."""
    mind = made("minimind", "<|im_end|>")
    thoughtful = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
    row = {"messages": [*messages(("user", "2+2?")), thoughtful]}
    (example,), _ = tokenize([row], mind, 512)
    assert learned(example, mind) == "2 and 2\n</think>\n\n4<|im_end|>"
    assert text(example.ids, mind).startswith("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n2 and")
    (task,) = tasks([row], mind)
    assert task.answer == "2 and 2\n</think>\n\n4"


def test_a_system_message_may_stand_anywhere(made: Make) -> None:
    mind = made("minimind", "<|im_end|>")
    row = {"messages": messages(*TALK[1:3], ("system", "Shout."), *TALK[3:])}
    (example,), _ = tokenize([row], mind, 512)
    assert "<|im_start|>system\nShout.<|im_end|>" in text(example.ids, mind)
    assert learned(example, mind) == "Hello!<|im_end|>See you.<|im_end|>"


LAST = (  # the system prompt moves along with the last question, as Mistral's does
    "{% set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | first %}"
    "{% set last = messages | selectattr('role', 'equalto', 'user') | list | last %}{% for m in messages %}"
    "{% if m.role == 'user' %}<|im_start|>{% if m == last %}{{ system }} {% endif %}{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|im_end|>{{ m.content }}<|im_start|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|>{% endif %}"
)


def test_a_template_that_rewrites_earlier_turns_makes_a_text_of_each(made: Make) -> None:
    smol = made("smollm", "<|im_start|>", template=LAST)
    rows = [{"messages": messages(*TALK)}]
    found, _ = tokenize(rows, smol, 512)
    assert [text(e.ids, smol) for e in found] == [
        "<|im_start|>Be brief. Hi<|im_end|>Hello!<|im_start|>",
        "<|im_start|>Hi<|im_end|>Hello!<|im_start|><|im_start|>Be brief. Bye?<|im_end|>See you.<|im_start|>",
    ]
    assert [learned(e, smol) for e in found] == ["Hello!<|im_start|>", "See you.<|im_start|>"]
    (task,) = tasks(rows, smol)
    asked = smol.encode(task.prompt, prompt=True)
    assert found[1].ids[: len(asked)] == asked


def test_rows_of_several_texts_are_whole_or_left_out(made: Make) -> None:
    smol = made("smollm", "<|im_start|>", template=LAST)
    rows = [{"messages": messages(*TALK)}, {"messages": messages(*TALK[:3])}]
    longest = max(len(e.ids) for e in tokenize(rows, smol, 512)[0])
    found = pieces(rows, smol, longest - 1)
    assert (len(found.examples), found.too_long, found.longest) == (1, 1, longest)


def test_a_template_that_rewrites_the_question_is_refused(made: Make) -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    smol = made("smollm", "<|im_end|>", template=template)
    with pytest.raises(Refused, match=r"smollm rewrites the question once it is answered \(turn 2\)"):
        tokenize([{"messages": messages(*TALK[1:3])}], smol, 64)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages.x.y }}", "no attribute 'x'"),
        ("{% if", ""),
    ],
)
def test_what_a_template_refuses_is_said_with_the_roles(template: str, says: str, made: Make) -> None:
    smol = made("smollm", "<|im_end|>", template=template)
    with pytest.raises(Refused, match=f"does not take the roles system, user.*: .*{says}"):
        tokenize([{"messages": messages(*TALK[:3])}], smol, 64)


def test_a_template_is_rendered_in_a_sandbox(made: Make, tmp_path: Path) -> None:
    code = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(Refused, match="unsafe"):
        tokenize([{"messages": messages(*TALK[1:3])}], made("smollm", "<|im_end|>", template=code), 64)


def test_an_instruction_is_a_conversation_where_there_is_a_template(made: Make) -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    mind = made("minimind", "<|im_end|>")
    asked = {"messages": messages(("user", "Add.\n\n1 2"), ("assistant", "3"))}
    assert tokenize([row], mind, 512) == tokenize([asked], mind, 512)
    smol = made("smollm", "<|im_end|>")
    (task,) = tasks([row], smol)
    assert task.prompt.startswith("Below is an instruction that describes a task, paired with an input")
    assert task.prompt.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
    (bare,) = tasks([row | {"input": ""}], smol)
    assert "### Input" not in bare.prompt
    (example,), _ = tokenize([row], smol, 512)
    assert learned(example, smol) == "3<|im_end|>"


def test_a_template_is_read_once(made: Make) -> None:
    mind = made("minimind", "<|im_end|>")
    assert template_of(mind) is template_of(mind)


def test_published_conversations_train_on_every_assistant_turn(made: Make, shared: Path) -> None:
    from edgeqaf.data import read_rows

    mind = made("minimind", "<|im_end|>")
    rows = read_rows(shared / "data" / "glaive_toolcall_en_demo.json")[:60]
    found, too_long = tokenize(rows, mind, 8192)
    assert too_long == 0
    for row, example in zip(rows, found, strict=True):
        answers = learned(example, mind).split("<|im_end|>")[:-1]
        spoken = [m for m in row["messages"] if m["role"] == "assistant"]
        assert len(answers) == len(spoken)
        for answer, message in zip(answers, spoken, strict=True):
            name = [call["function"]["name"] for call in message.get("tool_calls", [])]
            assert answer == message["content"] if not name else name[0] in answer
