"""Write a model as a folder of another library, and keep it only if that library computes what OpenSLIP computes."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from openslip.durable import needed
from openslip.errors import UserError
from openslip.export import forms
from openslip.export.card import write_card
from openslip.export.check import compare
from openslip.export.packages import Packages, refuse_missing
from openslip.export.place import prepare, publish, refuse_existing, remove_orphans
from openslip.inference.load import load
from openslip.inference.wrapped import WrappedModel


def export(
    source: str | Path,
    target: str | Path,
    form: str,
    *,
    allow: Collection[str] = (),
    format: str | None = None,  # noqa: A002
    activation: str | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
    check: bool = True,
    force: bool = False,
    licence: str | None = None,
) -> dict[str, float] | None:
    """Write a model in a form of another library; the folder appears only once it is complete and has been checked.

    Args:
        source: whatever `openslip.load` reads, but no address of a model that runs in its own library.
        target: the folder to write.
        form: name of a file in `openslip.export.forms`.
        allow: import paths of your own model and tokenizer classes that the checkpoint may name.
        format: as for `load`.
        activation: as for `load`.
        image_heads: as for `load`.
        text_heads: as for `load`.
        check: whether the form's library loads the folder in a process of its own, and is compared with OpenSLIP.
        force: whether an earlier export is replaced; it is kept if the new one is not written or fails the check.
        licence: licence of the weights for the model card; None for what a published checkpoint's owner states.

    Returns:
        The largest difference of each quantity that was compared; None without the check.

    Raises:
        MissingPackage: the check needs a package that is not installed.
        UserError: `load` refuses the source, the form cannot express the model, the library computes something else,
            or the folder exists or cannot be written.
    """
    module, target = find_form(form), Path(os.path.abspath(target))
    prepare(target, source, force=force)
    refuse_missing(form, getattr(module, "WRITE_NEEDS", Packages()), is_check=False)
    if check:
        refuse_missing(form, module.NEEDS)
    bundle = load(
        source, allow=allow, format=format, activation=activation, image_heads=image_heads, text_heads=text_heads
    )
    if isinstance(bundle.model, WrappedModel):
        raise UserError(
            f"{source} runs in its own library and cannot be exported: give its file or folder without the prefix, in "
            "a format of docs/WEIGHTS.md"
        )
    if check and (needs := getattr(module, "check_needs", None)):
        refuse_missing(form, needs(bundle))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with needed(target, refusal=UserError, advice="or name another folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(target)
        temporary.mkdir()
        try:
            module.write(bundle, temporary)
            deviations = compare(bundle, temporary, form, allow) if check else None
            write_card(temporary, bundle, form, deviations, licence)
            refuse_existing(target, source, force=force)  # again: the check takes long, and the folder may be new
            publish(temporary, target, force=force)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return deviations


def find_form(name: str) -> ModuleType:
    """Import the module of a form.

    Raises:
        UserError: there is no form of this name.
    """
    if name not in forms.names():
        raise UserError(f"--to {name}: expected one of {', '.join(forms.names())}")
    return forms.load(name)
