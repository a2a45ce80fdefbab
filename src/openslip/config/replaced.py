"""Arguments of Lightning's Trainer that would change or end a run: they are refused, with what to use instead."""

EVALUATIONS = "evaluation.NAME.every_n_steps or every_n_epochs sets when to evaluate, evaluation=none turns it off"
LENGTH = "trainer.max_steps or trainer.max_epochs sets the length"
REPLACED = {
    "accumulate_grad_batches": "micro_batch_size=N encodes the global batch in micro-batches",
    "barebones": "callbacks=none evaluation=none turns off what can be turned off",
    "callbacks": "+callbacks.NAME._target_=CLASS adds one",
    "check_val_every_n_epoch": EVALUATIONS,
    "default_root_dir": "runs_dir=FOLDER and name=NAME set the run's folder",
    "enable_checkpointing": "callbacks.save.every_minutes, every_n_steps and every_n_epochs set when to save",
    "enable_model_summary": "`openslip plan` prints one",
    "enable_progress_bar": "callbacks.metrics.every_n_steps sets how often a line is printed",
    "fast_dev_run": "debug=fast is a run of two steps, and so is trainer.max_steps=2 name=trial",
    "gradient_clip_algorithm": "optim.clip_norm=NORM clips the global norm",
    "gradient_clip_val": "optim.clip_norm=NORM clips the global norm",
    "limit_predict_batches": EVALUATIONS,
    "limit_test_batches": EVALUATIONS,
    "limit_train_batches": f"{LENGTH}, data.overfit_batches=N repeats N batches; fewer shards make an epoch shorter",
    "limit_val_batches": f"evaluation_samples=N evaluates fewer samples; {EVALUATIONS}",
    "log_every_n_steps": "callbacks.metrics.every_n_steps=N sets how often metrics are logged",
    "logger": "logger=wandb, tensorboard, trackio or mlflow chooses one",
    "min_epochs": LENGTH,
    "min_steps": LENGTH,
    "num_sanity_val_steps": EVALUATIONS,
    "overfit_batches": f"data.overfit_batches=N repeats N batches, debug=overfit is a run that does so; {LENGTH}",
    "plugins": "trainer.precision and trainer=slurm choose them",
    "reload_dataloaders_every_n_epochs": "every epoch has its own order, set by seed",
    "sync_batchnorm": "batch norm always uses statistics of the global batch, on any number of devices",
    "use_distributed_sampler": "global_batch_size is divided among the devices",
    "val_check_interval": EVALUATIONS,
}
PROFILER = (
    "debug=profile records a few steps with PyTorch's profiler; "
    "+trainer.profiler._target_=pytorch_lightning.profilers.SimpleProfiler +trainer.profiler.dirpath=FOLDER "
    "+trainer.profiler.filename=profile writes a file"
)
MOVED = {f"towers.{kind}.compile": "compile=true or false" for kind in ("image", "text")}  # old key -> its replacement
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "single_device")


def refusal(key: str) -> str:
    """Return the error for a refused argument of Lightning's Trainer, with the setting to use instead."""
    return f"is an argument of Lightning that is not used: {REPLACED[key]}"
