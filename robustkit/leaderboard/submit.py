"""A finished run folder becomes an entry: checked as a verifier would check it, then added in one step."""

from __future__ import annotations

import tempfile
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from robustkit.classifier import pick_device
from robustkit.core.plain_text import skeleton
from robustkit.errors import BadInput, Missing, RobustkitError
from robustkit.evaluation.untrusted_names import model_of_bytes, open_model
from robustkit.leaderboard.documents import canonical, check, parse, sha256, short_text
from robustkit.leaderboard.files import Arrays, columns, columns_bytes, read_file, tensors
from robustkit.leaderboard.limits import LIMITS
from robustkit.leaderboard.manifest import FILE, ID, MODEL, Entry, checked_summary, entry_id, make_manifest
from robustkit.leaderboard.subject import identity, weights_file
from robustkit.leaderboard.verify import Verdict, evidence, files
from robustkit.models import load_model

if TYPE_CHECKING:
    from robustkit.leaderboard.board import Leaderboard

_SMALL, _LARGE = 1 << 26, 1 << 34
ENOUGH = 16
"""Different margins that two entries have to share to be called the same."""
_WITNESS = ("position", "index", "size", "stage", "parameters")


def submit(
    board: Leaderboard,
    run: Path,
    *,
    name: str,
    paper: str = "",
    training_data: str = "",
    claimed: float | None = None,
    model: str | None = None,
    device: str = "auto",
    data_root: str | Path | None = None,
    allow_code: bool = False,
) -> Entry:
    """Add a run to a board.

    Args:
        run: folder of a complete run about the board's question.
        name, paper, training_data: what the table says of it.
        claimed: robust accuracy that its authors claim, shown beside what was found.
        model: the model that was evaluated, where it does not come with robustkit and lies not in the run's folder:
            a path, or a specification such as package.module:callable.
        allow_code: the code that the run folder names is trusted, and run here.

    Raises:
        BadInput: refused, with the reasons. Missing: the run, the data or the weights are not here.
    """
    if claimed is not None and not 0 <= claimed <= 1:
        raise BadInput(f"claimed = {claimed}: expected a share from 0 to 1, for example 0.45")
    about: dict[str, Any] = {"name": short_text(name, "the name"), "paper": short_text(paper, "paper", empty=True)}
    about |= {"training_data": short_text(training_data, "training data", empty=True), "claimed": claimed}
    held = _gather(board, run)
    record, summary = parse(held["run.json"], "run.json"), parse(held["summary.json"], "summary.json")
    about["model"] = _model(record["specification"]["model"], model, run, held, device, allow_code)
    raw = make_manifest(board.definition, about, held)
    data = board.definition.load_data(data_root, allow_code)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / entry_id(raw)
        folder.mkdir()
        for path, content in (*held.items(), (FILE, raw)):
            (folder / path).write_bytes(content)
        entry = Entry(folder, board.definition, sha256(raw), about["name"])
        verdict = Verdict(entry.id, entry.name, "evidence")
        files(entry, [], verdict)
        if not verdict.problems:
            evidence(entry, data, [], verdict, device=device, allow_code=allow_code)
    if verdict.problems:
        raise BadInput(f"{run} was not accepted: {'; '.join(verdict.problems[:5])}")
    with board.changing():
        _duplicates(board, about)
        _copies(board, columns(held["samples.npz"], board.definition.n, "samples.npz"))
        told = {"entry": entry.id, "manifest": sha256(raw), "name": about["name"], "model": about["model"]["sha256"]}
        told |= {"identity": about["model"]["identity"], "checked": "files" if verdict.missing else "evidence"}
        told |= {key: summary[f"{key}_accuracy"] for key in ("clean", "robust", "certified")}
        board.step("submit", told, {**held, FILE: raw})
    return Entry(board.path / "entries" / sha256(raw)[:ID], board.definition, sha256(raw), about["name"])


def _gather(board: Leaderboard, run: Path) -> dict[str, bytes]:
    """The files of a submission, made from a run folder: no command line, no paths, no images that can be made again."""
    if not (run / "run.json").exists():
        raise BadInput(f"{run} is no run folder: give the folder that robustkit evaluate --out wrote")
    record = parse(read_file(run / "run.json", _SMALL), str(run / "run.json"))
    check(record, "run", str(run / "run.json"))
    if record["status"] != "complete" or not (run / "summary.json").exists():
        raise BadInput(f"{run} was not accepted: the run is {record['status']!a}; the same robustkit evaluate command completes it")
    summary = checked_summary(parse(read_file(run / "summary.json", _SMALL), str(run / "summary.json")), str(run / "summary.json"))
    wanted, digest = summary["data"]["n"], record["specification"]["data"]["digest"]
    if wanted != board.definition.n or digest != board.definition.data["digest"]:
        spec = record["specification"]["data"]["spec"]
        raise BadInput(
            f"{run} was not accepted: it is about {spec[:80]} ({wanted} samples), the board about {board.definition.data['spec']}"
        )
    values = columns(read_file(run / "samples.npz", _LARGE), wanted, str(run / "samples.npz"))
    kept = {key: record[key] for key in ("schema_version", "digest", "specification", "status", "environment")}
    found = {"run.json": canonical(kept), "summary.json": canonical(summary | {"run": Path(summary["run"]).name})}
    found["samples.npz"] = columns_bytes(values)
    if (run / "witnesses.safetensors").exists():
        held = tensors(read_file(run / "witnesses.safetensors", _LARGE), str(run / "witnesses.safetensors"))
        absent = [key for key in _WITNESS if key not in held]
        if absent:
            raise BadInput(f"{run / 'witnesses.safetensors'} lacks {', '.join(absent)}")
        found["witnesses.safetensors"] = safetensors.numpy.save({key: np.ascontiguousarray(held[key]) for key in _WITNESS})
    return found


def _model(named: dict[str, Any], given: str | None, run: Path, held: dict[str, bytes], device: str, allow_code: bool) -> dict[str, Any]:
    """The manifest's word about the model; its weights join the files where they are a safetensors file.

    The run folder may come from anybody: what it names is opened as `evaluation.untrusted_names` says.
    """
    spec, wanted = str(named["spec"]), named["sha256"]
    path = weights_file(spec, given, run)
    title = spec if spec.startswith(("zoo:", "torchvision:")) or path is None else PureWindowsPath(spec).name
    if path is not None:
        raw = read_file(path.resolve(), 1 << 32)
        if sha256(raw) != wanted:
            hint = "give the file that was evaluated with --model" if given is None else "it is not the file that was evaluated"
            raise BadInput(
                f"{path} is not the model of this run (sha256 {sha256(raw)[:12]}..., the run's is {str(wanted)[:12]}...): {hint}"
            )
        held[MODEL] = raw
        return {"spec": title, "sha256": wanted, "identity": identity(model_of_bytes(raw, title, device, LIMITS.network)), "file": MODEL}
    if wanted is None:
        raise BadInput(f"the model {spec} was handed over in Python: save it with robustkit.models.save_model and evaluate the file")
    try:
        if given is not None:
            classifier = load_model(given, device=pick_device(device), allow_code=allow_code)
        else:
            classifier = open_model(spec, run, device=device, allow_code=allow_code)
    except Missing as problem:
        raise Missing(f"{run} was not accepted: {problem}") from problem
    except RobustkitError as problem:
        raise BadInput(
            f"the model {spec} of this run cannot be loaded ({problem}): give its file with --model FILE.safetensors"
        ) from problem
    if classifier.sha256 != wanted:
        raise BadInput(
            f"{spec} is no longer the model of this run (sha256 {str(classifier.sha256)[:12]}..., the run's is {wanted[:12]}...)"
        )
    return {"spec": spec, "sha256": wanted, "identity": identity(classifier), "file": None}


def _duplicates(board: Leaderboard, about: dict[str, Any]) -> None:
    """Raises BadInput where the board has the model or the name already."""
    for line in board.ledger().lines:
        if line.event != "submit":
            continue
        known = f"entry {str(line.about.get('name'))!a} ({str(line.about.get('entry'))[:10]})"
        same = about["model"]["identity"] and line.about.get("identity") == about["model"]["identity"]
        if same or line.about.get("model") == about["model"]["sha256"]:
            raise BadInput(f"duplicate: {known} is the same model; stronger attacks on it are a challenge: robustkit leaderboard challenge")
        if skeleton(str(line.about.get("name"))) == skeleton(about["name"]):
            raise BadInput(f"duplicate: {known} has that name, or one that looks like it: choose another with --name")


def _copies(board: Leaderboard, own: Arrays) -> None:
    """Raises BadInput where an entry answers every image of the board as this one does: the same network, written otherwise."""
    for entry in board.entries():
        try:
            other = entry.columns
        except RobustkitError:
            continue  # damaged: verify says so
        if same_answers(own, other):
            raise BadInput(
                f"duplicate: entry {entry.name!a} ({entry.id[:10]}) gives the same answers to all images of the board, their margins "
                "scaled at most: stronger attacks on it are a challenge: robustkit leaderboard challenge"
            )


def same_answers(one: Arrays, other: Arrays) -> bool:
    """Whether two sets of columns come from one function, but for the scale of its logits: models trained apart never agree so far."""
    a, b = one["clean_margin"], other["clean_margin"]
    if not np.array_equal(one["predicted"], other["predicted"]) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    if len(np.unique(a.round(9))) < ENOUGH or not (float(np.abs(a).max()) > 0 and float(np.abs(b).max()) > 0):
        return False  # too few different answers to tell
    scaled = b * (float(a @ b) / float(b @ b))
    return bool((np.abs(a - scaled) <= 1e-4 * float(np.abs(a).max())).all())
