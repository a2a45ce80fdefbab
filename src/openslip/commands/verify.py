"""Compare numbers of this machine with recordings of published code and with the same computation in float64."""

import argparse
from pathlib import Path

from openslip.commands._imports import importing_pytorch
from openslip.progress import progress
from openslip.terminal import say_wrapped


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "openslip verify",
        description=f"{__doc__} With --splits, check instead that splitting a batch does not change the update.",
        epilog="A folder of checkpoints of other libraries holds, for each NAME, the checkpoint (NAME.safetensors, "
        "NAME.pt, NAME.pth.tar or NAME.npz), the library's configuration (NAME.json), and its inputs and outputs "
        "(NAME_io.npz); docs/WEIGHTS.md describes it. openslip.load loads each checkpoint, and each output is compared "
        "with the recorded one: the largest difference is divided by the largest recorded value. "
        "A folder of metrics of other libraries holds metrics.json and the arrays they were computed from "
        "(classification.npz, retrieval.npz, probe.npz); docs/EVALUATION.md describes it. "
        "A folder of recorded steps of DeCLIP's repository holds meta.json and files METHOD_one_rank.npz and "
        "METHOD_two_ranks.npz for DeCLIP, SLIP, FILIP and DeFILIP; docs/NUMERICS.md describes it. The steps are "
        "repeated in float64. "
        "A folder of losses of other libraries holds meta.json, one_rank.npz, two_ranks.npz and so on, and "
        "lightly.npz; docs/NUMERICS.md describes it. The losses are compared in float64. "
        "openslip verify --splits [KEY=VALUE ...] splits the batch of a training config in several ways: on 1 "
        "process or 2 ranks, into 1, 2 or 5 micro-batches, with and without tiled losses. It computes in float64, and "
        "checks that gradients, statistics and weights are the same each time.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="folder to compare with: recordings of the published code (by default, those of this package), or one of "
        "the four kinds described below",
    )
    parser.add_argument("--device", default="cpu", help="device to check: cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float64", "float32", "tf32", "bfloat16"),
        help="format to compute in, with its own tolerances: float32 (default), float64, tf32 (on a GPU), bfloat16",
    )
    return parser


def main(arguments: list[str]) -> int:
    """Compare this machine's numbers with recordings and float64, or splits of a batch with the whole batch."""
    if "--splits" in arguments and not {"-h", "--help"} & set(arguments):
        return verify_splits([word for word in arguments if word != "--splits"])
    options = parser().parse_args(arguments)

    with importing_pytorch():
        import torch

        from openslip.verify import verify
        from openslip.verify.files import RECORDINGS
    torch.set_num_threads(1)  # the recordings were made with one thread, which is also faster for such small models
    return verify(options.folder or RECORDINGS, options.device, options.dtype)


def verify_splits(arguments: list[str]) -> int:
    """Compare splits of a batch over ranks and micro-batches with the whole batch, for a training config."""
    with importing_pytorch():
        import torch

        from openslip.config.build import build, build_parts
        from openslip.config.check import check_root_values
        from openslip.config.compose import compose_config
        from openslip.data.view import example_batch
        from openslip.verify import show
        from openslip.verify.splits import COVERED, GLOBAL_BATCH, StepParts, split_rows
    config, _ = compose_config("train", arguments)
    check_root_values(config)
    torch.manual_seed(config["seed"])
    parts = build_parts(config)
    parts.objective.prepare(parts.model)
    batch = example_batch(parts.views, GLOBAL_BATCH, varied=True)
    optim = config["optim"]
    step = StepParts(
        model=parts.model,
        objective=parts.objective,
        optimizer=build(optim["optimizer"], "optim.optimizer"),
        weight_decay=optim["weight_decay"],
        layer_decay=optim["layer_decay"],
    )
    with progress("comparing splits of a batch"):
        rows = split_rows(step, batch)
    code = show(rows, "cpu, float64")
    say_wrapped(*COVERED.splitlines())
    return code
