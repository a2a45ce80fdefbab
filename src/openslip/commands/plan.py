"""Estimate the memory and time of a run: openslip plan model=slip_vitb16 data=yfcc15m."""

from pathlib import Path

import torch

from openslip import plan
from openslip.config.build import build, build_parts
from openslip.config.check import check_root_values
from openslip.config.compose import compose_config
from openslip.config.length import planned_schedule, warm_up_notes
from openslip.config.words import split_words
from openslip.data.order import local_batch_size, too_few_samples
from openslip.data.view import example_batch
from openslip.progress import progress
from openslip.terminal import say_wrapped
from openslip.training.microbatch import mixing_layers
from openslip.training.precision import choose_precision, choose_tf32, on_gpu
from openslip.training.sizing.cost import StepMemory, measure_step


def main(arguments: list[str]) -> None:
    """Print length, parameters, memory and time of the run that `openslip train` starts with the same arguments."""
    config, choices = compose_config("train", arguments)
    check_root_values(config)
    if not names_data(arguments):
        say_wrapped(
            f"data={choices['data']} is assumed; data=NAME or experiment=NAME names another: openslip data list"
        )
    settings = config["trainer"]
    precision = choose_precision(settings["precision"], settings["accelerator"])
    choose_tf32(config["tf32"])
    device = torch.device("cuda" if on_gpu(settings["accelerator"]) else "cpu")
    local = local_batch_size(config["global_batch_size"], plan.number_of_devices(settings, device))
    samples = plan.number_of_samples(config["data"]["source"])
    steps_per_epoch = samples // config["global_batch_size"]
    if not steps_per_epoch:
        raise too_few_samples(samples, config["global_batch_size"])
    schedule = planned_schedule(config, steps_per_epoch)
    notes = warm_up_notes(config, steps_per_epoch, schedule.max_steps)
    say_wrapped(*plan.length(config, samples, steps_per_epoch, schedule), *notes, "")

    torch.manual_seed(config["seed"])
    with progress("building the model"):
        parts = build_parts(config)
    parts.objective.prepare(parts.model)
    say_wrapped(*plan.parameters(parts), "")
    with progress("measuring a step"):
        cost = measure_step(
            parts.model,
            parts.objective,
            lambda size: example_batch(parts.views, size),
            config["global_batch_size"],
            build(config["optim"]["optimizer"], "optim.optimizer"),
            precision,
            device,
            plan.TIMED_SHARE * plan.room(device),
        )
    memory = StepMemory(
        trained=plan.values(parts, trained=True),
        locked=plan.values(parts, trained=False),
        averaged=sum(p.numel() for p in parts.model.parameters()) if config["optim"]["ema_decay"] is not None else 0,
        pixels=sum(column.nbytes for column in example_batch(parts.views, 1).values()) // 4,
        activations=cost.activation_bytes,
    )
    say_wrapped(*plan.costs(cost, memory, local, device, Path(config["runs_dir"])), "")
    splits = not mixing_layers(parts.model)
    say_wrapped(*plan.hours(cost, memory, schedule.max_steps, config, device, precision, splits=splits))


def names_data(arguments: list[str]) -> bool:
    """Tell whether a command line chooses the dataset, by its name, its source or an experiment."""
    keys = [word.partition("=")[0].lstrip("+") for word in split_words(arguments)[1]]
    return any(key in ("data", "experiment") or key.startswith(("data.source", "data/source")) for key in keys)
