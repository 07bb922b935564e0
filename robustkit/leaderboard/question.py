"""Whether a run is an answer to the board's question: the same data, threat, goal and seed, and the attacks that are demanded."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from robustkit import registry
from robustkit.errors import RobustkitError
from robustkit.leaderboard.subject import Subject
from robustkit.spec import digest, number
from robustkit.store import canonical_json
from robustkit.threats import load_threat


def question(record: dict[str, Any], summary: dict[str, Any], subject: Subject) -> Iterator[str]:
    """What keeps a run from being an answer to the board's question."""
    board, told_ = subject.definition, record["specification"]
    if record["status"] != "complete":
        yield f"the run is {record['status']!a}: only complete runs count; the same robustkit evaluate command completes it"
    if record["digest"] != digest(canonical_json(told_), 32):
        yield "run.json: its specification was changed, the digest does not fit"
    for entry in summary["diagnostics"]:
        if entry["check"] == "contradiction" or (entry["check"] == "repeatable" and entry["status"] == "error"):
            yield f"the run is not sound: {entry['message'][:200]}"
    try:
        same = load_threat(told_["threat"]).family == board.load_threat().family
    except RobustkitError:
        same = False
    if not same or number_of(told_["eps"]) != number(board.eps):
        asked = f"{told_['threat'][:80]} with budgets {', '.join(told_['eps'])[:80]}"
        yield f"the run is about {asked}, the board about {board.threat}: evaluate with --threat {board.threat}"
    if told_["data"]["digest"] != board.data["digest"]:
        yield f"the run is about other data ({told_['data']['spec'][:80]}): evaluate on {board.data['spec']}"
    for key in ("goal", "labels", "seed"):
        if told_[key] != getattr(board, key):
            yield f"{key} is {told_[key]!a}, the board's is {getattr(board, key)!a}"
    for key in ("threat", "eps", "goal", "labels", "seed"):
        if summary[key] != told_[key]:
            yield f"summary.json: {key} is {summary[key]!a}, run.json says {told_[key]!a}"
    if summary["data"]["digest"] != told_["data"]["digest"]:
        yield "summary.json and run.json are about different data"
    yield from floor(record, summary, subject)


def floor(record: dict[str, Any], summary: dict[str, Any], subject: Subject) -> Iterator[str]:
    """Attacks that the board demands and the run has not run to their end."""
    ran: dict[str, int] = {}
    for stage in record["specification"]["stages"]:
        try:
            if stage["mode"] == "settle" and number(stage["eps"]) == number(subject.definition.eps):
                spec = str(registry.make("attack", stage["method"]).spec)
                ran[spec] = max(ran.get(spec, 0), stage["version"])
        except RobustkitError:
            continue
    ended = {stage["spec"] for stage in summary["stages"] if stage["complete"] and stage["kind"] == "attack"}
    for attack, version in subject.definition.attacks(subject.classifier.classes or 0):
        if str(attack.spec) not in ran:
            yield f"the attack {attack.spec} was not run: the board demands suite {subject.definition.suite}"
        elif ran[str(attack.spec)] < version:
            yield f"the attack {attack.spec} was run in version {ran[str(attack.spec)]}, the board demands {version}: evaluate again"
        elif not any(_same_attack(text, str(attack.spec)) for text in ended):
            yield f"the attack {attack.spec} was not run to its end"


def _same_attack(text: str, wanted: str) -> bool:
    try:
        return str(registry.make("attack", text).spec) == wanted
    except RobustkitError:
        return False


def number_of(texts: list[str]) -> Fraction | None:
    """The largest budget of a run, None where there is none."""
    try:
        return max(number(text) for text in texts)
    except (ValueError, RobustkitError):
        return None
