"""What Label Studio reads and writes: tasks, the labelling configuration, and its JSON export.

Local files are shown only from a Local Files storage on a true sub-folder of the document root. So the document root is
the parent of the folder of images. A prediction with an unknown class is taken without a word: `task` refuses it.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit
from xml.sax.saxutils import quoteattr

from al_bench.errors import UserError
from al_bench.labelling.labels import SKIP
from al_bench.labelling.session import Item
from al_bench.labelling.tables import path_cell
from al_bench.text import one_line

FROM, TO = "label", "image"  # the names of the choices and of the image in the configuration
LOCAL = "/data/local-files/"


def configuration(classes: Sequence[str]) -> str:
    """The labelling configuration: one choice an image, the first nine classes with the keys 1 to 9."""
    keys = [f' hotkey="{number}"' if number < 10 else "" for number in range(1, len(classes) + 1)]
    choices = [f"    <Choice value={quoteattr(name)}{key}/>" for name, key in zip(classes, keys, strict=True)]
    image = f'  <Image name="{TO}" value="$image"/>'
    head = f'  <Choices name="{FROM}" toName="{TO}" choice="single" showInLine="true">'
    return "\n".join(["<View>", image, head, *choices, "  </Choices>", "</View>", ""])


def task(item: Item, folder: Path, classes: Sequence[str], guess: tuple[str, float] | None, by: str) -> dict[str, Any]:
    """guess: a class and its probability, shown as a prediction by the model `by`. Raises ValueError for no class."""
    where = quote(os.fsencode(f"{folder.name}/{item.path}"))
    data = {
        "image": f"{LOCAL}?d={where}", "file": path_cell(item.path), "sha256": item.sha256, "rank": item.rank,
        "round": item.round,
    }  # fmt: skip
    if guess is None:
        return {"data": data}
    name, prob = guess
    if name not in classes:
        raise ValueError(f"the prediction {name!r} is none of the classes")
    result = {"from_name": FROM, "to_name": TO, "type": "choices", "value": {"choices": [name]}}
    prediction = {"model_version": by, "score": round(prob, 4), "result": [result]}
    return {"data": data | {"shown": name}, "predictions": [prediction]}


def steps(folder: Path, tasks: Path, view: Path) -> list[str]:
    """How to start Label Studio, to import the tasks and to take the labels back, in three lines."""
    root = shlex.quote(str(folder.parent))
    return [
        f"1. LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root} "
        "label-studio start --port 8080",
        f"2. New project: paste {view} under Labeling Setup > Custom template. Settings > Cloud Storage > Add Source "
        f"Storage > Local Files: {folder}, then Save (not Save & Sync). Import {tasks}.",
        f"3. Export > JSON: it alone keeps skipped tasks. Then: al-bench ingest {shlex.quote(str(folder))} EXPORT.json",
    ]


def path_in(image: str) -> str | None:
    """The path below the document root that the address of an image has; None for another address."""
    parts = urlsplit(image)
    if LOCAL not in parts.path or not parts.query.startswith("d="):
        return None
    return os.fsdecode(unquote_to_bytes(parts.query.removeprefix("d=").partition("&")[0]))


def rows_of(tasks: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each annotation of a JSON export: the task's data, `label`, `time`, `who`. Skipped: SKIP."""
    for task in tasks:
        for note in task.get("annotations") or ():
            by = note.get("completed_by")
            who = by.get("email") or by.get("id") if isinstance(by, dict) else by
            row = {"time": note.get("updated_at") or note.get("created_at"), "who": who}
            yield task["data"] | row | {"label": SKIP if note.get("was_cancelled") else _choice(task, note)}


def _choice(task: dict[str, Any], note: dict[str, Any]) -> str | None:
    """The chosen class; None if there is none. Raises UserError for several."""
    results = [r for r in note.get("result") or () if r.get("type") == "choices"]
    ours = [r for r in results if r.get("from_name") == FROM] or results
    chosen = [name for r in ours for name in r["value"]["choices"]]
    if len(chosen) > 1:
        refuse_several(str(task["data"].get("file") or task["data"].get("image")), chosen)
    return chosen[0] if chosen else None


def refuse_several(what: str, chosen: Sequence[str]) -> None:
    raise UserError(
        f"{one_line(what)} has several classes ({', '.join(map(one_line, chosen))}): the project was set up with "
        'choice="multiple", and an image has one class here. Set choice="single" and correct these images.'
    )
