"""The last block of a vision transformer, computed for the class token only, for models that pool no other token."""

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from openslip.models.attention import attention

_KNOWN = {"qkv", "q_norm", "k_norm", "attn_drop", "proj", "proj_drop"}


def pools_class_token(trunk: nn.Module) -> bool:
    """Whether `LastBlock` is exact for this backbone; of timm's classes of blocks, it supports only `Block`."""
    if type(trunk) is not VisionTransformer or trunk.global_pool != "token" or len(trunk.blocks) == 0:
        return False
    block = trunk.blocks[-1]
    if type(block) is not Block or type(block.attn) is not Attention or block.attn.attn_drop.p > 0:
        return False
    return all(name in _KNOWN or isinstance(part, nn.Identity) for name, part in block.attn.named_children())


class LastBlock(nn.Module):
    """Computes `block(x)[:, :1]` with attention and MLP for one token only; `block` holds all parameters."""

    def forward(self, block: Block, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch 1 width"]:
        attn = block.attn
        assert isinstance(attn, Attention)
        width = attn.num_heads * attn.head_dim
        y = block.norm1(x)
        q_weight, kv_weight = attn.qkv.weight.split([width, 2 * width])
        q_bias, kv_bias = (None, None) if attn.qkv.bias is None else attn.qkv.bias.split([width, 2 * width])
        q = F.linear(y[:, :1], q_weight, q_bias).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
        k, v = F.linear(y, kv_weight, kv_bias).unflatten(2, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = attention(attn.q_norm(q), attn.k_norm(k), v).transpose(1, 2).flatten(2)  # [batch, 1, width]
        x = x[:, :1] + block.drop_path1(block.ls1(attn.proj_drop(attn.proj(y))))
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
