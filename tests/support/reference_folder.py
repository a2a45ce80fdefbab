"""Writes a folder of recordings in the published format, computed without any of our modules.

Everything is spelled out on a dict of tensors under the published names, from the papers and the format's
README: attention as a softmax over explicit products, ranks as rows of one big batch.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms

State = dict[str, Tensor]
METHODS = ("clip", "slip", "simclr")


@dataclass(frozen=True)
class Dims:
    batch: int
    image_size: int
    patch: int
    vision_width: int
    vision_depth: int
    vision_heads: int
    embed_dim: int
    context: int
    vocab: int
    text_width: int
    text_heads: int
    text_layers: int
    ssl_mlp: int
    ssl_emb: int
    ssl_temp: float
    ssl_scale: float
    epochs: int


OTHER_DIMS = Dims(
    batch=8,
    image_size=18,
    patch=6,
    vision_width=30,
    vision_depth=1,
    vision_heads=5,
    embed_dim=14,
    context=11,
    vocab=70,
    text_width=24,
    text_heads=2,
    text_layers=3,
    ssl_mlp=20,
    ssl_emb=9,
    ssl_temp=0.25,
    ssl_scale=0.5,
    epochs=3,
)
HYPER = {"clip": {"lr": 1e-3, "wd": 0.2}, "slip": {"lr": 2e-3, "wd": 0.5}, "simclr": {"lr": 1.5e-3, "wd": 0.05}}


def write_folder(folder: Path, *, dims: Dims, seed: int, num_batches: int, steps: int, captions: dict) -> None:
    """All files of the format; `captions` is a tokenizer.json, of which the ids are cut to another length."""
    torch.manual_seed(seed)
    batches = [_random_batch(dims) for _ in range(num_batches)]
    runs, ranks, final = {}, {}, {}
    for method in METHODS:
        arrays = {f"batch{i}/{key}": value.numpy() for i, batch in enumerate(batches) for key, value in batch.items()}
        init = initial_state(method, dims)
        trajectory, recorded, state = _train(method, dims, init, batches, steps)
        np.savez(folder / f"{method}.npz", allow_pickle=False, **arrays, **recorded)
        names = [name for name in init if init[name].requires_grad]
        runs[method] = {
            "hyper": HYPER[method],
            "trajectory": trajectory,
            "decay": [name for name in names if _decays(name, init[name].ndim)],
            "no_decay": [name for name in names if not _decays(name, init[name].ndim)],
        }
        ranks |= _on_ranks(method, dims, init, batches[0], world=2)
        final[method] = state
    np.savez(folder / "two_ranks.npz", allow_pickle=False, **ranks)
    np.savez(folder / "zero_shot.npz", allow_pickle=False, **_zero_shot(dims, final["clip"]), **_transform())
    meta = {"dims": asdict(dims), "seed": seed, "dtype": "float32", "steps": steps, "runs": runs}
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "lr_schedules.json").write_text(json.dumps(_schedules()))
    (folder / "official_models.json").write_text(json.dumps(_official()))
    length = 24
    ids = [row[:length] for row in captions["ids"]]
    tokenizer = {"context_length": length, "captions": captions["captions"], "ids": ids}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def shapes(method: str, dims: Dims) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Parameters and buffers by published name."""
    parameters: dict[str, tuple[int, ...]] = {}
    w, t = dims.vision_width, dims.text_width
    if method != "simclr":
        parameters |= {"positional_embedding": (dims.context, t), "image_projection": (w, dims.embed_dim)}
        parameters |= {"text_projection": (t, dims.embed_dim), "logit_scale": ()}
    tokens = (dims.image_size // dims.patch) ** 2 + 1
    parameters |= {"visual.cls_token": (1, 1, w), "visual.pos_embed": (1, tokens, w)}
    parameters |= {"visual.patch_embed.proj.weight": (w, 3, dims.patch, dims.patch)}
    parameters |= {"visual.patch_embed.proj.bias": (w,)}
    for i in range(dims.vision_depth):
        layers = {"attn.qkv": (3 * w, w), "attn.proj": (w, w), "mlp.fc1": (4 * w, w), "mlp.fc2": (w, 4 * w)}
        for norm in ("norm1", "norm2"):
            parameters |= {f"visual.blocks.{i}.{norm}.{part}": (w,) for part in ("weight", "bias")}
        for layer, shape in layers.items():
            parameters |= {f"visual.blocks.{i}.{layer}.weight": shape}
            parameters |= {f"visual.blocks.{i}.{layer}.bias": shape[:1]}
    parameters |= {"visual.norm.weight": (w,), "visual.norm.bias": (w,)}
    if method != "simclr":
        for i in range(dims.text_layers):
            block = f"transformer.resblocks.{i}"
            parameters |= {f"{block}.attn.in_proj_weight": (3 * t, t), f"{block}.attn.in_proj_bias": (3 * t,)}
            layers = {"attn.out_proj": (t, t), "mlp.c_fc": (4 * t, t), "mlp.c_proj": (t, 4 * t)}
            for layer, shape in layers.items():
                parameters |= {f"{block}.{layer}.weight": shape, f"{block}.{layer}.bias": shape[:1]}
            for norm in ("ln_1", "ln_2"):
                parameters |= {f"{block}.{norm}.{part}": (t,) for part in ("weight", "bias")}
        parameters |= {"token_embedding.weight": (dims.vocab, t)}
        parameters |= {"ln_final.weight": (t,), "ln_final.bias": (t,)}
    buffers: dict[str, tuple[int, ...]] = {}
    if method != "clip":
        m = dims.ssl_mlp
        layers = {"layer1": (m, w), "layer2": (m, m), "layer3": (dims.ssl_emb, m)}
        for layer, shape in layers.items():
            parameters |= {f"image_mlp.{layer}.weight": shape, f"image_mlp.{layer}.bias": shape[:1]}
        for norm in ("bn1", "bn2"):
            parameters |= {f"image_mlp.{norm}.{part}": (m,) for part in ("weight", "bias")}
            buffers |= {f"image_mlp.{norm}.{part}": (m,) for part in ("running_mean", "running_var")}
            buffers |= {f"image_mlp.{norm}.num_batches_tracked": ()}
    return parameters, buffers


def initial_state(method: str, dims: Dims) -> State:
    """Random parameters (they require a gradient) and fresh buffers."""
    parameters, buffers = shapes(method, dims)
    state: State = {}
    for name, shape in parameters.items():
        x = torch.randn(shape) * (0.05 if len(shape) < 2 else 1.4 * shape[-1] ** -0.5)
        if name == "logit_scale":
            x = torch.tensor(2.5)
        elif len(shape) == 1 and name.endswith("weight"):
            x = 1 + x
        state[name] = x.requires_grad_()
    for name, shape in buffers.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        else:
            state[name] = torch.ones(shape) if name.endswith("running_var") else torch.zeros(shape)
    return state


def _random_batch(dims: Dims) -> dict[str, Tensor]:
    size = (dims.batch, 3, dims.image_size, dims.image_size)
    image = torch.randn(size)
    views = {"image": image, "aug1": image + 0.7 * torch.randn(size), "aug2": image + 0.7 * torch.randn(size)}
    return {**views, "text": _random_text(dims, dims.batch)}


def _random_text(dims: Dims, rows: int) -> Tensor:
    text = torch.zeros(rows, dims.context, dtype=torch.int64)
    for row in text:
        length = int(torch.randint(1, dims.context - 1, ()))
        row[0], row[length + 1] = dims.vocab - 2, dims.vocab - 1
        row[1 : length + 1] = torch.randint(1, dims.vocab - 2, (length,))
    return text


def _attention(x: Tensor, qkv: Tensor, heads: int, *, causal: bool) -> Tensor:
    queries, keys, values = qkv.chunk(3, dim=-1)
    outputs = []
    size = x.shape[-1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = queries[..., part] @ keys[..., part].transpose(1, 2) / math.sqrt(size)
        if causal:
            later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
            logits = logits.masked_fill(later, -math.inf)
        outputs.append(logits.softmax(dim=-1) @ values[..., part])
    return torch.cat(outputs, dim=-1)


def _linear(s: State, name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def _norm(s: State, name: str, x: Tensor, eps: float) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = (x - mean).square().mean(dim=-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]


def encode_image(s: State, dims: Dims, image: Tensor) -> Tensor:
    """The unprojected class token."""
    patches = F.unfold(image, dims.patch, stride=dims.patch).transpose(1, 2)
    x = patches @ s["visual.patch_embed.proj.weight"].flatten(1).T + s["visual.patch_embed.proj.bias"]
    x = torch.cat([s["visual.cls_token"].expand(len(x), 1, -1), x], dim=1) + s["visual.pos_embed"]
    for i in range(dims.vision_depth):
        block = f"visual.blocks.{i}"
        y = _norm(s, f"{block}.norm1", x, 1e-6)
        y = _attention(y, _linear(s, f"{block}.attn.qkv", y), dims.vision_heads, causal=False)
        x = x + _linear(s, f"{block}.attn.proj", y)
        y = _linear(s, f"{block}.mlp.fc1", _norm(s, f"{block}.norm2", x, 1e-6))
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        x = x + _linear(s, f"{block}.mlp.fc2", y)
    return _norm(s, "visual.norm", x, 1e-6)[:, 0]


def encode_text(s: State, dims: Dims, text: Tensor) -> Tensor:
    """Projected, at the largest id."""
    x = s["token_embedding.weight"][text] + s["positional_embedding"]
    for i in range(dims.text_layers):
        block = f"transformer.resblocks.{i}"
        y = _norm(s, f"{block}.ln_1", x, 1e-5)
        qkv = y @ s[f"{block}.attn.in_proj_weight"].T + s[f"{block}.attn.in_proj_bias"]
        x = x + _linear(s, f"{block}.attn.out_proj", _attention(y, qkv, dims.text_heads, causal=True))
        y = _linear(s, f"{block}.mlp.c_fc", _norm(s, f"{block}.ln_2", x, 1e-5))
        x = x + _linear(s, f"{block}.mlp.c_proj", y / (1 + torch.exp(-1.702 * y)))
    x = _norm(s, "ln_final", x, 1e-5)
    return (
        torch.stack([row[position] for row, position in zip(x, text.argmax(dim=1), strict=True)]) @ s["text_projection"]
    )


def _head(s: State, x: Tensor) -> Tensor:
    for layer, norm in (("layer1", "bn1"), ("layer2", "bn2")):
        name = f"image_mlp.{norm}"
        s[f"{name}.num_batches_tracked"] += 1
        x = F.batch_norm(
            _linear(s, f"image_mlp.{layer}", x),
            s[f"{name}.running_mean"],
            s[f"{name}.running_var"],
            s[f"{name}.weight"],
            s[f"{name}.bias"],
            training=True,
        ).relu()
    return _linear(s, "image_mlp.layer3", x)


def forward(method: str, s: State, dims: Dims, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published outputs in training mode; running statistics move."""
    outputs = {}
    if method != "simclr":
        outputs["image_embed"] = encode_image(s, dims, batch["image"]) @ s["image_projection"]
        outputs["text_embed"] = encode_text(s, dims, batch["text"])
        outputs["logit_scale"] = s["logit_scale"].exp()
    if method != "clip":
        outputs["aug1_embed"] = _head(s, encode_image(s, dims, batch["aug1"]))
        outputs["aug2_embed"] = _head(s, encode_image(s, dims, batch["aug2"]))
    return outputs


def losses(method: str, dims: Dims, outputs: dict[str, Tensor], rows: range, *, detach_keys: bool) -> dict[str, Tensor]:
    """Loss terms of these rows of the batch against all of it."""
    found: dict[str, Tensor] = {}
    picked = torch.tensor(list(rows))
    if method != "simclr":
        image, text = (F.normalize(outputs[f"{name}_embed"], dim=1) for name in ("image", "text"))
        keys = [x.detach() if detach_keys else x for x in (image, text)]
        scale = outputs["logit_scale"]
        to_text = scale * image[picked] @ keys[1].T
        to_image = scale * text[picked] @ keys[0].T
        pairs = [_surprise(logits, picked) for logits in (to_text, to_image)]
        found["clip_loss"] = (pairs[0] + pairs[1]) / 2
        found["clip_acc"] = 100 * (to_text.argmax(dim=1) == picked).float().mean()
    if method != "clip":
        z1, z2 = (F.normalize(outputs[f"{name}_embed"], dim=1) for name in ("aug1", "aug2"))
        total = torch.zeros(())
        for queries, partners in ((z1, z2), (z2, z1)):
            others = [[j for j in range(len(z1)) if j != i] for i in rows]
            same = torch.stack([queries[i] @ queries[js].T for i, js in zip(rows, others, strict=True)])
            logits = torch.cat([queries[picked] @ partners.T, same], dim=1) / dims.ssl_temp
            total = total + _surprise(logits, picked) / 2
            if queries is z1:
                found["ssl_acc"] = 100 * (logits.argmax(dim=1) == picked).float().mean()
        found["ssl_loss"] = total
    clip, ssl = found.get("clip_loss"), found.get("ssl_loss")
    if clip is not None and ssl is not None:
        return {"loss": clip + dims.ssl_scale * ssl, **found}
    total = clip if clip is not None else ssl
    assert total is not None
    return {"loss": total, **found}


def _surprise(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.logsumexp(dim=1) - logits[torch.arange(len(logits)), targets]).mean()


def _decays(name: str, ndim: int) -> bool:
    return not (ndim < 2 or "bias" in name or "ln" in name or "bn" in name)


def _table(lr: float, start: float, end: float, warmup: int, total: int) -> np.ndarray:
    turn = np.arange(total - warmup) / (total - warmup)
    return np.concatenate([np.linspace(start, lr, warmup), end + (lr - end) * (1 + np.cos(np.pi * turn)) / 2])


def _copy(state: State) -> State:
    return {name: x.detach().clone().requires_grad_(x.requires_grad) for name, x in state.items()}


def _train(
    method: str, dims: Dims, init: State, batches: list[dict[str, Tensor]], steps: int
) -> tuple[list[dict[str, float]], dict[str, np.ndarray], State]:
    recorded = {f"init/{name}": x.detach().numpy().copy() for name, x in init.items()}
    state = _copy(init)
    parameters = {name: x for name, x in state.items() if x.requires_grad}
    groups = [
        {
            "params": [x for name, x in parameters.items() if _decays(name, x.ndim) == decays],
            "weight_decay": HYPER[method]["wd"] if decays else 0.0,
        }
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), eps=1e-8)
    table = _table(HYPER[method]["lr"], 1e-6, 1e-5, len(batches), dims.epochs * len(batches))
    trajectory = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = float(table[step])
        optimizer.zero_grad()
        outputs = forward(method, state, dims, batches[step % len(batches)])
        terms = losses(method, dims, outputs, range(dims.batch), detach_keys=False)
        terms["loss"].backward()
        if step == 0:
            recorded |= {f"out/{name}": x.detach().numpy().copy() for name, x in outputs.items()}
            recorded |= {f"loss/{name}": x.detach().numpy().copy() for name, x in terms.items()}
            for name, x in parameters.items():
                assert x.grad is not None
                recorded[f"grad/{name}"] = x.grad.numpy().copy()
        optimizer.step()
        entry = {name: float(x.detach()) for name, x in terms.items()} | {"lr": float(table[step])}
        if method != "simclr":
            with torch.no_grad():
                state["logit_scale"].clamp_(0, 4.6052)
            entry["logit_scale"] = float(state["logit_scale"].detach().exp())
        trajectory.append(entry)
    recorded |= {f"final/{name}": x.detach().numpy().copy() for name, x in state.items()}
    return trajectory, recorded, state


def _on_ranks(method: str, dims: Dims, init: State, batch: dict[str, Tensor], world: int) -> dict[str, np.ndarray]:
    """Rows of one big batch stand for ranks: with synchronised batch norm, they are the same thing."""
    state = _copy(init)
    outputs = forward(method, state, dims, batch)
    local = dims.batch // world
    found, mean = {}, torch.zeros(())
    for rank in range(world):
        rows = range(rank * local, (rank + 1) * local)
        terms = losses(method, dims, outputs, rows, detach_keys=True)
        mean = mean + terms["loss"] / world
        found |= {f"{method}/rank{rank}/loss/{name}": x.detach().numpy().copy() for name, x in terms.items()}
    mean.backward()
    for name, x in state.items():
        if x.grad is not None:
            found[f"{method}/grad/{name}"] = x.grad.numpy().copy()
    return found


@torch.no_grad()
def _zero_shot(dims: Dims, state: State) -> dict[str, np.ndarray]:
    num_classes, num_templates = 4, 2
    text = _random_text(dims, num_classes * num_templates)
    images = torch.randn(5, 3, dims.image_size, dims.image_size)
    prompts = F.normalize(encode_text(state, dims, text), dim=1).view(num_classes, num_templates, -1)
    classes = F.normalize(prompts.sum(dim=1) / num_templates, dim=1)
    logits = F.normalize(encode_image(state, dims, images) @ state["image_projection"], dim=1) @ classes.T
    arrays = {
        "text": text.view(num_classes, num_templates, -1),
        "images": images,
        "class_embeddings": classes,
        "logits": logits,
        "probabilities": (state["logit_scale"].exp() * logits).softmax(dim=1),
    }
    return {name: x.numpy() for name, x in arrays.items()}


def _transform() -> dict[str, np.ndarray]:
    picture = np.zeros((301, 402, 3), np.uint8)
    for y in range(301):
        for x in range(402):
            blue = 127 + 127 * math.sin(x / 9) * math.cos(y / 7)
            picture[y, x] = [round(x * 255 / 401), round(y * 255 / 300), round(blue)]
    published = transforms.Compose(
        [
            transforms.Resize(224),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    pixels: Tensor = published(Image.fromarray(picture))  # pyright: ignore[reportAssignmentType]
    return {
        "eval_transform_mean": pixels.mean(dim=(1, 2)).numpy(),
        "eval_transform_std": pixels.std(dim=(1, 2)).numpy(),
        "eval_transform_rows": pixels[:, ::37, ::29].numpy(),
    }


def _schedules() -> dict:
    recipe = {"lr": 7e-4, "lr_end": 3e-6, "lr_start": 2e-7, "epochs": 6, "steps_per_epoch": 50, "warmup_epochs": 2}
    table = _table(7e-4, 2e-7, 3e-6, 100, 300)
    return {"another_recipe": {**recipe, "points": {str(step): float(table[step]) for step in range(0, 300, 7)}}}


def _official() -> dict:
    """One published size and one that nobody published."""
    models = {}
    for name, method, width, depth, heads in (
        ("SLIP_VITS16", "slip", 384, 12, 12),
        ("SIMCLR_VITT16", "simclr", 192, 12, 3),
    ):
        dims = Dims(
            batch=0,
            image_size=224,
            patch=16,
            vision_width=width,
            vision_depth=depth,
            vision_heads=heads,
            embed_dim=512,
            context=77,
            vocab=49408,
            text_width=512,
            text_heads=8,
            text_layers=12,
            ssl_mlp=4096,
            ssl_emb=256,
            ssl_temp=0.1,
            ssl_scale=1.0,
            epochs=0,
        )
        parameters, buffers = shapes(method, dims)
        models[name] = {
            "parameters": sum(math.prod(shape) for shape in parameters.values()),
            "state": {name: list(shape) for name, shape in (parameters | buffers).items()},
            "decay": [name for name, shape in parameters.items() if _decays(name, len(shape))],
            "no_decay": [name for name, shape in parameters.items() if not _decays(name, len(shape))],
            "heads": heads,
        }
    return models
