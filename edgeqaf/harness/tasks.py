"""Task files of lm-eval, loaded from where they are named.

Relative paths in a task file are read from the folder of the file (or folder) that was named.
"""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from edgeqaf.errors import EdgeqafError, Refused

SEED = 1234  # of the draw of few-shot examples; lm-eval's default


def load(place: Path) -> list[Any]:
    """The tasks and groups at one place; Refused, with the file, for one that the harness does not take."""
    if not place.exists():
        raise Refused(f"{place} does not exist", "--tasks takes task files of lm-eval (.yaml) and folders of them")
    found = place.resolve()
    kinds = [_kind(file) for file in (sorted(found.rglob("*.yaml")) if found.is_dir() else [found])]
    if all(kind is None for kind in kinds):
        raise Refused(f"{place} holds no task", "a task file of lm-eval has the key `task` or `group`")
    folder = found if found.is_dir() else found.parent
    group = kinds[0] if found.is_file() else None
    with guarded(str(place)), contextlib.chdir(folder):
        whole = found is folder or group  # a group names tasks in other files
        manager = TaskManager(include_path=str(folder) if whole else None, include_defaults=False)
        loaded = manager.load(_names(manager) if found is folder else [group or str(found)])
    inside = {task for group in loaded["groups"].values() for task in group.get_all_tasks()}
    groups = loaded["groups"].values()
    tops = [g for g in groups if not any(g.name in other.child_names for other in groups)]
    return [*tops, *(task for task in loaded["tasks"].values() if task not in inside)]


def set_shots(task: Any, shots: int | None) -> None:
    """As lm-eval's command line does: a task that says 0 keeps it, one that says nothing gets 0."""
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=SEED)


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """Errors become Refused, with the last one that lm-eval logged; its progress bars and warnings are not shown.

    A task is a program, in templates and functions: its errors share no base but Exception.
    """
    heard: list[str] = []
    ear = logging.Handler(logging.ERROR)
    ear.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("lm_eval")
    log.addHandler(ear)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except EdgeqafError:
        raise
    except Exception as error:
        logged = f" ({_line(heard[-1])})" if heard else ""
        raise Refused(
            f"{what}: {type(error).__name__}: {_line(str(error))}{logged}",
            "lm-eval cannot run this task; see docs/guides/evaluate.md",
        ) from error
    finally:
        log.removeHandler(ear)


def _names(manager: Any) -> list[str]:
    """Of a folder: the groups that no other group holds, and the tasks that are in no group."""
    held: set[str] = set()
    for name in manager.all_groups:
        members = manager.task_index[name].cfg.get("task") or []
        for member in members if isinstance(members, list) else [members]:
            held.add(member if isinstance(member, str) else str(member.get("task") or member.get("group")))
    held |= {name for tag in held & set(manager.all_tags) for name in manager.task_index[tag].tags}
    return [name for name in (*manager.all_groups, *manager.all_subtasks) if name not in held]


def _kind(file: Path) -> str | None:
    """A group's name, "" for a task, None for a fragment that others include; Refused for what is no YAML mapping."""
    try:
        values = load_yaml(file, resolve_func=False)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Refused(
            f"{file}: {type(error).__name__}: {_line(str(error))}", "a task file of lm-eval is a YAML mapping"
        ) from None
    return str(values["group"]) if "group" in values else "" if "task" in values else None


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
