"""Train a model: openslip train model=slip_vitb16 data=yfcc15m, or python train.py.

The steps: compose the config -> seed -> data, pretrainer, callbacks, loggers, trainer -> fit.
"""

import shlex
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from openslip import __version__
from openslip.config.build import build, build_evaluations, build_parts, settled
from openslip.config.check import NO_FSDP, check_root_values
from openslip.config.compose import compose_config
from openslip.config.length import planned_schedule, planned_steps, warm_up_notes
from openslip.data.datamodule import DataModule
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.remote.files import cache_folder
from openslip.data.view import example_batch
from openslip.distributed import is_main_process
from openslip.errors import MissingPackage, UserError, first_line
from openslip.launcher import check_launched
from openslip.plan import number_of_devices
from openslip.progress import progress
from openslip.report import write_report
from openslip.run import ranks, watchdog
from openslip.run.checkpoints import saved
from openslip.run.environment import origin
from openslip.run.folder import Run, open_run, replaces, run_name, shorter
from openslip.run.identity import with_format, without_secrets
from openslip.slurm import check_tasks
from openslip.terminal import be_quiet, inform, mention, notice, say
from openslip.training.callbacks.begin import Begin
from openslip.training.callbacks.evaluate import Evaluate
from openslip.training.callbacks.finite import Finite
from openslip.training.callbacks.locked import LockedImages
from openslip.training.callbacks.preemption import Preemption
from openslip.training.callbacks.provenance import Provenance
from openslip.training.callbacks.resume import Resume
from openslip.training.callbacks.room import Room
from openslip.training.callbacks.save import Save
from openslip.training.callbacks.watch import Watch
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.compiling import choose_compile, compile_parts
from openslip.training.initial_weights import InitialWeights
from openslip.training.lightning import (
    SWITCHED_OFF,
    end_launched_ranks,
    finish_wandb,
    ignore_foreign_checkpoints,
    quiet_lightning,
    wait_for_ranks,
    watch_launched_ranks,
)
from openslip.training.logging.csv_logger import CsvLogger
from openslip.training.optimise import optimise
from openslip.training.precision import choose_deterministic, choose_precision, choose_tf32, on_gpu
from openslip.training.pretrainer import Pretrainer
from openslip.training.sizing.micro_batch_size import MicroBatchSize


def main(arguments: list[str]) -> None:
    """Train the model of a config and write the folder `runs/<name>/`."""
    if is_main_process():
        origin()  # at once, because the code may change on disk before the first step
    # Before composing: in trainer=ddp the strategy is a dict, and Hydra's own error for a word there is unclear.
    for word in arguments:
        if word.startswith("trainer.strategy") and "fsdp" in word.lower():
            raise UserError(f"{word}: {NO_FSDP}")
    with progress("composing the config"):
        config, choices = compose_config("train", arguments)
        check_root_values(config)
        config = settled(config)
    be_quiet(config["quiet"])
    check_tasks(config["trainer"])
    device = torch.device("cuda" if on_gpu(config["trainer"]["accelerator"]) else "cpu")
    check_launched(number_of_devices(config["trainer"], device), config["trainer"]["num_nodes"])
    name = run_name(config, chosen(choices))
    # The precision that `auto` selects now is stored in the run's config: other hardware must not change its numbers.
    config["trainer"]["precision"] = choose_precision(config["trainer"]["precision"], config["trainer"]["accelerator"])
    planned_steps(config["trainer"], 1)  # refuses a run without a length before its folder is touched
    run = open_run(config, name)
    if run.state == "finished":
        if not is_main_process():
            return
        # A derived name depends on the length, so an extension must give the name.
        same = "" if config["name"] is not None else f"name={run.folder.name} with "
        say(
            f"{run.folder} is finished ({same}a larger trainer.max_steps or max_epochs extends it; "
            "another name= starts a new run)"
        )
        result = run.result()
        say(*result["lines"])
        mention(*next_commands(run.folder, config))
        for evaluation in (name for name in config["evaluation"] if name not in result["metrics"]):
            say(f"not evaluated yet: python eval_zeroshot.py checkpoint={run.folder} evaluation={evaluation}")
        return
    if run.state == "unfinished" and run.former_length is None and is_main_process():
        how = "resumes it" if saved(run.checkpoints) else "starts it again, because it has no checkpoint"
        inform(f"{run.folder} is unfinished: this command {how}")
    if run.state == "new" and is_main_process():
        for folder in shorter(run, config):
            inform(f"{folder} is the same run, but shorter: name={folder.name} extends it")
    watchdog.start(config["watchdog"])
    watch_launched_ranks(run.abandon)
    try:
        with ranks.named():
            fit(config, run)
    except BaseException:
        run.abandon()
        raise


def fit(config: dict[str, Any], run: Run) -> None:
    """Build everything, train, and write the report and the result."""
    quiet_lightning()
    choose_deterministic(config["trainer"].get("deterministic") or False)
    pl.seed_everything(config["seed"], verbose=False)

    with progress("building the model"):
        parts = build_parts(config)
    if choose_compile(config["compile"], config["trainer"]["accelerator"]):
        compile_parts(parts.model, parts.views)
    # While the first rank deletes the run that is replaced, other ranks may still see its checkpoints.
    resumed = run.checkpoints if not replaces(config) and saved(run.checkpoints) else None
    transform = transform_of(config)
    init_from = config["init_from"]
    initial = InitialWeights(
        parts.model, parts.tokenizer, transform.settings(), allow=tuple(config["allow"]), resize=init_from["resize"]
    )
    if resumed is None:  # a resumed run takes all weights from its own checkpoint
        with progress("loading the initial weights"):
            initial.load(init_from["checkpoint"], config["towers"], init_from)
        if is_main_process():
            say(*(f"weights of the {part}: {path}" for part, path in initial.sources()))
            say(*initial.notices)
    with progress("opening the dataset"):
        data = build(
            config["data"],
            "data",
            views=parts.views,
            global_batch_size=config["global_batch_size"],
            seed=config["seed"],
            bad_samples_file=run.folder / "bad_samples.jsonl",
        )
    if is_main_process():
        num_samples, expected = len(data.source), data.source.expected_samples
        share = f" of {expected}, {100 * num_samples // expected} %" if expected else ""
        drawn = f"; an epoch draws {data.order.num_samples}" if data.order.num_samples != num_samples else ""
        inform(f"data: {num_samples} samples{share}{drawn}")
        for problem in data.source.problems:
            say(f"data: {problem}")
        if data.order.dropped:
            inform(
                f"data: {data.order.dropped} of {data.order.num_samples} samples fill no global batch and are dropped"
            )
    with progress("opening the evaluations"):
        evaluations = build_evaluations(config["evaluation"], config["evaluation_samples"])
    if is_main_process():
        say(*(f"{name}: {line}" for name, evaluation in evaluations.items() for line in evaluation.problems()))

    optim = config["optim"]
    schedule = planned_schedule(config, data.steps_per_epoch)
    former_steps = None if run.former_length is None else planned_steps(run.former_length, data.steps_per_epoch)
    if is_main_process():
        say(*warm_up_notes(config, data.steps_per_epoch, schedule.max_steps))
    varying = {name: view for name, view in parts.views.items() if view.cost_varies}
    longest = partial(example_batch, varying)
    pretrainer = Pretrainer(
        model=parts.model,
        objective=parts.objective,
        optimizer=build(optim["optimizer"], "optim.optimizer"),
        weight_decay=optim["weight_decay"],
        layer_decay=optim["layer_decay"],
        clip_norm=optim["clip_norm"],
        ema_decay=optim["ema_decay"],
        schedule=schedule,
        architecture=config["model"],
        tokenizer=parts.tokenizer,
        transform=transform,
        init_from=initial.record,
    )

    evaluate, rows = Evaluate(evaluations), CsvLogger(run.folder / "metrics.csv")
    resume = Resume(resumes=resumed is not None, rows=rows, former_steps=former_steps)
    size = MicroBatchSize(config["micro_batch_size"], file=run.folder / "micro_batch_size.json", longest=longest)
    locked = LockedImages(cache_folder("features"))
    configured = [build(options, f"callbacks.{name}") for name, options in config["callbacks"].items()]
    # Lightning calls callbacks in this order: Finite undoes a skipped step first, and Save comes after all others that
    # may change state.
    configured.sort(key=lambda callback: isinstance(callback, Save) - isinstance(callback, Finite))
    stop = Preemption(
        max_time=config["trainer"].get("max_time"),
        advice="resume=auto resumes it" if config["resume"] == "replace" else "the same command resumes it",
    )
    choose_tf32(config["tf32"])
    begin = Begin(lambda: run.begin(config, provenance(config, pretrainer, data)))
    trainer = build(
        config["trainer"] | SWITCHED_OFF | {"max_steps": pretrainer.max_steps, "max_time": None},
        "trainer",
        callbacks=[
            *(locked, size, Room(), begin, Provenance(run.keep_provenance)),
            *(*configured, evaluate, stop, Watch(), resume),
        ],
        logger=[rows, *start_loggers(config, run)],
        plugins=[DurableCheckpointIO(with_format(config))],
        default_root_dir=str(run.folder),
    )
    wait_for_ranks(trainer, max(config["watchdog"].values()))
    if resumed is None:
        ignore_foreign_checkpoints(trainer)
    try:
        with ranks.together():
            optimise(trainer, pretrainer, data, resumed)
    finally:
        end_launched_ranks(trainer)
        finish_wandb(trainer)

    if pretrainer.step < pretrainer.max_steps:
        raise UserError(
            f"Lightning ended the run at step {pretrainer.step} of {pretrainer.max_steps}, which is not finished: "
            "look for a callback that stops it"
        )
    if is_main_process():
        headlines = evaluate.headlines()
        if headlines and (most := config["evaluation_samples"]) is not None:
            headlines.append(f"evaluations: at most {most} samples of each dataset were used")
        try:
            with progress("writing the report"):
                lines = [*headlines, f"report: {write_report(run.folder)}"]
        except Exception as error:  # any error: the report only shows data that is stored in other files
            lines = [*headlines, f"report: none ({first_line(error)}); openslip report {run.folder} writes it"]
        if bad := data.bad_samples.total():
            files = ", ".join(map(str, data.bad_samples.files()))
            lines.insert(0, f"data: {bad} bad samples were replaced: {files}")
        lines += [f"profile: {file}" for file in profile_files(trainer)]
        try:
            run.finish({"step": pretrainer.step, **evaluate.outcome(), "lines": lines})
        finally:
            say(*lines)
        mention(*next_commands(run.folder, config))


def next_commands(folder: Path, config: dict[str, Any]) -> list[str]:
    """Return lines that name the commands for a finished run."""
    run = shlex.quote(str(folder))
    checkpoint = shlex.quote(f"checkpoint={folder}")
    predict = [f'openslip predict IMAGE --checkpoint {run} --labels "a cat,a dog"'] if config["tokenizer"] else []
    commands = [*predict, f"openslip eval {checkpoint} evaluation=NAME", f"openslip report {run}"]
    return ["next commands:", *(f"  {command}" for command in commands)]


def profile_files(trainer: pl.Trainer) -> list[Path]:
    """List the files that the profiler of `trainer.profiler` has written."""
    profiler: Any = trainer.profiler  # type: ignore
    if profiler.dirpath is None or profiler.filename is None:
        return []
    return sorted(Path(profiler.dirpath).glob(f"*{escape(profiler.filename)}*"))


def provenance(config: dict[str, Any], pretrainer: Pretrainer, data: DataModule) -> dict[str, Any]:
    """Return what a run trains, on which devices and on which data."""
    device = pretrainer.device
    return {
        "openslip": __version__,
        "parameters": parameters(pretrainer.model, pretrainer.objective),
        "precision": config["trainer"]["precision"],
        "ranks": pretrainer.trainer.world_size,
        "nodes": pretrainer.trainer.num_nodes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "data": {"samples": len(data.source), "fingerprint": data.fingerprint},
    }


def parameters(model: nn.Module, objective: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each part that has any; `projections` includes logit_scale and logit_bias."""
    direct = {"projections": model.parameters(recurse=False)}
    parts = {name: part.parameters() for name, part in (*model.named_children(), ("objective", objective))}
    counts = {name: sum(p.numel() for p in values) for name, values in (parts | direct).items()}
    return {name: count for name, count in counts.items() if count}


def start_loggers(config: dict[str, Any], run: Run) -> list[Any]:
    """Start the configured loggers besides the CSV logger; a logger that fails is reported and skipped.

    Raises:
        MissingPackage: a logger's package is not installed.
    """
    started = []
    for name, logger_config in config["logger"].items():
        try:
            # Only the first rank logs; other ranks may not see the folder, which holds the id.
            own = {"name": run.folder.name, "version": run.identifier() if is_main_process() else run.folder.name}
            named = {key: value for key, value in own.items() if logger_config.get(key, "") is None}
            logger = build(logger_config, f"logger.{name}", save_dir=str(run.folder), **named)
            logger.log_hyperparams(without_secrets(config))
        except MissingPackage:
            raise
        except Exception as error:
            notice(f"logger {name} did not start and is skipped: {error}")
        else:
            started.append(logger)
    return started


def chosen(choices: dict[str, str]) -> str:
    """Return the readable part of a run's name: the experiment, or model and data."""
    if choices["experiment"] != "None":
        return choices["experiment"].replace("/", "-")
    return f"{choices['model']}-{choices['data']}"


def transform_of(config: dict[str, Any]) -> EvalTransform:
    """Build the evaluation transform, which treats transparency and EXIF orientation as training does."""
    decoder = config["data"].get("decoder", {})
    return EvalTransform(
        size=config["image_size"],
        mean=config["mean"],
        std=config["std"],
        transparency=decoder.get("transparency"),
        exif=decoder.get("exif"),
    )
