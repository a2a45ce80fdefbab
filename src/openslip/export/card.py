"""The model card of an exported folder, `README.md`."""

from pathlib import Path

from openslip.inference.bundle import Bundle


def write_card(folder: Path, bundle: Bundle, form: str, deviations: dict[str, float] | None) -> None:
    """Write the model card.

    Args:
        folder: the exported folder.
        bundle: the exported model.
        form: name of the form.
        deviations: largest difference of each checked quantity from ours; None if the export was not checked.
    """
    checked = (
        "not checked" if deviations is None else ", ".join(f"{name} {value:.1e}" for name, value in deviations.items())
    )
    (folder / "README.md").write_text(f"# {bundle.origin}\n\nForm: {form}. Largest deviation: {checked}.\n", "utf-8")
