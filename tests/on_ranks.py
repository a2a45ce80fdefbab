"""What the tests run on two ranks."""

import open_clip.loss
import torch
import torch.distributed as dist
from small_models import small_batch, small_model
from torch import Tensor

from openslip.errors import UserError
from openslip.objectives.clip import clip_loss
from openslip.objectives.simclr import nt_xent
from openslip.training.late import LateFigures
from openslip.training.microbatch import loss_in_slices


def rank_slice(x: Tensor) -> Tensor:
    if not dist.is_initialized():
        return x
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def mean_over_ranks(x: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x


def step_gradients(method: str, gather_with_grad: bool, global_batch: int, slice_sizes: list[int]) -> dict[str, Tensor]:
    """Loss, gradients (averaged over ranks as DDP does) and running statistics of one step."""
    model, objective = small_model(method, gather_with_grad=gather_with_grad)
    batch = {key: rank_slice(value) for key, value in small_batch(global_batch).items()}
    terms = loss_in_slices(objective, model, batch, slice_sizes)
    terms["loss"].backward()
    found = {f"term.{name}": mean_over_ranks(term.detach().clone()) for name, term in terms.items()}
    for part, module in (("model", model), ("objective", objective)):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            found[f"gradient.{part}.{name}"] = mean_over_ranks(parameter.grad)
        for name, buffer in module.named_buffers():
            found[f"buffer.{part}.{name}"] = buffer
    return found


def clip_loss_and_gradients(image: Tensor, text: Tensor, gather_with_grad: bool) -> tuple[Tensor, ...]:
    """Ours: the mean loss, and the gradients of this rank's features and of the scale."""
    image, text = rank_slice(image).clone().requires_grad_(), rank_slice(text).clone().requires_grad_()
    scale = torch.tensor(14.3, dtype=image.dtype, requires_grad=True)
    loss, _ = clip_loss(image, text, scale, gather_with_grad=gather_with_grad)
    loss.backward()
    assert image.grad is not None
    assert text.grad is not None
    assert scale.grad is not None
    return mean_over_ranks(loss.detach().clone()), image.grad, text.grad, mean_over_ranks(scale.grad)


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


def nt_xent_and_gradients(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z1, z2 = rank_slice(z1).clone().requires_grad_(), rank_slice(z2).clone().requires_grad_()
    loss, _ = nt_xent(z1, z2, 0.1)
    loss.backward()
    assert z1.grad is not None
    assert z2.grad is not None
    return mean_over_ranks(loss.detach().clone()), z1.grad, z2.grad


def refuses_a_tower_that_mixes_samples() -> bool:
    model, objective = small_model("clip")
    model.image_tower.mixes_samples = True  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    batch = {key: rank_slice(value) for key, value in small_batch(4).items()}
    try:
        loss_in_slices(objective, model, batch, [2])
    except UserError as error:
        return "trainer.devices" in str(error)
    return False


def late_figures() -> dict[str, float]:
    rank = dist.get_rank()
    return LateFigures({"loss": torch.tensor(1.0 + rank), "acc": torch.tensor(50.0 * rank)}).read()
