"""SigLIP checkpoints of google-research/big_vision: `.npz` files with the names of its JAX modules.

The weights of queries, keys and values (`kernel` in JAX) have an axis of heads, so their shapes show the numbers of
heads. GELU is the tanh form, and layer norms have epsilon 1e-6, in all of big_vision's towers.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.inference.architecture import build_limited
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices, agree
from openslip.inference.files import distinct
from openslip.inference.layouts import siglip
from openslip.inference.layouts.keys import fit, number_of, rename, shape, table
from openslip.inference.layouts.vision_transformer import vision_transformer
from openslip.regular_file import regular_file
from openslip.run.file_sizes import EXPANSION, SLACK
from openslip.text.bare_ids import BareIds

NORM_EPS, ACTIVATION = 1e-6, "gelu_tanh"
KERNELS = ("/query/kernel", "/key/kernel", "/value/kernel")  # [width, heads, width of a head]
MAX_LAYERS = 1000  # largest number of layers of a tower whose layers are stacked
MARK = "img/MAPHead_0/probe"

_LAYERS = (
    ("LayerNorm_0.", "norm1.", "ln_1."),
    ("MultiHeadDotProductAttention_0.qkv.", "attn.qkv.", "attention.in_proj."),
    ("MultiHeadDotProductAttention_0.out.", "attn.proj.", "attention.out_proj."),
    ("LayerNorm_1.", "norm2.", "ln_2."),
    ("MlpBlock_0.Dense_0.", "mlp.fc1.", "fc1."),
    ("MlpBlock_0.Dense_1.", "mlp.fc2.", "fc2."),
)
NAMES = table(
    (
        ("t", "logit_scale"),
        ("b", "logit_bias"),
        ("img.embedding.", "image_tower.trunk.patch_embed.proj."),
        ("img.pos_embedding", "image_tower.trunk.pos_embed"),
        ("img.Transformer.encoder_norm.", "image_tower.trunk.norm."),
        *((f"img.Transformer.encoderblock_{{n}}.{a}", f"image_tower.trunk.blocks.{{n}}.{b}") for a, b, _ in _LAYERS),
        ("img.MAPHead_0.probe", "image_tower.trunk.attn_pool.latent"),
        ("img.MAPHead_0.MultiHeadDotProductAttention_0.qkv.", "attn_pool.in_proj."),  # split later
        ("img.MAPHead_0.MultiHeadDotProductAttention_0.out.", "image_tower.trunk.attn_pool.proj."),
        ("img.MAPHead_0.LayerNorm_0.", "image_tower.trunk.attn_pool.norm."),
        ("img.MAPHead_0.MlpBlock_0.Dense_0.", "image_tower.trunk.attn_pool.mlp.fc1."),
        ("img.MAPHead_0.MlpBlock_0.Dense_1.", "image_tower.trunk.attn_pool.mlp.fc2."),
        ("txt.Embed_0.embedding", "text_tower.token_embedding.weight"),
        ("txt.pos_embedding", "text_tower.positional_embedding"),
        ("txt.Encoder_0.encoder_norm.", "text_tower.ln_final."),
        *((f"txt.Encoder_0.encoderblock_{{n}}.{a}", f"text_tower.blocks.{{n}}.{b}") for a, _, b in _LAYERS),
        ("txt.head.bias", "text_projection_bias"),
        ("txt.head.weight", "text_projection"),
    )
)


def detect(path: Path) -> bool:
    """Tell whether the file is an `.npz` with the pooling head of a SigLIP image tower."""
    try:
        with zipfile.ZipFile(regular_file(path)) as archive:
            names = {name.removesuffix(".npy").removeprefix("params/") for name in archive.namelist()}
    except (OSError, UserError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False
    return MARK in names


def read(path: Path, choices: Choices) -> Bundle:
    """Read a model without its vocabulary, which is a file of its own.

    Args:
        path: the `.npz` file.
        choices: must agree with the file, which answers everything.

    Raises:
        UserError: the file is damaged, holds pickled objects, or its arrays are not those of a SigLIP model.
    """
    arrays = unstacked(read_arrays(path))
    image_heads, text_heads = (heads(arrays, choices, tower) for tower in ("img", "txt"))
    weights = tensors(arrays)
    width, channels, patch_size, _ = shape(weights, "img.embedding.weight", ndim=4)
    side = shape(weights, "img.pos_embedding", ndim=3)[1] ** 0.5
    if side != int(side) or channels != 3:
        raise UserError(f"{path}: {shape(weights, 'img.pos_embedding', ndim=3)[1]} patches of {channels} channels")
    vocab_size, text_width = shape(weights, "txt.Embed_0.embedding", ndim=2)
    context_length = shape(weights, "txt.pos_embedding", ndim=2)[0]
    image_tower = vision_transformer(
        siglip.TIMM_NAME,
        image_size=int(side) * patch_size,
        patch_size=patch_size,
        width=width,
        depth=number_of(weights, "img.Transformer.encoderblock_"),
        heads=image_heads,
        mlp_width=shape(weights, "img.MAPHead_0.MlpBlock_0.Dense_0.weight", ndim=2)[0],
        activation=choices.check_activation(ACTIVATION),
        norm_eps=NORM_EPS,
    )
    text_tower = {
        "_target_": "openslip.models.text_transformer.TextTransformer",
        "vocab_size": vocab_size,
        "context_length": context_length,
        "width": text_width,
        "depth": number_of(weights, "txt.Encoder_0.encoderblock_"),
        "heads": text_heads,
        "mlp_width": shape(weights, "txt.Encoder_0.encoderblock_0.MlpBlock_0.Dense_0.weight", ndim=2)[0],
        "activation": ACTIVATION,
        "causal": False,
        "pooling": "last",
        "norm_eps": NORM_EPS,
    }
    architecture = siglip.architecture(image_tower, text_tower, shape(weights, "txt.head.weight", ndim=2)[1])
    state = siglip.split_pool(rename(weights, NAMES))
    model = build_limited(state, architecture)
    fit(model, state, path)
    tokenizer = BareIds(context_length=context_length, vocab_size=vocab_size, pooled="last")
    size = image_tower["image_size"]
    transform = EvalTransform(size=size, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic", resize="squash")
    return Bundle(model, tokenizer, transform, architecture, torch.device("cpu"))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file by their names without `params/`; pickled arrays are refused, not loaded.

    Raises:
        UserError: the file is damaged or expands too much, or an array is pickled, empty or not of floats.
    """
    try:
        with zipfile.ZipFile(regular_file(path)) as archive:
            size, unpacked = path.stat().st_size, sum(entry.file_size for entry in archive.infolist())
        if unpacked > max(EXPANSION * size, size + SLACK):
            raise UserError(f"checkpoint {path} has {size:,} bytes and unpacks to {unpacked:,}: refused")
        with np.load(path, allow_pickle=False) as file:
            arrays = distinct((name.removeprefix("params/"), file[name]) for name in file.files)
    except UserError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen types on damaged or hostile files
        reason = "it holds pickled objects, which could run code" if "pickle" in str(error) else str(error)[:200]
        raise UserError(f"checkpoint {path}: cannot be read as npz ({reason})") from error
    for name, array in arrays.items():
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise UserError(f"checkpoint {path}: {name[:120]} is of {array.dtype}; expected floats")
        if array.size == 0:  # an empty array can state any number of layers
            raise UserError(f"checkpoint {path}: {name[:120]} has shape {[*array.shape]}, and no elements")
    return arrays


def unstacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Split arrays that stack all layers of a tower on their first axis into one array per layer.

    Raises:
        UserError: an array has more layers than any model, or a layer is in the file twice.
    """
    single: list[tuple[str, np.ndarray]] = []
    for name, array in arrays.items():
        if "/encoderblock/" in name and array.ndim:
            if len(array) > MAX_LAYERS:
                raise UserError(f"{name[:120]} has {len(array):,} layers; expected up to {MAX_LAYERS:,}")
            for number, layer in enumerate(array):
                single.append((name.replace("/encoderblock/", f"/encoderblock_{number}/"), layer))
        else:
            single.append((name, array))
    return distinct(single)


def heads(arrays: Mapping[str, np.ndarray], choices: Choices, tower: str) -> int:
    """Return the number of attention heads of a tower, `img` or `txt`: the size of an axis of its query weights.

    Raises:
        UserError: the tower lacks this kernel, its layers have different numbers of heads, or the choice differs.
    """
    encoder, option = {"img": ("Transformer", "image_heads"), "txt": ("Encoder_0", "text_heads")}[tower]
    name = f"{tower}/{encoder}/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
    if name not in arrays or arrays[name].ndim != 3:
        raise UserError(f"the file lacks {name} of three axes: width, heads, and width of a head")
    number = arrays[name].shape[1]
    for other, array in arrays.items():
        if other.startswith(f"{tower}/") and other.endswith(KERNELS) and array.shape[1:2] != (number,):
            raise UserError(
                f"{other[:120]} has shape {[*array.shape]}, and {name} has {number} heads: expected the same number in "
                "all layers"
            )
    return agree(option, number, getattr(choices, option))


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the arrays in torch's layouts, with queries, keys and values joined; dots separate the parts of a name."""
    named: list[tuple[str, Tensor]] = []
    for name, array in arrays.items():
        tensor = torch.from_numpy(array.astype(np.float32))
        owner, _, kind = name.rpartition("/")
        if re.search(r"/(query|key|value)/(kernel|bias)$", name):
            # [width, heads, dim] or [heads, dim]
            tensor = tensor.flatten(-2).T if kind == "kernel" and tensor.ndim == 3 else tensor.flatten()
        elif name.endswith("/out/kernel") and tensor.ndim == 3:  # [heads, dim, width]
            tensor = tensor.flatten(0, 1).T
        elif kind == "kernel" and tensor.ndim == 4:  # [patch, patch, channels, width]
            tensor = tensor.permute(3, 2, 0, 1)
        elif kind == "kernel" and tensor.ndim == 2 and owner != "txt/head":  # our text projection is not transposed
            tensor = tensor.T
        elif name == "txt/pos_embedding":
            tensor = tensor.flatten(0, -2)
        elif name in ("t", "b") and tensor.numel() == 1:
            tensor = tensor.reshape([])
        kind = {"kernel": "weight", "scale": "weight"}.get(kind, kind)
        named.append((".".join(filter(None, [*owner.split("/"), kind])), tensor.contiguous()))
    weights = distinct(named)
    for name in [name for name in weights if ".query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in weights for part in parts):
            weights[name.replace(".query.", ".qkv.")] = torch.cat([weights.pop(part) for part in parts])
    return weights
