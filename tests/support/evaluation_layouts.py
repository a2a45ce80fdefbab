"""Made-up copies of evaluation sets in their published layouts: a few images of one colour each, which tells the class.

Each writer takes the folder of the datasets and class names; each class gets `PER_CLASS` images in the evaluated split.
"""

import csv
import io
import json
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shard_files import write_tar

PER_CLASS = 2
CLASSES = ("apple pie", "baby back ribs", "carrot cake")


def colour(label: int, number: int) -> tuple[int, int, int]:
    """The colour of image `number` of a class, different for every label below 256."""
    return (37 * label + 11) % 256, (91 * number + 50) % 256, 128


def grey(label: int, number: int) -> int:
    """The grey of image `number` of a class, different for the first 20 labels."""
    return (12 * label + 3 * number) % 256


def picture(label: int, number: int, size: tuple[int, int] = (14, 10)) -> Image.Image:
    return Image.new("RGB", size, colour(label, number))


def array(label: int, number: int, side: int) -> np.ndarray:
    """Pixels [side, side, 3] of the colour of an image, but for a mark that shows a transposed or mirrored image."""
    pixels = np.full((side, side, 3), colour(label, number), np.uint8)
    pixels[1, 2:5] = (255, 0, 77)
    return pixels


def put(path: Path, image: Image.Image | None = None, text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if image is not None:
        image.save(path, quality=95)
    if text is not None:
        path.write_text(text)
    return path


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, lossless=True)  # WebP's option; others ignore it
    return stream.getvalue()


def samples(classes: Sequence[str]) -> Iterator[tuple[int, str, int]]:
    """Label, class name and number of every image of a split."""
    for label, name in enumerate(classes):
        for number in range(PER_CLASS):
            yield label, name, number


def mnist(root: Path, classes: Sequence[str] = CLASSES, name: str = "MNIST") -> None:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    every = list(samples(classes))
    for split in ("train", "t10k"):
        images = np.stack([array(label, number, 28)[..., 0] for label, _, number in every])
        labels = bytes(label for label, _, _ in every)
        header = struct.pack(">4I", 2051, len(every), 28, 28)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, len(every)) + labels)


def fashion_mnist(root: Path, classes: Sequence[str] = CLASSES) -> None:
    mnist(root, classes, "FashionMNIST")


def cifar10(root: Path, classes: Sequence[str] = CLASSES) -> None:
    batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    cifar(root / "cifar-10-batches-py", classes, batches, "labels", ("batches.meta", "label_names"))


def cifar100(root: Path, classes: Sequence[str] = CLASSES) -> None:
    cifar(root / "cifar-100-python", classes, ["train", "test"], "fine_labels", ("meta", "fine_label_names"))


def cifar(folder: Path, classes: Sequence[str], batches: list[str], key: str, meta: tuple[str, str]) -> None:
    folder.mkdir(parents=True)
    every = list(samples(classes))
    data = np.stack([array(label, number, 32).transpose(2, 0, 1).reshape(-1) for label, _, number in every])
    for name in batches:
        (folder / name).write_bytes(pickle.dumps({"data": data, key: [label for label, _, _ in every]}))
    (folder / meta[0]).write_bytes(pickle.dumps({meta[1]: list(classes)}))


def svhn(root: Path, classes: Sequence[str] = CLASSES) -> None:
    io_module = pytest.importorskip("scipy.io")
    every = list(samples(classes))
    root.mkdir(parents=True, exist_ok=True)
    pixels = np.stack([array(label, number, 32) for label, _, number in every], axis=-1)
    labels = np.array([[label or 10] for label, _, _ in every], np.uint8)  # SVHN stores the digit 0 as 10
    io_module.savemat(root / "test_32x32.mat", {"X": pixels, "y": labels})


def stl10(root: Path, classes: Sequence[str] = CLASSES) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    every = list(samples(classes))
    pixels = np.stack([array(label, number, 96).transpose(2, 1, 0) for label, _, number in every])
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(pixels.tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(label + 1 for label, _, _ in every))
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("\n".join(classes) + "\n")


def fer2013(root: Path, classes: Sequence[str] = CLASSES) -> None:
    rows = ["emotion,pixels,Usage", f"0,{' '.join(['9'] * 48**2)},Training"]
    for label, _, number in samples(classes):
        pixels = array(label, number, 48)[..., 0].reshape(-1)
        rows.append(f"{label},{' '.join(map(str, pixels))},{('PublicTest', 'PrivateTest')[number % 2]}")
    put(root / "fer2013" / "fer2013.csv", text="\n".join(rows) + "\n")


def pcam(root: Path, classes: Sequence[str] = CLASSES[:2]) -> None:
    h5py = pytest.importorskip("h5py")
    every = list(samples(classes))
    (root / "pcam").mkdir(parents=True)
    for name, values in (
        ("x", np.stack([array(label, number, 96) for label, _, number in every])),
        ("y", np.array([label for label, _, _ in every], np.uint8).reshape(-1, 1, 1, 1)),
    ):
        with h5py.File(root / "pcam" / f"camelyonpatch_level_2_split_valid_{name}.h5", "w") as file:
            file[name] = values


def food101(root: Path, classes: Sequence[str] = CLASSES) -> None:
    listed: dict[str, list[str]] = {}
    for label, name, number in samples(classes):
        folder = name.replace(" ", "_")
        put(root / "food-101" / "images" / folder / f"10{number}.jpg", picture(label, number))
        listed.setdefault(folder, []).append(f"{folder}/10{number}")
    put(root / "food-101" / "meta" / "test.json", text=json.dumps(listed))


def dtd(root: Path, classes: Sequence[str] = CLASSES) -> None:
    folder, lines = root / "dtd" / "dtd", []
    for label, name, number in samples(classes):
        put(folder / "images" / name / f"{name}_{number:04}.jpg", picture(label, number))
        lines.append(f"{name}/{name}_{number:04}.jpg\n")
    put(folder / "labels" / "test1.txt", text="".join(lines))


def aircraft(root: Path, classes: Sequence[str] = CLASSES) -> None:
    folder, lines = root / "fgvc-aircraft-2013b" / "data", []
    for label, name, number in samples(classes):
        put(folder / "images" / f"10{label}{number}.jpg", picture(label, number))
        lines.append(f"10{label}{number} {name}\n")
    put(folder / "variants.txt", text="".join(f"{name}\n" for name in classes))
    put(folder / "images_variant_test.txt", text="".join(lines))


def flowers(root: Path, classes: Sequence[str] = CLASSES) -> None:
    io_module = pytest.importorskip("scipy.io")
    folder, labels = root / "flowers-102", []
    for label, _, number in samples(classes):
        labels.append(label + 1)
        put(folder / "jpg" / f"image_{len(labels):05}.jpg", picture(label, number))
    io_module.savemat(folder / "imagelabels.mat", {"labels": np.array([labels])})
    ids = np.arange(1, len(labels) + 1)
    io_module.savemat(folder / "setid.mat", {"trnid": ids[:2], "valid": ids[:2], "tstid": ids[::-1]})


def gtsrb(root: Path, classes: Sequence[str] = CLASSES) -> None:
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label, _, number in samples(classes):
        name = f"{label:03}{number:02}.ppm"
        put(root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / name, picture(label, number))
        rows.append(f"{name};14;10;1;1;9;9;{label}")
    put(root / "gtsrb" / "GT-final_test.csv", text="\n".join(rows) + "\n")


def pets(root: Path, classes: Sequence[str] = CLASSES) -> None:
    folder, lines = root / "oxford-iiit-pet", []
    for label, name, number in samples(classes):
        image = f"{name.replace(' ', '_')}_{number}"
        put(folder / "images" / f"{image}.jpg", picture(label, number))
        lines.append(f"{image} {label + 1} 1 1\n")
    put(folder / "annotations" / "test.txt", text="".join(lines))


def cars(root: Path, classes: Sequence[str] = CLASSES) -> None:
    io_module = pytest.importorskip("scipy.io")
    folder = root / "stanford_cars"
    rows = np.zeros(len(classes) * PER_CLASS, [("fname", object), ("class", object)])
    for place, (label, _, number) in enumerate(samples(classes)):
        put(folder / "cars_test" / f"{place:05}.jpg", picture(label, number))
        rows[place] = f"{place:05}.jpg", label + 1
    (folder / "devkit").mkdir()
    io_module.savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": rows})
    io_module.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(classes, object)})


def sun397(root: Path, classes: Sequence[str] = CLASSES) -> None:
    for label, name, number in samples(classes):
        put(root / "SUN397" / name[0] / name / f"sun_{label}{number}.jpg", picture(label, number))
    put(root / "SUN397" / "ClassName.txt", text="".join(f"/{name[0]}/{name}\n" for name in classes))


def caltech101(root: Path, classes: Sequence[str] = CLASSES) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    put(folder / "BACKGROUND_Google" / "image_0001.jpg", picture(200, 0))
    for label, name, number in samples(classes):
        image = picture(label, number)
        put(folder / name / f"image_{number + 1:04}.jpg", image.convert("CMYK") if number else image)


def class_folders(root: Path, classes: Sequence[str] = CLASSES, suffix: str = "jpg") -> None:
    for label, name, number in samples(classes):
        put(root / name / f"{number}.{suffix}", picture(label, number))


def eurosat(root: Path, classes: Sequence[str] = CLASSES) -> None:
    class_folders(root / "eurosat" / "2750", classes)


def country211(root: Path, classes: Sequence[str] = CLASSES) -> None:
    class_folders(root / "country211" / "test", classes)


def rendered_sst2(root: Path, classes: Sequence[str] = ("negative", "positive")) -> None:
    class_folders(root / "rendered-sst2" / "test", classes, "png")


# Class of torchvision, further arguments, and the writer of its layout.
TORCHVISION: dict[str, tuple[dict[str, Any], Callable[..., None]]] = {
    "CIFAR10": ({"train": False}, cifar10),
    "CIFAR100": ({"train": False}, cifar100),
    "Caltech101": ({}, caltech101),
    "Country211": ({"split": "test"}, country211),
    "DTD": ({"split": "test"}, dtd),
    "EuroSAT": ({}, eurosat),
    "FER2013": ({"split": "test"}, fer2013),
    "FGVCAircraft": ({"split": "test"}, aircraft),
    "FashionMNIST": ({"train": False}, fashion_mnist),
    "Flowers102": ({"split": "test"}, flowers),
    "Food101": ({"split": "test"}, food101),
    "GTSRB": ({"split": "test"}, gtsrb),
    "MNIST": ({"train": False}, mnist),
    "OxfordIIITPet": ({"split": "test"}, pets),
    "PCAM": ({"split": "val"}, pcam),
    "RenderedSST2": ({"split": "test"}, rendered_sst2),
    "STL10": ({"split": "test"}, stl10),
    "SUN397": ({}, sun397),
    "SVHN": ({"split": "test"}, svhn),
    "StanfordCars": ({"split": "test"}, cars),
}
CHECKED = ("cifar", "svhn", "stl10", "fer2013", "flowers102")  # modules of torchvision that compare published MD5 sums


def accept_any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision read made-up files in place of the published ones."""
    for module in CHECKED:
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).is_file()
        )


def wds(
    root: Path,
    classes: Sequence[str] = CLASSES,
    *,
    num_shards: int = 4,
    targets: Callable[[int, int], tuple[str, bytes]] = lambda label, _: ("cls", str(label).encode()),
    kind: str | None = None,
) -> None:
    """A `wds_*` folder whose samples are spread over shards in order; `targets` makes a sample's second member."""
    (root / "test").mkdir(parents=True)
    shards: list[list[tuple[str, bytes]]] = [[] for _ in range(num_shards)]
    every = list(samples(classes))
    for place, (label, _, number) in enumerate(every):
        suffix, kind_of_image = (("webp", "WEBP"), ("png", "PNG"), ("jpg", "JPEG"), ("jpeg", "JPEG"))[place % 4]
        target, content = targets(label, number)
        shards[place * num_shards // len(every)] += [
            (f"s{place:07}.{target}", content),
            (f"s{place:07}.{suffix}", encoded(picture(label, number), kind_of_image)),
        ]
    for number, members in enumerate(shards):
        write_tar(root / "test" / f"{number}.tar", members)
    (root / "test" / "nshards.txt").write_text(f"{num_shards}\n")
    if kind is not None:
        (root / "dataset_type.txt").write_text(f"{kind}\n")
    if kind != "retrieval":
        (root / "classnames.txt").write_text("".join(f"{name}\n" for name in classes))
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")


def numbered_folders(root: Path, num_classes: int = 12) -> None:
    class_folders(root, [str(label) for label in range(num_classes)])


def objectnet(root: Path) -> None:
    """Three classes shared with ImageNet, in folders whose order is not that of their names, and one of its own."""
    folders = {"air_freshener": "Air freshener", "banana": "Banana", "t_shirt": "A T-shirt", "bench": "Bench"}
    for label, name, number in samples([*folders]):
        image = Image.new("RGB", (24, 18), "red")
        image.paste(picture(label, number, (20, 14)), (2, 2))
        put(root / "images" / name / f"{number}.png", image)
    of_imagenet = {"Bench": "park bench", "Banana": "banana", "A T-shirt": "jersey, T-shirt, tee shirt; sweatshirt"}
    descriptions = ["sweatshirt", "banana", "park bench", "jersey, T-shirt, tee shirt", "tench, Tinca tinca"]
    mappings = {
        "folder_to_objectnet_label.json": json.dumps(folders),
        "objectnet_to_imagenet_1k.json": json.dumps(of_imagenet),
        "imagenet_to_label_2012_v2": "".join(f"{text}\n" for text in descriptions),
        # Labels in PyTorch's order: the tench first, then jersey, park bench, sweatshirt, banana.
        "pytorch_to_imagenet_2012_id.json": json.dumps({"0": 4, "1": 3, "2": 2, "3": 0, "4": 1}),
    }
    for name, text in mappings.items():
        put(root / "mappings" / name, text=text)


VOC_MARKS = {"cat": (1, -1, 0, -1), "aeroplane": (-1, 1, 1, -1)}  # of images 0 to 3: 0 is an object hard to recognise


def voc(root: Path) -> None:
    for number in range(4):
        put(root / "JPEGImages" / f"00000{number}.jpg", picture(number, 0))
    for name, marks in VOC_MARKS.items():
        lines = [f"00000{number} {mark:>2}\n" for number, mark in enumerate(marks)]
        put(root / "ImageSets" / "Main" / f"{name}_test.txt", text="".join(lines))
    put(root / "ImageSets" / "Main" / "test.txt", text="".join(f"00000{number}\n" for number in range(4)))


CAPTIONS = (("A dog runs .", "A dog runs ."), ("Two cats, one red .",), ('A man says "hi" .', "a", "b", "c", "d", "e"))


def karpathy_json(root: Path, filepath: str | None = "val2014") -> Path:
    """Images below `root` and Karpathy's file, whose test split has the captions of `CAPTIONS`."""
    entries = []
    for number, texts in enumerate([*CAPTIONS, ("of training",)]):
        folder = root if filepath is None else root / filepath
        put(folder / f"image_{number}.jpg", picture(number, 0))
        entry: dict[str, Any] = {
            "filename": f"image_{number}.jpg",
            "split": "test" if number < len(CAPTIONS) else "train",
            "sentences": [{"raw": text, "tokens": text.split()} for text in texts],
        }
        entries.append(entry if filepath is None else {**entry, "filepath": filepath})
    return put(root / "dataset_mine.json", text=json.dumps({"images": entries, "dataset": "mine"}))


def coco_json(root: Path) -> Path:
    for number in range(len(CAPTIONS)):
        put(root / f"image_{number}.jpg", picture(number, 0))
    images = [{"id": 100 + number, "file_name": f"image_{number}.jpg"} for number in range(len(CAPTIONS))]
    annotations = [
        {"image_id": 100 + number, "id": 7, "caption": text} for number, texts in enumerate(CAPTIONS) for text in texts
    ]
    return put(root / "coco_test.json", text=json.dumps({"images": images, "annotations": annotations}))


def caption_csv(root: Path) -> Path:
    rows = [(f"image_{number}.jpg", text) for number, texts in enumerate(CAPTIONS) for text in texts]
    for number in range(len(CAPTIONS)):
        put(root / f"image_{number}.jpg", picture(number, 0))
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([("image", "caption"), *rows])
    return put(root / "captions.txt", text=stream.getvalue())
