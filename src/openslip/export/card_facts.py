"""What a model card states, by name; directories of local files and credentials are left out."""

import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from openslip.data.remote.address import shown
from openslip.evaluation import stored
from openslip.evaluation.evaluation import with_unit
from openslip.evaluation.feature_cache import FeatureCache
from openslip.inference.bundle import Bundle
from openslip.inference.published import TABLE, Published, published
from openslip.inference.rounding import rounded_to
from openslip.models.text_encoder import TextEncoder
from openslip.run.checkpoints import entry_of
from openslip.run.environment import command
from openslip.run.identity import flat, without_secrets

LONGEST = 60  # characters of a setting; longer ones, such as a vocabulary, are left out
LOCATIONS = ("root", "shards", "split")  # keys that say which dataset it is
SEPARATORS = re.compile(r"([=,:\[\]{}]|\s(?=[~./]))")  # between the paths in a word of a command line
ADDRESS = re.compile(r"""(\w+://[^\s'"\],]+)""")
SHOWN_VERSIONS = ("python", "torch", "timm")
UNKNOWN = (AttributeError, IndexError, KeyError, TypeError, ValueError)  # raised by a record of another form


class Licence(NamedTuple):
    """A licence: its identifier on the hub, and a sentence that says who states it."""

    identifier: str
    sentence: str


def licence_of(bundle: Bundle, stated: str | None) -> Licence:
    """Return the licence that the user states, else that of the published checkpoint, else `other`."""
    if stated is not None:
        return Licence(stated, f"{stated}, as stated by the person who exported the model.")
    if source := published_source(bundle):
        return Licence(
            source.licence.lower(), f"{source.licence}, as stated by {source.source}, which published the weights."
        )
    return Licence(
        "other", "The checkpoint states no licence. Ask the owner of the weights before you use them or pass them on."
    )


def published_source(bundle: Bundle) -> Published | None:
    """Return the published checkpoint that was exported by its name, if it was one."""
    if bundle.origin is None or Path(bundle.origin).exists():
        return None
    return published(TABLE).get(bundle.origin)


def model_facts(bundle: Bundle) -> dict[str, str]:
    """Return the architecture, the preparation of images, and the tokenizer."""
    transform, tokenizer = bundle.transform, bundle.tokenizer
    facts = {"class": type(bundle.model).__name__}
    for key, value in bundle.architecture.items():
        if isinstance(value, dict):
            facts[key.replace("_", " ")] = settings_text(value)
    for key in ("embed_dim", "projection_bias", "token_dim"):
        if bundle.architecture.get(key):
            facts[key.replace("_", " ")] = str(bundle.architecture[key])
    facts["parameters"] = f"{sum(weight.numel() for weight in bundle.model.parameters()):,}"
    if dtype := rounded_to(bundle.model.state_dict()):
        facts["rounding"] = f"all weights are {dtype} values, as in a file of this dtype"
    names = ("size", "resize", "resize_to", "interpolation", "mean", "std")
    shown = {name: getattr(transform, name) for name in names if getattr(transform, name) is not None}
    if not isinstance(bundle.model, TextEncoder):
        facts["images"] = ", ".join(f"{name} {value}" for name, value in shown.items())
    if tokenizer is not None:
        facts["tokenizer"] = settings_text({"_target_": type(tokenizer).__name__, **tokenizer.settings()})
    return facts


def settings_text(settings: dict[str, Any]) -> str:
    """Return the class and the short settings of a part of a model in one line."""
    values = flat(settings)
    kind = str(values.pop("_target_", "")).rpartition(".")[2]
    texts = {key.removeprefix("arguments."): str(value) for key, value in values.items() if value is not None}
    short = [f"{key} {without_folders(text)}" for key, text in texts.items() if len(text) <= LONGEST]
    return ", ".join([*([kind] if kind else []), *short])


def recipe_facts(bundle: Bundle) -> dict[str, str]:
    """Return the recipe and the dataset that a run's checkpoint holds, or the published model's; empty if unknown."""
    if source := published_source(bundle):
        method, _, _ = source.model.partition(" ")
        return {"method": method, "dataset": source.dataset, "epochs": str(source.epochs)}
    entry = (entry_of(bundle.file) if bundle.file is not None and bundle.file.is_file() else None) or {}
    config = entry.get("run")
    facts: dict[str, Any] = {}
    with suppress(*UNKNOWN):  # a config of an earlier version, or of another program
        config = without_secrets(config)
        optimizer, batch = config["optim"]["optimizer"], config["global_batch_size"]
        facts["method"] = class_name(config["objective"])
        facts["training"] = f"step {entry['step']:,} of global batch {batch:,}: {entry['step'] * batch:,} samples seen"
        settings = {"lr": config["optim"]["lr"], "weight decay": config["optim"]["weight_decay"]}
        facts["optimizer"] = ", ".join(
            [class_name(optimizer), *(f"{key} {value}" for key, value in settings.items() if value is not None)]
        )
        facts |= {"precision": config["trainer"]["precision"], "seed": config["seed"]}
        facts["dataset"] = dataset_text(config["data"]["source"])
        begun = [config["init_from"]["checkpoint"], *(tower["weights"] for tower in config["towers"].values())]
        if initial := [name_of(path) for path in begun if path is not None]:
            facts["initial weights"] = ", ".join(initial)
    with suppress(*UNKNOWN):
        facts["samples in the dataset"] = f"{bundle.provenance['starts'][-1]['data']['samples']:,}"
    return {name: str(fact) for name, fact in facts.items()}


def class_name(settings: dict[str, Any]) -> str:
    """Return the name of the class that a part of a config names."""
    return str(settings["_target_"]).rpartition(".")[2]


def dataset_text(source: dict[str, Any]) -> str:
    """Return the classes of a source and the names of its files, without their directories."""
    values = [(key.rpartition(".")[2], value) for key, value in flat(source).items()]
    return ", ".join(
        str(value).rpartition(".")[2] if key == "_target_" else f"{key} {without_folders(str(value))}"
        for key, value in values
        if value is not None and key in ("_target_", *LOCATIONS)
    )


def metrics_of(bundle: Bundle) -> list[list[str]]:
    """Return the rows of stored results that were computed from exactly these weights, after a header."""
    rows = [["evaluation", "metric", "value", "samples"]]
    if bundle.file is None:
        return rows
    weights = None
    for record in stored.read_all(stored.folder_of(str(bundle.origin), bundle.file)):
        weights = weights or FeatureCache(None).weights(bundle)
        headline = stored.headline(record)
        if headline is None or record.get("weights") != weights:
            continue
        incomplete = " (of an incomplete or repaired dataset)" * bool(record.get("problems"))
        count = record["metrics"].get("num_samples")
        samples = "" if count is None else f"{count:,.0f}"
        rows.append([record["evaluation"], headline[0], with_unit(*headline) + incomplete, samples])
    return rows


def provenance_facts(bundle: Bundle) -> dict[str, str]:
    """Return what is known about how the weights came to be: source, commands, commits, versions and dates."""
    record, facts = bundle.provenance, {"checkpoint": name_of(bundle.origin)}
    if source := published_source(bundle):
        facts["published by"] = f"{source.source}, {source.address}"
    if isinstance(record.get("published"), str):
        facts["published as"] = record["published"]
    with suppress(*UNKNOWN):
        merge = record["merge"]
        facts |= start_facts(merge)
        facts["merge"] = " + ".join(f"{each['weight']:g} * {name_of(each['checkpoint'])}" for each in merge["parents"])
    starts = record.get("starts")
    if isinstance(starts, list) and starts and isinstance(starts[-1], dict):
        facts |= start_facts(starts[-1])
        if len(starts) > 1:
            facts["starts of the run"] = f"{len(starts)}; the facts are of the last one"
    return facts


def public(record: Any, key: str = "") -> Any:
    """Return provenance to be published: no hardware and credentials, and of local files only the names.

    Args:
        record: the provenance, or a part of it.
        key: the name of this part.
    """
    if isinstance(record, dict):
        return {name: public(part, name) for name, part in record.items() if name != "hardware"}
    if isinstance(record, list):
        return [public(part, key) for part in record]
    if not isinstance(record, str) or key == "published":
        return record
    if key == "checkpoint":
        return name_of(record)
    return without_paths(record) if key == "command" else without_folders(without_secrets(record))


def start_facts(start: dict[str, Any]) -> dict[str, str]:
    """Return the facts of one start of a program."""
    facts: dict[str, str] = {}
    if isinstance(start.get("command"), str):
        facts["command"] = without_paths(start["command"])
    for name in ("commit", "openslip", "device", "ranks"):
        if start.get(name) is not None:
            facts[name] = str(start[name])
    if isinstance(versions := start.get("versions"), dict):
        facts["versions"] = ", ".join(f"{name} {versions[name]}" for name in SHOWN_VERSIONS if versions.get(name))
    if isinstance(dates := start.get("dates"), list) and dates:
        facts["date"] = str(dates[0])[:10]
    return facts


def without_paths(line: str) -> str:
    """Return a command line without credentials and without the directories of local files."""
    try:
        words = shlex.split(line)
    except ValueError:  # an unbalanced quotation mark: nothing tells where a path ends
        return without_folders(line.partition(" ")[0])
    first, *others = shlex.split(command(words)) or [""]
    return shlex.join([without_folders(first), *map(setting, others)])


def setting(word: str) -> str:
    """Return a word of a command line in which only the key keeps its slashes."""
    key, equals, value = word.partition("=")
    return (
        f"{key}={without_folders(value)}" if equals and not key.startswith(("/", ".", "~")) else without_folders(word)
    )


def without_folders(text: str) -> str:
    """Return text in which each path is only its last part; addresses stay as they are."""
    pieces = ADDRESS.split(text)  # every second one is an address
    for place in range(0, len(pieces), 2):
        pieces[place] = "".join(part.rpartition("/")[2] for part in SEPARATORS.split(pieces[place]))
    return "".join(pieces)


def name_of(path: object) -> str:
    """Return the last part of a path, or the whole address of a model elsewhere."""
    text = str(path)
    return shown(text) if "://" in text else text.rstrip("/").rpartition("/")[2]
