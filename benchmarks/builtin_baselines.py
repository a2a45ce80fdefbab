"""How far coarse pictures go on the built-in set: linear classifiers on 8 x 8 thumbnails, one per attribute.

    python benchmarks/builtin_baselines.py

Each is fitted on the training thumbnails; the candidate whose attributes score best together is the answer, as in the
zero-shot test. The other control trains the whole model on captions that belong to other pictures:

    python train.py data.source.shuffle_captions=true seed=0 name=shuffled-0
"""

import argparse
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openslip.data.image.decode import open_image
from openslip.data.sources.builtin import Split, attributes, builtin, classnames


def thumbnails(root: str, split: Split, pixels: int) -> tuple[Tensor, Tensor]:
    """Flattened thumbnails in 0..1, each pixel the mean of what it covers, and labels."""
    source = builtin(root, split)
    samples = [source[place] for place in range(len(source))]
    pictures = np.stack([np.asarray(open_image(sample.image, sample.key)) for sample in samples])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    labels = torch.tensor([sample.label for sample in samples])
    return F.interpolate(images, size=(pixels, pixels), mode="area").flatten(1), labels


def fit(x: Tensor, y: Tensor, num_classes: int, weight_decay: float) -> torch.nn.Linear:
    """Multinomial logistic regression."""
    linear = torch.nn.Linear(x.shape[1], num_classes)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(x), y) + weight_decay * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return linear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data/builtin", help="folder of the set; written if it is not there")
    parser.add_argument("--pixels", type=int, default=8, help="side of the thumbnails")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each draws its own training pictures")
    options = parser.parse_args()

    train, train_labels = thumbnails(options.root, "train", options.pixels)
    mean, std = train.mean(dim=0), train.std(dim=0)
    tests: dict[str, tuple[Tensor, Tensor]] = {}
    splits: tuple[Split, ...] = ("unseen", "seen")
    for split in splits:
        tests[split] = thumbnails(options.root, split, options.pixels)

    columns = {name: np.unique(values, return_inverse=True)[1] for name, values in attributes().items()}
    values = {name: torch.from_numpy(column) for name, column in columns.items()}  # [candidates] each
    write = sys.stdout.write
    write(f"{len(classnames())} candidates, chance {100 / len(classnames()):.2f} %\n")
    write("".join(f"{title:>10}" for title in ("seed", "split", *values, "all")) + "\n")
    for seed in options.seeds:
        torch.manual_seed(seed)
        drawn = torch.randint(len(train), (len(train),))  # a bootstrap: the fit itself has no randomness
        linears = {
            name: fit((train[drawn] - mean) / std, of[train_labels[drawn]], int(of.max()) + 1, 1e-4)
            for name, of in values.items()
        }
        for split, (x, labels) in tests.items():
            scores = {name: linear((x - mean) / std).log_softmax(dim=1) for name, linear in linears.items()}
            right = [scores[name].argmax(dim=1) == of[labels] for name, of in values.items()]
            together = torch.stack([scores[name][:, of] for name, of in values.items()]).sum(dim=0)
            right.append(together.argmax(dim=1) == labels)
            figures = "".join(f"{100 * each.float().mean().item():10.1f}" for each in right)
            write(f"{seed:10d}{split:>10}{figures}\n")


if __name__ == "__main__":
    main()
