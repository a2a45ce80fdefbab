"""Write a model as a folder of another library, and keep it only if that library computes what OpenSLIP computes."""

import os
import re
import shutil
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from openslip.durable import needed, sync_folder
from openslip.errors import MissingPackage, UserError
from openslip.export import forms
from openslip.export.card import write_card
from openslip.export.check import compare
from openslip.inference.load import load
from openslip.inference.strip import is_running
from openslip.inference.wrapped import WrappedModel, refuse_storing


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
        force: whether an existing folder is replaced; it is kept if the new one is not written or fails the check.
        licence: licence of the weights for the model card; None for what a published checkpoint's owner states.

    Returns:
        The largest difference of each quantity that was compared; None without the check.

    Raises:
        MissingPackage: the check needs a package that is not installed.
        UserError: `load` refuses the source, the form cannot express the model, the library computes something else,
            or the folder exists or cannot be written.
    """
    module, target = find_form(form), Path(os.path.abspath(target))
    refuse_existing(target, source, force=force)
    refuse_missing(form, getattr(module, "WRITE_NEEDS", ()), module.EXTRA, is_check=False)
    if check:
        refuse_missing(form, module.NEEDS, module.EXTRA)
    bundle = load(
        source, allow=allow, format=format, activation=activation, image_heads=image_heads, text_heads=text_heads
    )
    if isinstance(bundle.model, WrappedModel):
        refuse_storing(str(source))
    if check and (needs := getattr(module, "check_needs", None)):
        refuse_missing(form, needs(bundle), "hf")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with needed(target, refusal=UserError, advice="or name another folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(target)
        temporary.mkdir()
        try:
            module.write(bundle, temporary)
            deviations = compare(bundle, temporary, form) if check else None
            write_card(temporary, bundle, form, deviations, licence)
            publish(temporary, target)
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


def refuse_existing(target: Path, source: str | Path, *, force: bool) -> None:
    """Refuse a target that exists, unless it may be replaced.

    Raises:
        UserError: the target exists and `force` is false; or it is a file or a link, holds folders, which no export
            does, or holds the source.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise UserError(f"{target} exists: name another folder, or replace it with --force")
    if target.is_symlink() or not target.is_dir() or any(entry.is_dir() for entry in target.iterdir()):
        raise UserError(f"{target} is no exported folder, which holds only files: --force does not replace it")
    if Path(source).exists() and Path(source).resolve().is_relative_to(target.resolve()):
        raise UserError(f"{target} holds the model to export: name another folder")


def refuse_missing(form: str, needs: Collection[str], extra: str | None, *, is_check: bool = True) -> None:
    """Refuse a form whose packages are not installed, before anything is written.

    Args:
        form: name of the form.
        needs: import names of the packages.
        extra: the extra of OpenSLIP that installs them; None if there is none.
        is_check: whether only the check needs them.

    Raises:
        MissingPackage: a package is missing.
    """
    if missing := [name for name in needs if find_spec(name) is None]:
        package = f'"openslip[{extra}]"' if extra else " ".join(missing)
        purpose, hint = ("its check", ", or leave it out with --no-check") if is_check else ("writing it", "")
        raise MissingPackage(f"--to {form}: {purpose} needs {', '.join(missing)}; pip install {package}{hint}")


def remove_orphans(target: Path) -> None:
    """Remove what killed exports to this target have left."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.(old\.)?tmp")
    for path in target.parent.iterdir():
        if (match := pattern.fullmatch(path.name)) and not is_running(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def publish(temporary: Path, target: Path) -> None:
    """Rename a complete folder to its target once its files are on the disk; an existing target is replaced."""
    mode = (temporary / "README.md").stat().st_mode  # the library safetensors lets only the owner read its files
    for file in temporary.iterdir():
        file.chmod(mode)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(temporary)
    replaced = target.with_name(f".{target.name}.{os.getpid()}.old.tmp")
    if target.exists():
        target.rename(replaced)
    temporary.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)
