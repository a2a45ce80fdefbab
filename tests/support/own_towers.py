"""An image tower and a text tower as a user writes them, unlike any of OpenSLIP's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from openslip.models.tower import Tokens, Tower, unpadded


class ConvNet(Tower):
    """Convolutions with batch norm; one token per place of the last feature map."""

    def __init__(self, *, widths: list[int]) -> None:
        super().__init__()
        self.width = widths[-1]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
            for inputs, outputs in zip([3, *widths[:-1]], widths, strict=True)
        )

    def repeated_blocks(self) -> Sequence[nn.Module]:
        return list(self.stages)

    def tokens(self, images: Tensor, /) -> Tokens:
        x = images
        for stage in self.stages:
            x = self.run(stage, x)
        return unpadded(x.flatten(2).transpose(1, 2))

    def forward(self, images: Tensor, /) -> Tensor:
        return self.tokens(images).features.mean(dim=1)


class GRUText(Tower):
    """A recurrent network that reads captions from both ends."""

    def __init__(self, *, vocab_size: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocab_size, width)
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def tokens(self, ids: Tensor, lengths: Tensor, /) -> Tokens:
        packed = pack_padded_sequence(self.embedding(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        features, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=ids.shape[1])
        return Tokens(features, torch.arange(ids.shape[1], device=ids.device) < lengths.to(ids.device)[:, None])

    def forward(self, ids: Tensor, lengths: Tensor, /) -> Tensor:
        features, mask = self.tokens(ids, lengths)
        return features.sum(dim=1) / mask.sum(dim=1, keepdim=True)
