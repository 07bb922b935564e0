"""MODEL as a user names it: known scheme, then existing path, then the user's module:callable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustkit.classifier import Classifier, as_classifier
from robustkit.errors import BadInput, Missing, unknown
from robustkit.filetypes import existing
from robustkit.models.files import SUFFIXES, file_model
from robustkit.models.smoothed import smooth_options, smoothed
from robustkit.models.torchvision_models import torchvision_model
from robustkit.models.weights import state_digest
from robustkit.models.wrapped import is_wrapper, wrapped_model
from robustkit.usercode import UserCode, import_named, is_named

ZOO = Path(__file__).resolve().parent.parent / "zoo"


def zoo_names() -> list[str]:
    """The models that come with robustkit, as zoo:NAME takes them."""
    return sorted(file.stem for file in ZOO.glob("*.safetensors"))


def load_model(spec: str | Path | nn.Module | Classifier, device: str | torch.device = "cpu", allow_code: bool = False) -> Classifier:
    """Load a model as a Classifier: logits for images in [0,1], normalisation inside.

    Args:
        spec: zoo:NAME, torchvision:NAME[,classes=10,weights=FILE], FILE.safetensors, FILE.pt2 or a
            TorchScript file, package.module:callable, smooth:(any of these),sigma=0.25, or another
            wrapper such as knn:(any of these); an nn.Module or a Classifier is taken as it is.
        device: cpu, cuda, cuda:N or auto.
        allow_code: permit archives whose loaders can run code.

    Raises:
        BadInput: unknown, damaged or unsuitable models, one clear line each.
        Missing: a file or a device that is not here.
    """
    if not isinstance(spec, (str, Path)):
        return on_device(as_classifier(spec, device=device), device)
    text = str(spec).strip()
    scheme, colon, rest = text.partition(":")
    if colon and scheme in SCHEMES:
        return SCHEMES[scheme](rest.strip(), device, allow_code)
    if colon and is_wrapper(scheme):
        return wrapped_model(scheme, rest.strip(), lambda inner: load_model(inner, device, allow_code))
    path = existing(text)
    if path is not None:
        return file_model(path, text, device, allow_code)
    if is_named(text):
        return from_user(import_named(text, "model"), device)
    if "/" in text or text.lower().endswith(SUFFIXES):
        raise Missing(f"model {text!r}: there is no such file (looked from {Path.cwd()})")
    raise unknown("model", text, [*(f"zoo:{name}" for name in zoo_names()), "torchvision:NAME", "FILE.safetensors", "module:callable"])


def from_user(code: UserCode, device: str | torch.device) -> Classifier:
    """A Classifier from the user's own code: a model, or something that makes one. Raises BadInput."""
    made: Any = code.target
    if isinstance(made, type) or not isinstance(made, (nn.Module, Classifier)):
        if not callable(made):
            raise BadInput(
                f"{code.name} is a {type(made).__name__}: expected an nn.Module, or a callable without arguments that returns one"
            )
        made = code.call()
    if not isinstance(made, (nn.Module, Classifier)) and callable(getattr(made, "classifier", None)):
        made = UserCode(f"{code.name}().classifier", made.classifier, code.sha256).call()
    if isinstance(made, type) or not callable(made):
        raise BadInput(
            f"{code.name}() returned {type(made).__name__}: expected an nn.Module, a robustkit.Classifier, "
            "a defense or a callable from images to logits"
        )
    found = on_device(as_classifier(made, device=device), device)
    found.spec = code.name
    found.sha256 = _identity(found, code)
    found.metadata["source_sha256"] = code.sha256 or ""
    return found


def on_device(classifier: Classifier, device: str | torch.device) -> Classifier:
    """The same classifier on another device, itself where it is there already."""
    if str(device) in ("auto", str(classifier.device)):
        return classifier
    mean, std = (v.flatten().tolist() if classifier.normalises else None for v in (classifier.mean, classifier.std))
    return Classifier(
        classifier.original,
        mean=mean,
        std=std,
        classes=classifier.classes,
        input_shape=classifier.input_shape,
        device=device,
        spec=classifier.spec,
        sha256=classifier.sha256,
        metadata=classifier.metadata,
    )


def _identity(classifier: Classifier, code: UserCode) -> str:
    """sha256 of the weights together with the source file that defines them."""
    weights = state_digest(classifier.original) if isinstance(classifier.original, nn.Module) else ""
    return hashlib.sha256(f"{code.name}\n{code.sha256}\n{weights}".encode()).hexdigest()


def _zoo(name: str, device: str | torch.device, allow_code: bool) -> Classifier:
    names = zoo_names()
    if name not in names:
        raise unknown("zoo model", name, names)
    return file_model(ZOO / f"{name}.safetensors", f"zoo:{name}", device, allow_code=False)


def _torchvision(rest: str, device: str | torch.device, allow_code: bool) -> Classifier:
    return torchvision_model(rest, device)


def _smooth(rest: str, device: str | torch.device, allow_code: bool) -> Classifier:
    inner, smoothing = smooth_options(rest)
    return smoothed(load_model(inner, device, allow_code), smoothing)


SCHEMES: dict[str, Callable[[str, str | torch.device, bool], Classifier]] = {
    "zoo": _zoo,
    "torchvision": _torchvision,
    "smooth": _smooth,
}
"""scheme -> (what follows the colon, device, allow_code) -> Classifier."""
