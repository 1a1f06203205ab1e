"""Ranks hold the same bits, and those of one process that gathers as many micro-batches as there are ranks."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import launching
import pytest
import torch

from edgeqaf import plugins, ranks
from edgeqaf.errors import UsageError, VerificationFailed
from edgeqaf.order import Order
from edgeqaf.quantize import quantize

FILES = "adapter_model.safetensors", "edgeqaf.json", "log.jsonl"
TOGETHER = "codes+scale"
SHARDED = {"ACCELERATE_USE_FSDP": "true"}
RATES = {"codes": 0.5, "lowrank": 0.5, "qa_hira": 0.5, "qa_lora": 0.5, "scale": 0.1, TOGETHER: 0.5}
METHODS = [*plugins.names("adapters"), TOGETHER]
QUICK = ["codes", "lowrank", TOGETHER]
QUICK_SHARDED = ["codes", "lota"]  # integers that move themselves, and a percentile of a whole tensor


def quick(those: list[str]) -> list[Any]:
    """Every method, all but ``those`` marked slow."""
    return [m if m in those else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [{"prompt": f"Say number {i}.", "completion": f"number: {i}" + " and so on" * (i % 4)} for i in range(18)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


@pytest.fixture(scope="module")
def base(tiny_float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a grid that has every slot."""
    folder = tmp_path_factory.mktemp("ranks") / "base"
    quantize(tiny_float_model, folder, "q4_1", "rtn")
    return folder


@pytest.fixture(scope="module")
def line(base: Path, data: Path) -> Any:
    """The command line of a run of 4 steps of 2 micro-batches of 3 rows; of 15 rows, the third has an empty one."""

    def made(method: str, out: Path, *more: object) -> list[object]:
        rate = ["--lr", RATES[method]] if method in RATES else ["--rank", 4]
        return ["finetune", base, "--data", data, "-o", out, "--method", method, *rate, "--steps", 4, "--batch", 3,
                "--accumulate", 2, "--max-length", 64, "--threads", 1, "--save-every", 2, "--eval-every", 2,
                "--holdout", 0.2, *more]  # fmt: skip

    return made


@pytest.fixture(scope="module")
def alone(line: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process comes to, by method; run once."""
    folder = tmp_path_factory.mktemp("alone")

    def made(method: str) -> Path:
        if not (folder / method).is_dir():
            launching.run(folder, line(method, folder / method))
        return folder / method

    return made


def same(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("method", quick(QUICK))
def test_two_ranks_come_to_the_bits_of_one_process(method: str, line: Any, alone: Any, tmp_path: Path) -> None:
    first, second = launching.run(tmp_path, line(method, tmp_path / "run"), ranks=2)
    same(tmp_path / "run", alone(method))
    assert "2 ranks, each with the whole model: 6 rows a step, 1 x 3 on each" in first.output()
    assert second.output() == ""


@pytest.mark.parametrize("method", quick(QUICK_SHARDED))
def test_sharded_ranks_come_to_them_too(method: str, line: Any, alone: Any, tmp_path: Path) -> None:
    first, _ = launching.run(tmp_path, line(method, tmp_path / "run"), ranks=2, environment=SHARDED)
    same(tmp_path / "run", alone(method))
    assert "2 ranks, float parameters sharded" in first.output()


def checkpointing() -> None:
    """Have the model compute its activations anew in backward."""
    from edgeqaf import prepare

    build = prepare.build

    def recomputing(*arguments: Any) -> Any:
        model = build(*arguments)
        model.gradient_checkpointing_enable()
        return model

    prepare.build = recomputing


@pytest.mark.parametrize("environment", [{}, pytest.param(SHARDED, marks=pytest.mark.slow)], ids=["whole", "sharded"])
def test_packed_grouped_and_recomputed_all_ranks_still_meet(
    environment: dict[str, str], line: Any, tmp_path: Path
) -> None:
    """Backward's collectives come in one order: of groups that learn in turn, over packs, recomputed."""
    more = "--packing", "--set", "codes.groups=2", "--batch", 1
    launching.run(tmp_path, line(TOGETHER, tmp_path / "one", *more), before=checkpointing)
    launching.run(
        tmp_path, line(TOGETHER, tmp_path / "two", *more), ranks=2, before=checkpointing, environment=environment
    )
    same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["codes", "lowrank", "lora"])
@pytest.mark.parametrize("environment", [{}, SHARDED], ids=["whole", "sharded"])
def test_three_ranks_add_up_in_order(method: str, environment: dict[str, str], line: Any, tmp_path: Path) -> None:
    for count in (1, 3):
        own = environment if count > 1 else {}
        arguments = line(method, tmp_path / str(count), "--accumulate", 3)
        launching.run(tmp_path, arguments, ranks=count, environment=own)
    same(tmp_path / "3", tmp_path / "1")


@pytest.mark.slow
def test_ranks_that_gather_several_micro_batches_are_alike_but_unlike_one_process(line: Any, tmp_path: Path) -> None:
    """(a + c) + (b + d) is not ((a + b) + c) + d; sharded or not, it is the same."""
    for name, count, environment in (("one", 1, {}), ("two", 2, {}), ("sharded", 2, SHARDED)):
        arguments = line("lowrank", tmp_path / name, "--accumulate", 4)
        launching.run(tmp_path, arguments, ranks=count, environment=environment)
    same(tmp_path / "two", tmp_path / "sharded")
    assert (tmp_path / "one" / FILES[0]).read_bytes() != (tmp_path / "two" / FILES[0]).read_bytes()


def poison(mark: bool) -> None:
    """Have FSDP gather parameters always at one address; ``mark``: whether a step still says that they changed."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    from edgeqaf import finetune

    _fsdp_param.free_storage = lambda tensor: None
    if not mark:
        finetune._changed = lambda model: None


def test_a_fold_is_never_stale_where_neither_address_nor_version_shows_a_change(
    line: Any, alone: Any, tmp_path: Path
) -> None:
    launching.run(
        tmp_path, line("lowrank", tmp_path / "marked"), ranks=2, before=poison, given=[True], environment=SHARDED
    )
    same(tmp_path / "marked", alone("lowrank"))
    children = launching.start(
        tmp_path, line("lowrank", tmp_path / "blind"), ranks=2, before=poison, given=[False], environment=SHARDED
    )
    assert {child.wait() for child in children} == {VerificationFailed.exit_code}
    assert "lowrank moved 0 of" in children[0].output()


def diverge() -> None:
    """Let the second rank's state drift: a code of its own from the first step on."""
    from edgeqaf.adapters.codes import CodesDescent

    step = CodesDescent.step

    def drifting(self: CodesDescent, closure: Any = None) -> None:
        step(self, closure)
        if not ranks.first():
            part = self.parts[0][1]
            part.remainder[0, 0] = (int(part.remainder[0, 0]) + 2) % 60

    CodesDescent.step = drifting  # type: ignore[method-assign]


def test_ranks_that_differ_by_a_bit_stop_at_the_next_checkpoint(line: Any, tmp_path: Path) -> None:
    children = launching.start(tmp_path, line("codes", tmp_path / "run"), ranks=2, before=diverge)
    assert [child.wait() for child in children] == [VerificationFailed.exit_code] * 2
    said = "layers.0.mlp.down_proj.adapter.remainder differs between rank 0 and rank 1"
    assert said in children[0].output()
    assert children[1].output() == ""
    assert os.listdir(tmp_path / "run" / "checkpoints") == []


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [(["--method", "nothing"], 2, "unknown"), (["--batch", 3, "--accumulate", 1], 2, "2 ranks cannot share steps of 1"),
     (["--max-length", 2], 3, "longer than 2 tokens")],
)  # fmt: skip
def test_a_refusal_ends_all_ranks_and_is_said_once(
    more: list[object], code: int, says: str, line: Any, tmp_path: Path
) -> None:
    first, second = launching.start(tmp_path, line("lowrank", tmp_path / "run", *more), ranks=2)
    assert (first.wait(), second.wait()) == (code, code)
    assert says in first.output()
    assert "Traceback" not in first.output()
    assert second.output() == ""
    assert not (tmp_path / "run").exists()


def lose(file: str) -> None:
    """Let the second rank find no data."""
    if not ranks.first():
        from edgeqaf import prepare
        from edgeqaf.errors import Refused

        def absent(*_: object) -> None:
            raise Refused(f"{file} does not exist", "check the path")

        prepare.read_rows = absent  # type: ignore[assignment]


def test_what_one_rank_alone_lacks_ends_all_and_that_rank_says_so(line: Any, tmp_path: Path) -> None:
    first, second = launching.start(
        tmp_path, line("lowrank", tmp_path / "run"), ranks=2, before=lose, given=["train.jsonl"]
    )
    assert (first.wait(), second.wait()) == (3, 3)
    assert first.output() == ""
    assert second.output() == "error: train.jsonl does not exist\n  fix: check the path\n"


def until(children: list[launching.Child], log: Path, lines: int) -> None:
    while not (log.is_file() and log.read_text().count("\n") >= lines):
        assert all(child.process.exitcode is None for child in children)


def test_one_rank_s_interrupt_stops_all_at_one_step_and_they_resume_to_the_same_bits(
    line: Any, alone: Any, tmp_path: Path
) -> None:
    arguments = line("codes", tmp_path / "run", "--steps", 4)
    slow = launching.start(tmp_path, arguments, ranks=2, before=linger)
    until(slow, tmp_path / "run" / "log.jsonl", 1)
    os.kill(slow[1].process.pid, signal.SIGTERM)
    assert [child.wait() for child in slow] == [7, 7]
    assert "of 4\n  fix: run the same command with --resume" in slow[0].output()
    assert slow[1].output() == ""
    children = launching.start(tmp_path, [*arguments, "--resume"])
    assert [child.wait() for child in children] == [3]
    assert "was started with ranks = 2, not 1" in children[0].output()
    launching.run(tmp_path, [*arguments, "--resume"], ranks=2, environment=SHARDED)
    same(tmp_path / "run", alone("codes"))


def linger() -> None:
    """Take a moment at every step, so that a signal finds the run on its way."""
    import time

    from edgeqaf.trainer import GridTrainer

    step = GridTrainer.training_step

    def slowly(self: GridTrainer, *arguments: Any) -> Any:
        time.sleep(0.2)
        return step(self, *arguments)

    GridTrainer.training_step = slowly  # type: ignore[method-assign]


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
    "accelerate-fsdp": ["-m", "accelerate.commands.launch", "--use_fsdp", "--num_processes", "2"],
}


@pytest.mark.parametrize(
    "launcher", ["torchrun", *(pytest.param(n, marks=pytest.mark.slow) for n in ("accelerate", "accelerate-fsdp"))]
)  # fmt: skip
def test_the_launchers_start_it(launcher: str, line: Any, alone: Any, tmp_path: Path) -> None:
    port = ["--master_port" if launcher == "torchrun" else "--main_process_port", str(launching.free_port())]
    arguments = [
        *LAUNCHERS[launcher],
        *port,
        *(["-m", "edgeqaf"]),
        *map(str, line("codes", tmp_path / "run", "--json")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "run", alone("codes"))
    assert json.loads(done.stdout)["method"] == "codes"  # one object: one rank speaks


# What needs no process of its own.


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend, for what asks the environment alone, to be one of some ranks."""

    def of(count: int, rank: int = 0) -> None:
        values: Mapping[str, int] = {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return of


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_step_takes_the_same_rows_on_any_number_of_ranks(count: int, accumulate: int, world: Any) -> None:
    items, batch, steps = 50, 12, 9

    def step(order: Order, number: int) -> list[int]:
        return [
            i for m in range(order.micro) for r in range(ranks.count()) for i in order.batch(number, m, r)
        ]  # fmt: skip

    world(1)
    one = Order(items, steps, batch, accumulate, 7)
    expected = [step(one, s) for s in range(steps)]
    world(count)
    several = Order(items, steps, *ranks.shared(batch, accumulate), 7)
    assert several.rows * several.micro * count == batch * accumulate
    assert [step(several, s) for s in range(steps)] == expected
    a_pass = -(-items // (batch * accumulate))
    assert sorted(i for taken in expected[:a_pass] for i in taken) == list(range(items))
    assert expected[0] != expected[a_pass][: len(expected[0])]


@pytest.mark.parametrize(("batch", "accumulate", "count"), [(15, 1, 2), (16, 2, 3), (6, 3, 4)])
def test_a_step_that_ranks_cannot_share_is_refused(batch: int, accumulate: int, count: int, world: Any) -> None:
    world(count)
    with pytest.raises(UsageError, match=f"{count} ranks cannot share steps of {accumulate} micro-batches of {batch}"):
        ranks.shared(batch, accumulate)


def sums(found: Path) -> None:
    """Save this rank's sums of tensors of its own, of every size that is added up in another way."""
    with ranks.joined():
        torch.save([ranks.sum_(part(size, ranks.rank())) for size in SIZES], found / f"{ranks.rank()}.pt")
    sys.exit()


SIZES = 1, 17, 4097, 6000, 30001


def part(size: int, rank: int) -> torch.Tensor:
    return torch.randn(size, 2, generator=torch.Generator().manual_seed(rank)).mul_(10.0**rank).t()  # not contiguous


@pytest.mark.parametrize("count", [2, 3])
def test_sums_are_in_the_order_of_ranks(count: int, tmp_path: Path) -> None:
    launching.run(tmp_path, [], ranks=count, before=sums, given=[tmp_path])
    expected = [ranks.in_order([part(size, rank) for rank in range(count)]) for size in SIZES]
    for rank in range(count):
        for found, sum_ in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            assert torch.equal(found, sum_)


def test_one_process_needs_no_group() -> None:
    tensor = torch.ones(3)
    assert ranks.sum_(tensor) is tensor
    assert ranks.gathered("me") == ["me"]
    assert ranks.alone(lambda: 5) == 5
    with ranks.joined(), ranks.agreed():
        assert (ranks.count(), ranks.rank(), ranks.first()) == (1, 0, True)
