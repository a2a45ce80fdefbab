"""`openslip COMMAND`; imports what a command needs when it is given."""

import argparse
import difflib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from openslip import signals
from openslip.commands.data import TARGET, add_requirement, data, open_source, show_commands

COMMANDS = {
    "train": "train a model: openslip train model=slip_tiny seed=1",
    "eval": "evaluate a checkpoint: openslip eval checkpoint=runs/NAME evaluation=imagenet",
    "data": "convert, index and check collections",
    "predict": "which label fits a picture",
    "strip": "keep of a checkpoint what inference needs",
    "verify": "hold this machine's numerics against recorded ones, or splits of a batch against the whole",
    "plan": "what a run will cost: openslip plan model=slip_vitb16 data=yfcc15m",
    "report": "write a run's report page again",
    "doctor": "what may be wrong with this machine, its runs and their checkpoints, or a collection",
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """A command's exit code; a mistake of the user is one line and 1."""
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        show_commands("openslip", COMMANDS)
        return 0
    if command == "--version":
        from openslip import __version__

        print(__version__)
        return 0
    if command in ("train", "eval", "plan"):
        return run_hydra(command, rest)
    commands: dict[str, Callable[[list[str]], int]] = {
        "data": data,
        "predict": predict,
        "strip": strip,
        "verify": verify,
        "report": report,
        "doctor": doctor,
    }
    if command not in commands:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(COMMANDS)}"
        print(f"error: unknown command {command}; {hint}", file=sys.stderr)
        return 1
    from openslip.config.compose import run_entry_point

    try:
        return run_entry_point(commands[command], rest)
    except SystemExit as stop:  # argparse has said what is wrong
        return 1 if stop.code else 0


def run_hydra(command: str, arguments: list[str]) -> int:
    """`train` and `eval`, as train.py and eval_zeroshot.py, and `plan`."""
    if "-h" in arguments or "--help" in arguments:
        print(f"usage: openslip {command} [KEY=VALUE ...] [--config-dir DIR] [debug=true]\n\n{COMMANDS[command]}")
        print("Every key and its meaning: configs/train.yaml and configs/eval.yaml, or the README.")
        return 0
    if command == "train":
        signals.catch()  # the imports take seconds, in which a scheduler's signal would kill the process
    from openslip.config.compose import run_entry_point

    if command == "train":
        from openslip.commands.train import main as entry
    elif command == "plan":
        from openslip.plan import main as entry
    else:
        from openslip.commands.eval import main as entry
    return run_entry_point(entry, arguments)


def predict(arguments: list[str]) -> int:
    """Pictures and labels to a table with bars."""
    parser = argparse.ArgumentParser("openslip predict", description=COMMANDS["predict"])
    parser.add_argument("images", nargs="+", metavar="IMG", help="picture files")
    parser.add_argument("--checkpoint", required=True, help="a run's folder, a checkpoint, or a published SLIP file")
    parser.add_argument("--labels", required=True, help='"man kicking,man sleeping", or @FILE with one per line')
    parser.add_argument("--template", action="append", help='prompt such as "a {} in a movie."; may be repeated')
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--allow", action="append", default=[], help="model class of your own that the file may name")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)

    from openslip.inference.predict import ZeroShotClassifier, load
    from openslip.inference.prompts import read_lines

    labels = (
        read_lines(options.labels[1:])
        if options.labels.startswith("@")
        else [label.strip() for label in options.labels.split(",") if label.strip()]
    )
    classifier = ZeroShotClassifier(
        load(options.checkpoint, device=options.device, allow=options.allow),
        labels,
        options.template or ("a photo of a {}.",),
    )
    rankings = classifier.rank(options.images)
    if options.json:
        found = [
            {"image": image, "labels": [{"label": label, "probability": p} for label, p in ranking]}
            for image, ranking in zip(options.images, rankings, strict=True)
        ]
        print(json.dumps(found, indent=1))
        return 0
    width = max(len(label) for label in labels)
    for image, ranking in zip(options.images, rankings, strict=True):
        print(image)
        for label, probability in ranking:
            print(f"  {label:{width}}  {100 * probability:5.1f} %  {'█' * round(40 * probability)}")
    return 0


def strip(arguments: list[str]) -> int:
    """A smaller file that predicts the same."""
    parser = argparse.ArgumentParser("openslip strip", description=COMMANDS["strip"])
    parser.add_argument("source", metavar="IN", help="a run's folder, a checkpoint, or a published SLIP file")
    parser.add_argument("target", metavar="OUT", help="the file to write")
    parser.add_argument("--allow", action="append", default=[], help="model class of your own that the file may name")
    options = parser.parse_args(arguments)

    from openslip.inference.predict import strip as strip_checkpoint

    before, after = strip_checkpoint(options.source, options.target, allow=options.allow)
    print(f"{options.source} {before / 1e6:.1f} MB -> {options.target} {after / 1e6:.1f} MB")
    return 0


def verify(arguments: list[str]) -> int:
    """Our numbers against recorded ones, or splits of a batch against the whole."""
    if "--splits" in arguments and not {"-h", "--help"} & set(arguments):
        return verify_splits([word for word in arguments if word != "--splits"])
    parser = argparse.ArgumentParser(
        "openslip verify",
        description=COMMANDS["verify"],
        epilog="openslip verify --splits [KEY=VALUE ...]: 1 process and 2 ranks x 1, 2 and 5 slices, losses plain and "
        "in tiles, make the same gradients, statistics and weights with your config, in float64",
    )
    parser.add_argument("folder", type=Path, help="recorded figures")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float64", "float32", "tf32", "bfloat16"))
    options = parser.parse_args(arguments)

    from openslip.verify import verify as verify_folder

    return verify_folder(options.folder, options.device, options.dtype)


def verify_splits(arguments: list[str]) -> int:
    """Any split of a batch against the whole, for a training config."""
    import torch

    from openslip.commands.train import check_root_values
    from openslip.config.compose import build, compose_config
    from openslip.config.parts import build_parts
    from openslip.errors import UserError
    from openslip.training.sizing.example import example_batch
    from openslip.verify import verify_splits as verify_parts
    from openslip.verify.split_step import StepParts
    from openslip.verify.splits import GLOBAL_BATCH

    config, _ = compose_config("train", arguments)
    check_root_values(config)
    for kind, options in config["towers"].items():
        if options["compile"] is True:
            raise UserError(
                f"towers.{kind}.compile=true: splits are compared in eager code, since compiling changes rounding "
                "alone; set it to false for this comparison"
            )
    torch.manual_seed(config["seed"])
    parts = build_parts(config)
    parts.objective.setup(parts.model)
    lengths = None
    if parts.tokenizer is not None:
        lengths = [2 + place % (parts.tokenizer.context_length - 1) for place in range(GLOBAL_BATCH)]
    batch = example_batch(parts.views, parts.tokenizer, GLOBAL_BATCH, lengths=lengths)
    optim = config["optim"]
    step = StepParts(
        model=parts.model,
        objective=parts.objective,
        optimizer=build(optim["optimizer"]),
        weight_decay=optim["weight_decay"],
        layer_decay=optim["layer_decay"],
    )
    return verify_parts(step, batch)


def report(arguments: list[str]) -> int:
    """A run's page, from its folder."""
    parser = argparse.ArgumentParser("openslip report", description=COMMANDS["report"])
    parser.add_argument("run", type=Path, help="runs/NAME")
    options = parser.parse_args(arguments)

    from openslip.report import write_report

    print(write_report(options.run))
    return 0


def doctor(arguments: list[str]) -> int:
    """One line each, with what to do."""
    parser = argparse.ArgumentParser("openslip doctor", description=COMMANDS["doctor"])
    parser.add_argument("collection", nargs="*", help=f"{TARGET}; scanned if it has no index yet")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs, runs")
    add_requirement(parser)
    options = parser.parse_args(arguments)

    from openslip.commands.doctor import examine

    for finding in examine(options.runs):
        print(finding.line())
    if options.collection:
        source = open_source(options.collection, options.require)
        print(f"{'ok':8}{'collection':16}{len(source)} samples, indexed")
        for problem in source.problems:
            print(f"{'warning':8}{'collection':16}left out: {problem}")
    return 0


if __name__ == "__main__":
    main()
