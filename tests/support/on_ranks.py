"""What the tests run on two ranks."""

import tempfile
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import open_clip.loss
import torch
import torch.distributed as dist
from data_modules import data_module, trainer_of
from losses import clip_loss, nt_xent
from pretraining import pretrainer
from small_models import PAIR_METHODS, small_batch, small_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from views import caption_view, crop_view

from openslip import distributed
from openslip.data.dataset import open_dataset
from openslip.data.sources.shards import ShardSource
from openslip.distributed import any_rank, gather, share_question, shared_answer, wait_up_to
from openslip.errors import DataError, UserError
from openslip.evaluation.evaluation import Evaluation
from openslip.models.tower import Tokens
from openslip.objectives.late_interaction import token_info_nce
from openslip.objectives.neg_clip import hard_info_nce
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import Features
from openslip.training.callbacks.evaluate import Evaluate
from openslip.training.callbacks.finite import Finite
from openslip.training.callbacks.save import Save
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.compiling import compile_parts
from openslip.training.logging.late import LateMetrics
from openslip.training.microbatch import loss_in_micro_batches
from openslip.training.towers import prepare_towers
from openslip.verify.splits import in_tiles


def rank_slice(x: Tensor) -> Tensor:
    if not dist.is_initialized():
        return x
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def mean_over_ranks(x: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x


def step_gradients(
    method: str,
    gather_with_grad: bool,
    global_batch: int,
    sizes: list[int],
    towers: dict | None = None,
    image: str = "vit",
    *,
    compiled: bool = False,
) -> dict[str, Tensor]:
    """Loss, gradients (averaged over ranks as DDP does) and running statistics of one step."""
    model, objective = small_model(method, gather_with_grad=gather_with_grad, image=image)
    prepare_towers(model, towers or {})
    if compiled:
        compile_parts(model, {})
    batch = {
        key: rank_slice(value)
        for key, value in small_batch(
            global_batch, has_equal_captions=method in PAIR_METHODS or method == "clip negative"
        ).items()
    }
    terms = loss_in_micro_batches(objective, model, batch, sizes)
    terms["loss"].backward()
    found = {f"term.{name}": mean_over_ranks(term.detach().clone()) for name, term in terms.items()}
    for part, module in (("model", model), ("objective", objective)):
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                assert parameter.grad is None, name
                continue
            assert parameter.grad is not None, name
            found[f"gradient.{part}.{name}"] = mean_over_ranks(parameter.grad)
        for name, buffer in module.named_buffers():
            found[f"buffer.{part}.{name}"] = buffer
    return found


def step_gradients_in_tiles(tile: int | None, *arguments: Any) -> dict[str, Tensor]:
    """Of `step_gradients`, with its losses in tiles."""
    with in_tiles(tile):
        return step_gradients(*arguments)


def state_after(
    num_steps: int,
    tile: int | None,
    method: str,
    gather_with_grad: bool,
    global_batch: int,
    sizes: list[int],
    image: str = "vit",
) -> dict[str, Tensor]:
    """Weights and statistics after some steps of AdamW, gradients averaged over ranks as DDP does."""
    model, objective = small_model(method, gather_with_grad=gather_with_grad, image=image)
    prepare_towers(model, {})
    parameters = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    batch = {
        key: rank_slice(value)
        for key, value in small_batch(
            global_batch, has_equal_captions=method in PAIR_METHODS or method == "clip negative"
        ).items()
    }
    with in_tiles(tile):
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss_in_micro_batches(objective, model, batch, sizes)["loss"].backward()
            for parameter in parameters:
                assert parameter.grad is not None
                mean_over_ranks(parameter.grad)
            optimizer.step()
            objective.after_step(model)
    state = {**model.state_dict(prefix="model."), **objective.state_dict(prefix="objective.")}
    return {name: tensor.clone() for name, tensor in state.items()}


class Stepped(nn.Module):
    """What DDP wraps: the loss of a batch in micro-batches."""

    def __init__(self, model: nn.Module, objective: Objective, sizes: list[int]) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.sizes = sizes

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return loss_in_micro_batches(self.objective, self.model, batch, self.sizes)["loss"]


def ddp_gradients(
    method: str, global_batch: int, sizes: list[int], towers: dict, image: str = "vit"
) -> dict[str, Tensor]:
    """Gradients as DDP reduces them."""
    model, objective = small_model(method, image=image)
    prepare_towers(model, towers)
    wrapped = DistributedDataParallel(Stepped(model, objective, sizes), broadcast_buffers=False)
    wrapped(
        {
            key: rank_slice(value)
            for key, value in small_batch(
                global_batch, has_equal_captions=method in PAIR_METHODS or method == "clip negative"
            ).items()
        }
    ).backward()
    return {
        f"gradient.{name}": parameter.grad
        for name, parameter in wrapped.module.named_parameters()
        if parameter.grad is not None
    }


def clip_loss_and_gradients(
    image: Tensor, text: Tensor, gather_with_grad: bool, tile: int | None = None
) -> tuple[Tensor, ...]:
    """Ours: the mean loss, the gradients of this rank's features and of the scale, and the mean accuracy."""
    image, text = rank_slice(image).clone().requires_grad_(), rank_slice(text).clone().requires_grad_()
    scale = torch.tensor(14.3, dtype=image.dtype, requires_grad=True)
    with in_tiles(tile):
        loss, accuracy = clip_loss(image, text, scale, gather_with_grad=gather_with_grad)
        loss.backward()
    assert image.grad is not None
    assert text.grad is not None
    assert scale.grad is not None
    return (
        mean_over_ranks(loss.detach().clone()),
        image.grad,
        text.grad,
        mean_over_ranks(scale.grad),
        mean_over_ranks(accuracy),
    )


def open_clip_loss_and_gradients(image: Tensor, text: Tensor, gather_with_grad: bool) -> tuple[Tensor, ...]:
    """open_clip's, with its flags for the same function."""
    image, text = rank_slice(image).clone().requires_grad_(), rank_slice(text).clone().requires_grad_()
    scale = torch.tensor(14.3, dtype=image.dtype, requires_grad=True)
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    loss_function = open_clip.loss.ClipLoss(
        local_loss=True, gather_with_grad=gather_with_grad, rank=rank, world_size=world
    )
    unit_image = torch.nn.functional.normalize(image, dim=-1)
    unit_text = torch.nn.functional.normalize(text, dim=-1)
    loss = loss_function(unit_image, unit_text, scale)
    assert isinstance(loss, Tensor)
    loss.backward()
    assert image.grad is not None
    assert text.grad is not None
    assert scale.grad is not None
    return mean_over_ranks(loss.detach().clone()), image.grad, text.grad, mean_over_ranks(scale.grad)


def nt_xent_and_gradients(z1: Tensor, z2: Tensor, tile: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean loss, the gradients of this rank's views, and the mean accuracy."""
    z1, z2 = rank_slice(z1).clone().requires_grad_(), rank_slice(z2).clone().requires_grad_()
    with in_tiles(tile):
        loss, accuracy = nt_xent(z1, z2, 0.1)
        loss.backward()
    assert z1.grad is not None
    assert z2.grad is not None
    return mean_over_ranks(loss.detach().clone()), z1.grad, z2.grad, mean_over_ranks(accuracy)


def token_loss_and_gradients(
    image: Tokens, text: Tokens, top_tokens: int | None, gather_with_grad: bool, tile: int
) -> tuple[Tensor, ...]:
    """The mean loss, the gradients of this rank's tokens and of the scale, and the mean accuracy.

    A rank has no more columns of words than its longest caption.
    """
    images, texts = (Tokens(rank_slice(side.features).clone(), rank_slice(side.mask)) for side in (image, text))
    longest = int(texts.mask.sum(dim=1).max())
    patches, words = images.features.requires_grad_(), texts.features.requires_grad_()
    texts = Tokens(words[:, :longest], texts.mask[:, :longest])
    scale = torch.tensor(14.3, dtype=patches.dtype, requires_grad=True)
    with in_tiles(tile):
        loss, accuracy = token_info_nce(
            Tokens(patches, images.mask), texts, scale, top_tokens=top_tokens, gather_with_grad=gather_with_grad
        )
        loss.backward()
    assert patches.grad is not None
    assert words.grad is not None
    assert scale.grad is not None
    return (
        mean_over_ranks(loss.detach().clone()),
        patches.grad,
        words.grad,
        mean_over_ranks(scale.grad),
        mean_over_ranks(accuracy),
    )


def hard_loss_and_gradients(
    image: Tensor, text: Tensor, hard: Tensor, has_hard: Tensor, gather_with_grad: bool, tile: int | None = None
) -> tuple[Tensor, ...]:
    """The mean loss, the gradients of this rank's features and of the scale, and the mean accuracy."""
    given = [rank_slice(x).clone().requires_grad_() for x in (image, text, hard)]
    scale = torch.tensor(14.3, dtype=image.dtype, requires_grad=True)
    with in_tiles(tile):
        sides = [Features(x, gather_with_grad=gather_with_grad) for x in given]
        loss, accuracy = hard_info_nce(sides[0], sides[1], sides[2], rank_slice(has_hard), scale)
        loss.backward()
    # Hard captions are only keys, so that they get no gradient at all if keys are detached.
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in given]
    assert scale.grad is not None
    return mean_over_ranks(loss.detach().clone()), *gradients, mean_over_ranks(scale.grad), mean_over_ranks(accuracy)


def refuses_a_tower_that_mixes_samples() -> bool:
    model, objective = small_model("clip", image="batch norm")  # its batch norms are not made global
    batch = {key: rank_slice(value) for key, value in small_batch(4).items()}
    try:
        loss_in_micro_batches(objective, model, batch, [2])
    except UserError as error:
        return "trainer.devices" in str(error)
    return False


def bad_samples_of_an_epoch(folder: str, budget: float) -> str:
    """What ends an epoch over shards with damaged pictures on this rank, or nothing."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    source = ShardSource(shards=folder, require="caption")
    datamodule = data_module(
        source, views={"image": crop_view(16, (0.5, 1.0))}, global_batch_size=6, bad_sample_budget=budget
    )
    datamodule.trainer = trainer_of(rank, world_size)
    try:
        for batch in datamodule.train_dataloader():
            datamodule.on_after_batch_transfer(batch, 0)
    except DataError as error:
        return str(error)
    return ""


def gradient_beside_a_gather() -> Tensor:
    """Of `y` in the sum of (gather(x) + 3 y)^2, where both terms are given one and the same gradient tensor."""
    x = torch.ones(1, 2, requires_grad=True)
    y = torch.zeros(dist.get_world_size(), 2, requires_grad=True)
    beside = 3 * y  # made before the gather, so that its backward pass comes after the gather's
    (gather(x, with_grad=True) + beside).square().sum().backward()
    assert y.grad is not None
    return y.grad


def skipped_under_a_scaler() -> list[bool]:
    """Of three steps, in whose second the loss of the second rank is not finite."""
    finite = Finite(stop_after=10)
    finite.scaled = True
    found = []
    for bad_rank in (None, 1, None):
        module = pretrainer("clip", steps=1)
        module.terms = {"loss": torch.tensor(torch.nan if dist.get_rank() == bad_rank else 1.0)}
        trainer: Any = None  # it is asked nothing
        finite.on_before_optimizer_step(trainer, module, torch.optim.SGD(module.parameters()))
        found.append(bool(module.objective.skipped))
    return found


def late_metrics() -> dict[str, float]:
    rank = dist.get_rank()
    return LateMetrics({"loss": torch.tensor(1.0 + rank), "acc": torch.tensor(50.0 * rank)}).read()


class OfRank(Evaluation):
    """Measures the number of the rank."""

    headline_metric = "rank"

    def run(self, bundle: Any) -> dict[str, float]:
        return {"rank": float(dist.get_rank())}


def evaluation_of_ranks() -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """The results and the best results of an evaluation, as this rank knows them."""
    evaluate = Evaluate({"of_rank": OfRank()})
    module: Any = SimpleNamespace(step=4, samples_seen=32, bundles={"eval": None})
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = SimpleNamespace(loggers=[], default_root_dir=folder)
        evaluate.run_one("of_rank", {}, trainer, module)
    return evaluate.results, evaluate.best


def agree(flags: list[bool]) -> list[bool]:
    """The answer to each flag of rank 0 with the other as the second flag, in turn, then to that."""
    answers = []
    for flag in flags:
        share_question(lambda flag=flag: not flag and dist.get_rank() == 0)
        answers += [any_rank(flag and dist.get_rank() == 0) != flag, shared_answer() != flag]
    share_question(None)
    return answers


def told_of_saves(first: list[float], other: list[float], failed_at: int | None) -> list[bool]:
    """Whether a save is asked for after each agreement, at these minutes since the last one by the clocks of two ranks.

    Args:
        first: of rank 0.
        other: of rank 1.
        failed_at: the agreement before which rank 0's save has failed.
    """
    io = DurableCheckpointIO()
    callback = Save(every_minutes=15, every_n_steps=None, every_n_epochs=None)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=io))
    callback.setup(trainer, trainer, "fit")
    told = []
    for number, minutes in enumerate(other if dist.get_rank() else first):
        if number == failed_at and dist.get_rank() == 0:
            io.save_checkpoint({"openslip": {}}, "nowhere/step-000001.ckpt")
            assert io.writer is not None
            io.writer.join()
        callback.saved_at = time.monotonic() - 60 * minutes
        any_rank(False)
        told.append(shared_answer())
    share_question(None)
    return told


def patience(seconds: float) -> float:
    """Seconds that a CPU group beside NCCL's waits for a rank."""
    wait_up_to(seconds)
    distributed._cpu_group.cache_clear()
    with mock.patch.object(dist, "get_backend", return_value="nccl"):
        group = distributed._cpu_group()
    distributed._cpu_group.cache_clear()
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def batches_of_a_dataset(shards: str) -> list[dict[str, Tensor]]:
    """One epoch of this rank's batches, without a trainer."""
    views = {"image": crop_view(16, (0.5, 1.0)), "text": caption_view()}
    return list(open_dataset(shards, views=views, global_batch_size=8))
