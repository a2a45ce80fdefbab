"""Change an image so that it fits a text: python examples/guide.py CHECKPOINT "a red circle" out.png

Guided generators repeat this step: gradients of the similarity flow through `encode_image` to the pixels, and the
weights stay as they are. Random shifts keep the image from fitting the model's patches instead of the text.
"""

import sys

import torch
from torch import Tensor
from torchvision.utils import save_image

import openslip


def guide(model: openslip.Bundle, text: str, *, steps: int = 200, rate: float = 0.03, shift: int = 4) -> Tensor:
    """Return an image [3, size, size] with values from 0 to 1 that was optimised towards the text."""
    size, statistics = model.transform.size, (model.transform.mean, model.transform.std)
    mean, std = (torch.tensor(values, device=model.device).view(3, 1, 1) for values in statistics)
    target = model.encode_text([text])
    logits = torch.zeros(1, 3, size, size, device=model.device, requires_grad=True)  # the sigmoid of zero is grey
    optimizer = torch.optim.Adam([logits], lr=rate)
    for step in range(steps):
        rows, columns = torch.randint(-shift, shift + 1, (2,)).tolist()
        pixels = logits.sigmoid().roll((rows, columns), dims=(2, 3))
        features = model.encode_image((pixels - mean) / std, gradients=True)
        similarity = (features @ target.T).mean()
        optimizer.zero_grad()
        (-similarity).backward()
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:4}  similarity {similarity.item():.3f}")
    return logits.detach().sigmoid()[0]


if __name__ == "__main__":
    checkpoint, text, output = sys.argv[1:]
    save_image(guide(openslip.load(checkpoint, device="auto"), text), output)
