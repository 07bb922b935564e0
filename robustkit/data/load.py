"""DATA as a user names it: known name, then existing path, then the user's module:callable."""

from __future__ import annotations

from pathlib import Path

from robustkit.data.arrays import npz, returned
from robustkit.data.dataset import Data
from robustkit.data.digits import digits
from robustkit.data.folders import image_folder
from robustkit.data.source import Selection, Source, selection
from robustkit.data.torchvision_sets import KNOWN, known_set
from robustkit.errors import BadInput, Missing, unknown
from robustkit.filetypes import existing
from robustkit.spec import Spec, parse
from robustkit.usercode import import_named, is_named

_SCHEMES = ("npz", "folder")


def data_names() -> list[str]:
    """The names a DATA specification may begin with."""
    return ["digits", *KNOWN, *(f"{scheme}:" for scheme in _SCHEMES)]


def load_data(spec: str | Path | Data, root: str | Path | None = None, *, split: str = "test") -> Data:
    """Load labelled images.

    Args:
        spec: digits, mnist, fashion-mnist, cifar10, npz:FILE, folder:DIR, a path to an .npz file or
            a folder, or package.module:callable returning (x, y); with options n=, split=,
            pick=first|random, seed=. For example "mnist:n=500" or "npz:mine.npz,n=100,pick=random".
        root: where to look for known sets first; then ROBUSTKIT_DATA, then ~/.cache/robustkit.
        split: the split where the specification names none; sets without splits ignore it.

    Raises:
        BadInput: unknown name or option, malformed, damaged or unsuitable data.
        Missing: a known set or a file that is not here; the message says where it was looked for.
    """
    if isinstance(spec, Data):
        return spec
    text = str(spec).strip()
    scheme, colon, rest = text.partition(":")
    if scheme in _SCHEMES and colon:
        path, chosen = _path_and_options(rest, text)
        return _from_path(path, chosen, split, scheme).select(chosen)
    if is_known(scheme):
        return _from_known(parse(text), root, split)
    whole = existing(text)
    if whole is not None:
        return _from_path(whole, Selection(), split).select(Selection())
    if is_named(text):
        return _from_user(text, Selection())
    if _is_path(scheme) and not existing(scheme):
        raise Missing(f"data {text!r}: there is no such file or folder (looked from {Path.cwd()})")
    return _from_other(parse(text), split)


def is_known(name: str) -> bool:
    """Whether a name is that of a bundled or known set."""
    return name == "digits" or name in KNOWN


def _from_known(spec: Spec, root: str | Path | None, split: str) -> Data:
    if spec.items:
        raise BadInput(f"{spec}: {spec.name} takes no positional item; write {spec.name}:n=500")
    chosen = selection(spec, "data")
    source = digits(chosen, split) if spec.name == "digits" else known_set(spec.name, chosen, split, root)
    return source.select(chosen)


def _from_other(spec: Spec, split: str) -> Data:
    """A path or the user's callable, with options."""
    path = existing(spec.name)
    if path is not None and not spec.items:
        chosen = selection(spec, "data")
        return _from_path(path, chosen, split).select(chosen)
    if len(spec.items) == 1 and is_named(f"{spec.name}:{spec.items[0]}"):
        return _from_user(f"{spec.name}:{spec.items[0]}", selection(spec, "data"))
    if spec.name in _SCHEMES:
        raise BadInput(f"{spec}: which one? write {spec.name}:PATH")
    raise unknown("data", spec.name, data_names())


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith(".npz")


def _path_and_options(rest: str, text: str) -> tuple[Path, Selection]:
    """The path after `npz:` or `folder:` (an existing one wins whole) and the options after it."""
    if not rest:
        raise BadInput(f"{text}: which one? write {text}PATH")
    whole = existing(rest)
    if whole is not None:
        return whole, Selection()
    spec = parse(text)
    if len(spec.items) != 1 or isinstance(spec.items[0], (tuple, Spec)):
        raise BadInput(f"{text}: expected one path, then options: {spec.name}:PATH,n=100; a path with commas goes in quotes")
    name = rest.split(",")[0] if not isinstance(spec.items[0], str) else spec.items[0]
    path = existing(name)
    if path is None:
        raise Missing(f"{text}: there is no {name} (looked from {Path.cwd()})")
    return path, selection(spec, "data")


def _from_path(path: Path, chosen: Selection, split: str, scheme: str | None = None) -> Source:
    if path.is_dir():
        if scheme == "npz":
            raise BadInput(f"{path} is a folder: write folder:{path}, or name an npz file")
        return image_folder(path, chosen, split)
    if scheme == "folder":
        raise BadInput(f"{path} is a file: write npz:{path}, or name a folder with one folder per class")
    if scheme is None and path.suffix != ".npz":
        raise BadInput(f"{path} is no data: expected an .npz file, a folder of images, or one of {', '.join(data_names())}")
    return npz(path, chosen, split)


def _from_user(name: str, chosen: Selection) -> Data:
    code = import_named(name, "data")
    return returned(code.call() if callable(code.target) else code.target, name, chosen)
