"""Help texts of the commands that take config overrides, made from the configs and their comments.

The files are read as text, because YAML parsers drop comments, and `--help` must not wait for slow imports.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from openslip.config.folder import config_folder, names
from openslip.terminal import width as terminal_width
from openslip.terminal import wrapped

GROUPS = {
    "train": (
        "model",
        "data",
        "experiment",
        "evaluation",
        "optim",
        "optim/optimizer",
        "optim/schedule",
        "objective",
        "mode",
        "tokenizer",
        "trainer",
        "logger",
        "debug",
    ),
    "eval": ("evaluation",),
}
# The keys that users set most: the file that explains them, the prefix of its keys in the config, and the keys.
KEYS = {
    "train": (
        (
            "train.yaml",
            "",
            ("name", "runs_dir", "resume", "quiet", "seed", "global_batch_size", "micro_batch_size", "image_size"),
        ),
        ("data/webdataset.yaml", "data.", ("num_workers", "bad_sample_budget")),
        ("data/source/shards.yaml", "data.source.", ("shards",)),
        (
            "optim/adamw.yaml",
            "optim.",
            ("lr", "weight_decay", "warmup_epochs", "clip_norm", "layer_decay", "ema_decay"),
        ),
        ("trainer/auto.yaml", "trainer.", ("devices", "precision", "max_steps", "max_epochs", "max_time")),
        ("callbacks/default.yaml", "callbacks.", ("save.every_minutes", "save.every_n_steps")),
        ("train.yaml", "", ("init_from.checkpoint", "towers.image.weights", "towers.image.locked")),
        ("train.yaml", "", ("towers.image.gradient_checkpointing", "towers.image.patch_dropout")),
    ),
    "eval": (
        ("eval.yaml", "", ("checkpoint", "device", "classnames", "templates", "again", "output", "feature_cache")),
        ("eval.yaml", "", ("quiet", "format", "allow")),
    ),
}
OPTIONS = {
    "KEY=VALUE": "set a key of the config; +KEY=VALUE adds a key, and ~KEY removes a key",
    "GROUP=OPTION": "choose a file of a config group; the groups are listed below",
    "--config-dir DIR": "also search for configs in your own folder DIR",
}
SINGLE = {
    "--cfg job": "print the config and exit; with --resolve, every ${...} is replaced by its value",
    "--info defaults": "print the names of the config files, in the order in which they are merged, and exit",
    "debug=true": "print the traceback of an error",
}
MULTIRUN = {"-m, --multirun": "train each combination of values (seed=0,1 optim.lr=1e-3,3e-4), like openslip sweep"}
SWEEP = {
    "KEY=A,B": "train once with each value; with several such keys or groups, train once with each combination",
    "KEY=range(N)": "train once with each whole number below N",
    "hydra/launcher=submitit_slurm": "submit each run as a SLURM job; by default the runs start one after another here",
}
MORE_OPTIONS = {"train": SINGLE | MULTIRUN, "eval": SINGLE, "plan": SINGLE, "sweep": SWEEP}
# What `???`, Hydra's mark of a missing value, means for the user of a command.
MISSING = {
    "train": "(a model or an experiment may set other values;\n"
    "???: no default; the model, the dataset or you must set it):",
    "eval": "(???: no default; you must set it):",
}
LINE = re.compile(r"( *)([\w.]+):(?: +([^#]*?))?(?: +# (.*))?")


def help_text(command: str, purpose: str, folders: Sequence[Path] = ()) -> str:
    """Return the text that `openslip COMMAND --help` prints.

    Args:
        command: `train`, `eval`, `plan` or `sweep`.
        purpose: first line of the command's docstring.
        folders: folders of the user's own configs; their options are listed too.
    """
    root = "eval" if command == "eval" else "train"
    options = OPTIONS | MORE_OPTIONS[command]
    choices = {group: "  ".join(names(group, [config_folder(), *folders])) for group in GROUPS[root]}
    keys = {f"{key}={value}": meaning for key, value, meaning in explained_keys(root)}
    total = terminal_width()
    usage = f"usage: openslip {command} [KEY=VALUE ...] [GROUP=OPTION ...] [--config-dir DIR]"
    every_key = f"`openslip {root} --cfg job` prints every key; the files in {config_folder()} explain the keys"
    return "\n".join(
        [
            *wrapped(usage, total, indent=7),
            "",
            *wrapped(purpose, total, indent=0),
            "",
            *columns(options, 18),
            "\nconfig groups and their options:",
            *columns(choices, 18),
            "\nkeys that are set most often, with the values in their files",
            MISSING[root],
            *columns(keys, 42),
            "",
            *wrapped(every_key, total, indent=0),
        ]
    )


def explained_keys(root: str) -> Iterator[tuple[str, str, str]]:
    """Yield the key, the default and the meaning of each key that the help text lists."""
    for file, prefix, keys in KEYS[root]:
        lines = {key: (value, comment) for key, value, comment in commented_lines(config_folder() / file)}
        for key in keys:
            value, comment = lines[key]
            yield prefix + key, value, comment


def commented_lines(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the dotted key, the value as written, and the comment of each line of a YAML file that has a key."""
    parents: list[tuple[int, str]] = []
    for line in file.read_text("utf-8").splitlines():
        if (match := LINE.fullmatch(line)) is None:
            continue
        indent, key, value, comment = len(match[1]), match[2], match[3] or "", match[4] or ""
        parents = [(depth, parent) for depth, parent in parents if depth < indent]
        yield ".".join([*(parent for _, parent in parents), key]), value, comment
        parents.append((indent, key))


def columns(rows: dict[str, str], width: int) -> list[str]:
    """Lay out rows in two columns within the terminal's width; `width` is the largest width of the first column."""
    total = terminal_width()
    width = min(width, total // 2)
    lines = []
    for left, right in rows.items():
        room = total - width - 3
        texts = wrapped(right, room, indent=0)
        if len(left) > width or len(texts[0]) > room:
            lines.append(f"  {left}")
        else:
            lines.append(f"  {left:{width}} {texts.pop(0)}".rstrip())
        lines += [" " * (width + 3) + text for text in texts]
    return lines
