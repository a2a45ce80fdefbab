"""Write a model as a folder of another library, and keep it only if that library computes what OpenSLIP computes."""

import os
import re
import shutil
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from openslip.durable import needed, sync_folder
from openslip.errors import MissingPackage, UserError
from openslip.export import forms
from openslip.export.card import is_export, write_card
from openslip.export.check import compare
from openslip.inference.load import load
from openslip.inference.strip import is_running
from openslip.inference.wrapped import WrappedModel
from openslip.terminal import notice


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
    with needed(target, refusal=UserError, advice="or name another folder"):
        restore(target)
    refuse_existing(target, source, force=force)
    refuse_missing(form, getattr(module, "WRITE_NEEDS", ()), module.EXTRA, is_check=False)
    if check:
        refuse_missing(form, module.NEEDS, module.EXTRA)
    bundle = load(
        source, allow=allow, format=format, activation=activation, image_heads=image_heads, text_heads=text_heads
    )
    if isinstance(bundle.model, WrappedModel):
        raise UserError(
            f"{source} runs in its own library and cannot be exported: give its file or folder without the prefix, in "
            "a format of docs/WEIGHTS.md"
        )
    if check and (needs := getattr(module, "check_needs", None)):
        refuse_missing(form, needs(bundle), "hf")
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


def refuse_existing(target: Path, source: str | Path, *, force: bool) -> None:
    """Refuse a target that exists, unless it may be replaced.

    Raises:
        UserError: the target exists and `force` is false; or it is neither an export nor an empty folder, or holds the
            source.
    """
    if not target.exists() and not target.is_symlink():
        return
    if Path(source).exists() and Path(source).resolve().is_relative_to(target.resolve()):
        raise UserError(f"{target} holds the model to export: name another folder")
    if target.is_symlink() or not target.is_dir() or (any(target.iterdir()) and not is_export(target)):
        raise UserError(
            f"{target} exists and does not only hold an earlier export: it is not replaced; name another folder"
        )
    if not force:
        raise UserError(f"{target} exists: name another folder, or replace it with --force")


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


def orphans(target: Path) -> Iterator[tuple[Path, bool]]:
    """Yield each folder that a killed export to this target has left, and whether it is an earlier export."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.(old\.)?tmp")
    for path in sorted(target.parent.glob(".*.tmp")):
        if (match := pattern.fullmatch(path.name)) and not is_running(int(match[1])):
            yield path, match[2] is not None


def restore(target: Path) -> None:
    """Rename an earlier export back to its target, if an export was killed while it replaced this one."""
    for path, is_earlier in orphans(target):
        if is_earlier and not os.path.lexists(target):
            path.rename(target)
            notice(f"{target}: restored, because an export that replaced it was killed")


def remove_orphans(target: Path) -> None:
    """Remove what killed exports to this target have left."""
    for path, _ in orphans(target):
        shutil.rmtree(path, ignore_errors=True)


def publish(temporary: Path, target: Path, *, force: bool) -> None:
    """Rename a complete folder to its target once its files are on the disk; `force` replaces an existing one.

    If the second of the two renames fails, the first is undone. After a kill between them, `restore` undoes it.
    """
    mode = (temporary / "README.md").stat().st_mode  # the library safetensors lets only the owner read its files
    for file in temporary.iterdir():
        file.chmod(mode)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(temporary)
    replaced = target.with_name(f".{target.name}.{os.getpid()}.old.tmp")
    if force and target.exists():
        target.rename(replaced)
    try:
        temporary.rename(target)
    except BaseException:
        if replaced.exists() and not os.path.lexists(target):
            replaced.rename(target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)
