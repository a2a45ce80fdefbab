"""The model card of an exported folder, `README.md`: only what the checkpoint, its run and the check say."""

from pathlib import Path
from typing import Any

import yaml

from openslip import __version__
from openslip.export.card_code import LOADING, code_of
from openslip.export.card_facts import licence_of, metrics_of, model_facts, name_of, provenance_facts, recipe_facts
from openslip.inference.bundle import Bundle
from openslip.models.text_encoder import TextEncoder
from openslip.terminal import printable
from openslip.text.clip_bpe import ClipBpe
from openslip.text.tokenizer import Tokenizer
from openslip.text.tokenizer_json import TokenizerJson

CROP = "crop"  # the difference that images have which the form crops elsewhere, and which has no limit
UNREPAIRED = ("huggingface", "onnx")  # forms that read texts by tokenizer.json alone
IMAGES_AND_TEXTS, IMAGES = "zero-shot-image-classification", "image-feature-extraction"  # tasks, by their names there


def write_card(
    folder: Path, bundle: Bundle, form: str, deviations: dict[str, float] | None, licence: str | None = None
) -> None:
    """Write the model card.

    Args:
        folder: the exported folder.
        bundle: the exported model.
        form: name of the form.
        deviations: largest difference of each checked quantity from ours; None if the export was not checked.
        licence: licence that the user states for the weights; None for that of the published checkpoint, if it is one.
    """
    loading, facts = LOADING[form], licence_of(bundle, licence)
    recipe = recipe_facts(bundle)
    header: dict[str, Any] = {"license": facts.identifier, "library_name": loading.library}
    if not isinstance(bundle.model, TextEncoder):
        header["pipeline_tag"] = IMAGES_AND_TEXTS if loading.has_texts and bundle.tokenizer else IMAGES
    header["tags"] = ["openslip", *([recipe["method"].lower()] if "method" in recipe else [])]
    files = {"README.md", *(entry.name for entry in folder.iterdir() if entry.is_file())}
    names = ", ".join(f"`{name}`" for name in sorted(files))
    code = code_of(form, bundle)
    usage = "FOLDER is this folder" + ", and `image.jpg` an image of yours" * ("image.jpg" in code)
    sections = {
        "Load it": f"{usage}.\n\n```python\n{code}\n```",
        "Check": check_text(deviations) + unrepaired(form, bundle.tokenizer),
        "Model": facts_table(model_facts(bundle)),
        "Training": facts_table(recipe) if recipe else "The checkpoint does not state how it was trained.",
        "Metrics": table(metrics)
        if len(metrics := metrics_of(bundle)) > 1
        else "No metrics of these weights are stored.",
        "Provenance": facts_table(provenance_facts(bundle)),
    }
    text = "\n\n".join(
        [
            f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
            f"# {cell(name_of(bundle.origin))}",
            f"Exported by OpenSLIP {__version__} in the form `{form}`; files: {names}.",
            f"**Licence.** {facts.sentence}",
            *(f"## {title}\n{content}" for title, content in sections.items()),
        ]
    )
    (folder / "README.md").write_text(f"{text}\n", encoding="utf-8")


def check_text(deviations: dict[str, float] | None) -> str:
    """Return what the check has found."""
    if deviations is None:
        return "Not checked: the export was written without loading it with its library."
    same = (
        "The library of this form has loaded the folder, and computes the same as OpenSLIP on the inputs of the check"
    )
    if CROP in deviations:
        same += (
            ", except for the crop: of some image sizes, it begins one pixel elsewhere. The row `crop` says how far "
            "the features of such images are from those of OpenSLIP; the other rows compare equal crops"
        )
    rows = [[name, "none" if name == "ids" else f"{value:.1e}"] for name, value in deviations.items()]
    return f"{same}.\n\n{table([['quantity', 'largest difference'], *rows])}"


def unrepaired(form: str, tokenizer: Tokenizer | None) -> str:
    """Return what a form's tokenizer does not do to texts, if OpenSLIP's repairs them."""
    repairs = isinstance(tokenizer, ClipBpe) or (
        isinstance(tokenizer, TokenizerJson) and tokenizer.clean not in ("none", "siglip")
    )
    if not repairs or form not in UNREPAIRED:
        return ""
    return (
        "\n\nOpenSLIP decodes HTML entities in texts and repairs ligatures and wrongly decoded characters; the "
        "tokenizer of this folder does not. Such texts get other ids and features, and the check has none of them "
        "(docs/NUMERICS.md of OpenSLIP)."
    )


def facts_table(facts: dict[str, str]) -> str:
    """Return facts by name as a table of Markdown."""
    return table([["fact", "value"], *([name, value] for name, value in facts.items())])


def table(rows: list[list[str]]) -> str:
    """Return a table of Markdown; the first row is its header."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def cell(text: str) -> str:
    """Return text that stays in its cell and is no markup."""
    return "".join(f"\\{mark}" if mark in "\\|`*_<>[]" else mark for mark in printable(text))
