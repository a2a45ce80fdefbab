"""The published SLIP and CLIP training step from parts of timm and torch: 77 tokens always, a pass per view."""

import timm
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn


class QuickGelu(nn.Module):
    """CLIP's activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TextBlock(nn.Module):
    """Pre-norm block of torch's own attention layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), QuickGelu(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.network(self.ln_2(x))


class PublishedModel(nn.Module):
    """Both towers, projections and, with `slip`, the SSL head with torch's batch norm.

    Args:
        backbone: timm name of the image tower.
        heads: of the image tower.
        fused_attention: as timm 1 has it; timm 0.5, with which the models were published, knew plain products alone.
        slip: with two more views and the head.
    """

    def __init__(self, *, backbone: str, heads: int, fused_attention: bool, slip: bool) -> None:
        super().__init__()
        self.image_tower = timm.create_model(backbone, num_classes=0, num_heads=heads)
        for module in self.image_tower.modules():
            if isinstance(module, Attention):
                module.fused_attn = fused_attention  # pyright: ignore[reportAttributeAccessIssue]
        width = self.image_tower.num_features
        assert isinstance(width, int)
        self.token_embedding = nn.Embedding(49408, 512)
        self.positions = nn.Parameter(torch.randn(77, 512) * 0.01)
        self.blocks = nn.ModuleList(TextBlock(512, 8) for _ in range(12))
        self.ln_final = nn.LayerNorm(512)
        self.image_projection = nn.Parameter(torch.randn(width, 512) * width**-0.5)
        self.text_projection = nn.Parameter(torch.randn(512, 512) * 512**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))
        self.register_buffer("mask", torch.full((77, 77), float("-inf")).triu(1))
        self.head = None
        if slip:
            self.head = nn.Sequential(
                *(nn.Linear(width, 4096), nn.BatchNorm1d(4096), nn.ReLU()),
                *(nn.Linear(4096, 4096), nn.BatchNorm1d(4096), nn.ReLU()),
                nn.Linear(4096, 256),
            )

    def encode_text(self, text: Tensor) -> Tensor:
        x = self.token_embedding(text) + self.positions
        for block in self.blocks:
            x = block(x, self.mask)
        x = self.ln_final(x)
        return x[torch.arange(len(x), device=x.device), text.argmax(dim=-1)] @ self.text_projection

    def forward(self, image: Tensor, text: Tensor, aug1: Tensor, aug2: Tensor) -> Tensor:
        """The loss."""
        ours = F.normalize(self.image_tower(image) @ self.image_projection, dim=-1)
        theirs = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * ours @ theirs.T
        labels = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        if self.head is None:
            return loss
        z1 = F.normalize(self.head(self.image_tower(aug1)), dim=-1)
        z2 = F.normalize(self.head(self.image_tower(aug2)), dim=-1)
        return loss + (one_view(z1, z2, labels) + one_view(z2, z1, labels)) / 2


def one_view(queries: Tensor, others: Tensor, labels: Tensor) -> Tensor:
    """NT-Xent of one view, its temperature 0.1."""
    itself = 1e9 * torch.eye(len(queries), device=queries.device)
    return F.cross_entropy(torch.cat([queries @ others.T / 0.1, queries @ queries.T / 0.1 - itself], dim=1), labels)
