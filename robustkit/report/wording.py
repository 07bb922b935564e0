"""Numbers and sentences, the same in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustkit.errors import BadInput
from robustkit.guarantees import CLASSES, guarantee_class
from robustkit.spec import Spec, parse

SPACE = "\u00a0"

_FAMILIES = {
    "linf": "every pixel value may change by at most {eps}",
    "l2": "the change has a Euclidean norm of at most {eps}",
    "l1": "the changes add up to at most {eps}",
    "l0": "at most {eps} pixels may change",
    "rotation": "the image may be turned and shifted by at most {eps} of the stated angle and shift",
    "flow": "every pixel may be moved by at most {eps} pixels",
}
_GOALS = {
    "untargeted": "any wrong answer counts as broken",
    "targeted": "only an answer of the target class counts as broken",
    "accepted-error": "only a wrong answer that the model accepts counts as broken",
}
_ORDER = {"error": 0, "warn": 1, "skipped": 2, "pass": 3}


def digits(n: int) -> int:
    """Decimals of a percentage that n samples resolve: one to a thousand, two beyond."""
    return 1 if n <= 1000 else 2


def percent(share: float | None, n: int = 1000) -> str:
    """`71.3 %` with a no-break space; a dash where nothing was measured."""
    return "–" if share is None else f"{100 * share:.{digits(n)}f}{SPACE}%"


def bounds(interval: Sequence[float] | None, n: int = 1000) -> str:
    """`68.4–74.0` in percent, empty without an interval."""
    return "–".join(f"{100 * value:.{digits(n)}f}" for value in interval or ())


def span(interval: Sequence[float] | None, n: int = 1000) -> str:
    """`68.4 – 74.0 %`, empty without an interval."""
    return bounds(interval, n).replace("–", f"{SPACE}–{SPACE}") + f"{SPACE}%" if interval else ""


def count(value: float) -> str:
    """A whole number with thousands separators."""
    return f"{int(value):,}"


def short(value: float) -> str:
    """At most five characters: 812, 12.3k, 4.56M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{int(value)}"


def duration(seconds: float) -> str:
    """A time that a person reads at once."""
    if seconds < 10:
        return f"{seconds:.2f}{SPACE}s"
    if seconds < 120:
        return f"{seconds:.0f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes}{SPACE}min{SPACE}{rest:02d}{SPACE}s"
    return f"{minutes // 60}{SPACE}h{SPACE}{minutes % 60:02d}{SPACE}min"


def allowed(threat: str, budget: str) -> str:
    """The threat in words."""
    family = threat.partition(":")[0]
    return _FAMILIES.get(family, "changes of the family " + family + " of size at most {eps}").format(eps=budget)


def goal_words(goal: str) -> str:
    """What counts as broken."""
    return _GOALS.get(goal.partition(":")[0], f"goal {goal}")


def model_title(spec: str) -> str:
    """A model's specification, of a path only the last part: short, and silent about someone's disk."""
    return spec if any(mark in spec for mark in ',=()[]"') else spec.rpartition("/")[2] or spec


def stage_labels(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each stage; those of one name are told apart by the options in which they differ."""
    options = [_options(str(stage["spec"])) for stage in stages]
    labels = []
    for stage, mine in zip(stages, options):
        others = [theirs for other, theirs in zip(stages, options) if other["name"] == stage["name"]]
        telling = [text for key, text in mine.items() if any(theirs.get(key) != text for theirs in others)]
        labels.append(" ".join([str(stage["name"]), *telling]))
    return labels


def _options(text: str) -> dict[str, str]:
    """Option -> `key=value`, of a word the value alone. Empty when the text is no specification."""
    try:
        spec = parse(text)
    except BadInput:
        return {}
    named = {str(place): str(Spec("_", (value,)))[2:] for place, value in enumerate(spec.items)}
    return named | {key: value if isinstance(value, str) else str(Spec("_", (), {key: value}))[2:] for key, value in spec.options.items()}


def certifiers(summary: Mapping[str, Any], kind: str = "") -> list[str]:
    """Names of the certifiers that ran, of one guarantee class if named."""
    ran = [stage for stage in summary["stages"] if stage["kind"] == "certifier"]
    ran = [stage for stage in ran if kind in ("", guarantee_class(str(stage.get("guarantee", ""))))]
    named = [(str(stage["spec"] or stage["name"]).partition(":")[0], str(stage["name"])) for stage in ran]
    return list(dict.fromkeys(title if name == "sound" else name for name, title in named))


def guarantee(summary: Mapping[str, Any]) -> str:
    """The class of guarantee behind the certified figure, in a short sentence."""
    names = certifiers(summary, "deterministic")
    if not names and certifiers(summary):
        return "No deterministic certifier was run: what is proven otherwise stands beside the bracket."
    if not names:
        return "No certifier was run: 0 % means that nothing was proven, not that nothing is robust."
    if not summary["certified_accuracy"]:
        return f"No deterministic certificate holds at this budget (tried: {', '.join(names)})."
    return f"Guarantee class: {arithmetic(summary)} ({', '.join(names)})."


def arithmetic(summary: Mapping[str, Any]) -> str:
    """What the deterministic certificates of a run are about: real-arithmetic or floating-point, never both."""
    found = [str(stage.get("guarantee", "")) for stage in summary["stages"] if stage["kind"] == "certifier"]
    return next((one for one in found if guarantee_class(one) == "deterministic"), "deterministic")


def extra_guarantees(summary: Mapping[str, Any], n: int) -> list[str]:
    """Certified shares of the weaker classes, which are never part of the bracket."""
    told = []
    at_once = summary.get("simultaneous")
    if at_once:
        share = percent(summary["certified_statistical"], n)
        most = f"at most {at_once['wrong']}" if at_once["wrong"] else "none"
        wrong = f"with 95{SPACE}% confidence {most} of them wrong"
        told.append(f"{share} certified statistically, alpha {at_once['alpha']:g} for each image ({wrong})")
        union = f"union bound over {plural(at_once['images'], 'image')}: alpha {at_once['level']:.2g} for each"
        share, confidence = percent(at_once["certified"], n), f"{100 * at_once['confidence']:g}{SPACE}%"
        told.append(f"{share} certified statistically all at once, with confidence {confidence} ({union})")
    elif summary.get("certified_statistical"):
        told.append(
            f"{percent(summary['certified_statistical'], n)} certified statistically (each holds with the confidence stated for its stage)"
        )
    if summary.get("certified_conditional"):
        told.append(f"{percent(summary['certified_conditional'], n)} certified conditionally (true only if the stated assumption holds)")
    return told


@dataclass(frozen=True)
class Proofs:
    """What one certifier did, in a row of the table of methods."""

    label: str
    eps: str
    given: int
    proven: dict[str, int | None]
    """Guarantee class -> samples that it has proven at its budget; None for the classes that it has no say in."""
    seconds: float
    each: float
    """Milliseconds a sample."""
    guarantee: str
    """With the arithmetic it was computed in."""
    margin: str
    """The smallest one proven."""
    note: str


def proofs(summary: Mapping[str, Any]) -> list[Proofs]:
    """One row for each certifier that was given samples; guarantee classes never share a column."""
    rows = []
    for stage, label in zip(summary["stages"], stage_labels(summary["stages"])):
        if stage["kind"] != "certifier" or "proven" not in stage or not stage["received"]:
            continue
        mine, seconds = guarantee_class(stage["guarantee"]), float(stage["seconds"])
        proven = {kind: int(stage["proven"]) if kind == mine else None for kind in CLASSES}
        each, note = 1000 * seconds / int(stage["received"]), str(stage.get("note", ""))
        held = ", ".join(str(stage[name]) for name in ("guarantee", "dtype") if name in stage)
        margin = "-" if stage.get("margin") is None else f"{float(stage['margin']):.2g}"
        rows.append(Proofs(label, str(stage["eps"]), int(stage["received"]), proven, seconds, each, held, margin, note))
    return rows


def milliseconds(value: float) -> str:
    """`0.31 ms`, `12 ms`, `3,200 ms`."""
    return f"{value:.2f}{SPACE}ms" if value < 10 else f"{value:,.0f}{SPACE}ms"


def radii(summary: Mapping[str, Any]) -> list[str]:
    """What a search for radii found, in words; empty without one."""
    told = []
    for kind, found in (summary.get("certified_radius") or {}).items():
        told.append(f"{kind} certified radius: mean {found['mean']:.4g}, median {found['median']:.4g}")
    return told


def caution(summary: Mapping[str, Any], n: int) -> str:
    """What has to stand beside the robust accuracy: why there is none, that nobody checked it, or nothing."""
    if summary["not_established"]:
        return f"not established ({summary['not_established']}): at most {percent(summary['robust_accuracy_at_most'], n)}"
    return "" if summary["checked"] else "not checked"


def verdict(summary: Mapping[str, Any], budget: str) -> str:
    """The headline in one sentence of plain words."""
    n = int(summary["data"]["n"])
    clean, robust, certified = (float(summary[f"{name}"]) for name in ("clean_accuracy", "robust_accuracy_at_most", "certified_accuracy"))
    whose = "agree with the model's own prediction" if summary["labels"] == "predicted" else "are classified correctly"
    proven, broken, left = (round(n * share) for share in (certified, clean - robust, robust - certified))
    start = f"Of {count(n)} images, {count(round(n * clean))} {whose}. Where {allowed(str(summary['threat']), budget)}, "
    middle = f"{count(proven)} of them are proven to stay so, attacks broke {count(broken)}"
    if summary["not_established"]:
        untold = "is not established, because what the attacks left may only show that they were blind"
        return f"{start}{middle}. The true robust accuracy on these images {untold}: it is at most {percent(robust, n)}."
    if left <= 0:
        return f"{start}{middle}, and none is left open: the robust accuracy is {percent(robust, n)} on these images."
    return (
        f"{start}{middle}, and for {count(left)} neither a proof nor an attack decided: "
        f"the true robust accuracy on these images lies between {percent(certified, n)} and {percent(robust, n)}."
    )


def sorted_diagnostics(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Errors first, then warnings, skipped checks, passes."""
    return sorted(summary["diagnostics"], key=lambda entry: _ORDER.get(str(entry["status"]), 1))


def plural(number: int, word: str) -> str:
    """`1 warning`, `3 warnings`."""
    return f"{number} {word}{'' if number == 1 else 's'}"
