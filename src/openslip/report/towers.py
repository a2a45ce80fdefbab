"""Names of a model's towers, as the header shows them."""

from typing import Any

from openslip.report.run_files import at

SIZES = {
    "depth": "depth {}",
    "width": "width {}",
    "embed_dim": "width {}",
    "heads": "{} heads",
    "num_heads": "{} heads",
    "patch_size": "patch size {}",
}


def tower_name(tower: Any) -> str | None:
    """Name a tower by its timm model or class, or by its sizes if the config sets them; None without a tower.

    A timm model of other sizes than its name says is named by these sizes.
    """
    if not isinstance(tower, dict):
        return None
    arguments = at(tower, "arguments")
    settings = {**tower, **(arguments if isinstance(arguments, dict) else {})}
    sizes = ", ".join(form.format(settings[key]) for key, form in SIZES.items() if key in settings)
    name = at(tower, "name") or str(at(tower, "_target_")).rpartition(".")[2]
    if "depth" in settings:
        return sizes
    return f"{name} with {sizes}" if sizes else str(name)
