"""Every evaluation's settings, typed from papers and published code; nothing is read from `configs/`.

Splits, metrics and the order of layouts are facebookresearch/SLIP's (datasets.py, dataset_catalog.json,
eval_zeroshot.py), for other sets LAION-AI/CLIP_benchmark's (datasets/builder.py); `wds_` folders are those of
huggingface.co/clip-benchmark; numbers of samples are mlfoundations/datacomp's (tasklist.yml) unless noted.
"""

from typing import Any

Settings = dict[str, Any]

DATA = "${oc.env:EVALUATION_DATA,data/evaluation}"
IMAGENET = "${oc.env:IMAGENET,data/imagenet}"
SOURCES = "openslip.data.sources"
AT_THE_END = {"every_n_epochs": 0, "every_n_steps": 0}
PUBLISHED = {"batch_size": 256, "num_workers": 8, **AT_THE_END}
OWN_IMAGES = {"batch_size": 256, "num_workers": 2, **AT_THE_END}
BUILTIN = {"batch_size": 256, "num_workers": 0, **AT_THE_END}
DRAWINGS = {"batch_size": 4, "num_workers": 0, **AT_THE_END}


# ---- layouts, in the order in which they are looked for


def place(target: str, **arguments: Any) -> Settings:
    """A source that is made when its folder is the first that exists."""
    return {"_target_": f"{SOURCES}.{target}", "_partial_": True, **arguments}


def wds(name: str) -> dict[str, Settings]:
    """CLIP_benchmark's shards; all of its sets are evaluated on `test`."""
    return {"wds": place("wds_folder.WdsFolder", root=f"{DATA}/wds_{name}", split="test")}


def torchvision(dataset: str, **arguments: Any) -> dict[str, Settings]:
    """A dataset of torchvision in its own layout."""
    return {"torchvision": place("torchvision_set.TorchvisionSet", dataset=dataset, root=DATA, arguments=arguments)}


def folders(path: str, root: str = DATA) -> dict[str, Settings]:
    """One folder of images per class."""
    return {"folders": place("image_folder.ImageFolder", root=f"{root}/{path}")}


def lists(name: str, split: str, **arguments: Any) -> dict[str, Settings]:
    """SLIP's lists of images and labels."""
    files = {"images": f"{split}_images.npy", "labels": f"{split}_labels.npy"}
    return {"lists": place("file_list.FileList", root=f"{DATA}/{name}", **files, **arguments)}


def first_found(name: str, *places: dict[str, Settings]) -> Settings:
    """The first layout that exists."""
    found = {kind: settings for place in places for kind, settings in place.items()}
    return {"_target_": f"{SOURCES}.first_found.first_found", "name": name, "places": found}


# ---- zero-shot classification of published datasets


def zero_shot(what: str, source: Settings, **settings: Any) -> Settings:
    """A set with class names and templates of its own, unless the settings name others."""
    named = {"classnames": source["name"], "templates": source["name"], "metric": "top1", "expected_samples": None}
    target = {"_target_": "openslip.evaluation.zeroshot.ZeroShot", "title": f"{what} zero-shot"}
    return {**target, "source": source, **named, **PUBLISHED, **settings}


def without(settings: Settings, *keys: str) -> Settings:
    """The settings but for some keys."""
    return {key: value for key, value in settings.items() if key not in keys}


MEAN_PER_CLASS = {"metric": "mean_per_class"}
CLEVRS_COUNTS = [f"count_{number}" for number in (10, 3, 4, 5, 6, 7, 8, 9)]  # in the order of SLIP's labels
# By accuracies in CLIP_benchmark's benchmark.csv, which are multiples of 1 / this number.
IN_CLIP_BENCHMARK = {"diabetic_retinopathy": 42_670, "dmlab": 22_735, "dsprites": 73_728, "smallnorb": 12_150}

SUITE = {  # the 25 sets of SLIP beside ImageNet
    "food101": zero_shot(
        "Food-101",
        first_found("food101", wds("food101"), torchvision("Food101", split="test"), folders("food101/test")),
        expected_samples=25_250,
    ),
    "cifar10": zero_shot(
        "CIFAR-10",
        first_found("cifar10", wds("vtab-cifar10"), torchvision("CIFAR10", train=False), folders("cifar10/test")),
        expected_samples=10_000,
    ),
    "cifar100": zero_shot(
        "CIFAR-100",
        first_found("cifar100", wds("vtab-cifar100"), torchvision("CIFAR100", train=False), folders("cifar100/test")),
        expected_samples=10_000,
    ),
    "cub200": zero_shot("CUB-200", first_found("cub200", folders("cub200/val"))),
    "sun397": zero_shot(
        "SUN397",
        first_found("sun397", lists("sun397", "test"), wds("sun397"), torchvision("SUN397")),
        expected_samples=[19_850, 108_754],  # one test partition, or all images
    ),
    "cars": zero_shot(
        "Stanford Cars",
        first_found("cars", wds("cars"), torchvision("StanfordCars", split="test"), folders("cars/test")),
        expected_samples=8_041,
    ),
    "aircraft": zero_shot(
        "FGVC Aircraft",
        first_found(
            "aircraft",
            wds("fgvc_aircraft"),
            torchvision("FGVCAircraft", annotation_level="variant", split="test"),
            folders("aircraft/test"),
        ),
        expected_samples=3_333,
        **MEAN_PER_CLASS,
    ),
    "dtd": zero_shot(
        "Describable Textures",
        first_found("dtd", wds("vtab-dtd"), torchvision("DTD", split="test"), folders("dtd/test")),
        expected_samples=1_880,
    ),
    "pets": zero_shot(
        "Oxford-IIIT Pet",
        first_found("pets", wds("vtab-pets"), torchvision("OxfordIIITPet", split="test"), folders("pets/test")),
        expected_samples=3_669,
        **MEAN_PER_CLASS,
    ),
    "caltech101": zero_shot(
        "Caltech-101",
        first_found("caltech101", wds("vtab-caltech101"), folders("caltech101/test")),
        expected_samples=6_085,
        **MEAN_PER_CLASS,
    ),
    "flowers": zero_shot(
        "Oxford Flowers-102",
        first_found("flowers", wds("vtab-flowers"), torchvision("Flowers102", split="test"), folders("flowers/test")),
        expected_samples=6_149,
        **MEAN_PER_CLASS,
    ),
    "mnist": zero_shot(
        "MNIST",
        first_found("mnist", wds("mnist"), torchvision("MNIST", train=False), folders("mnist/test")),
        expected_samples=10_000,
    ),
    "fer2013": zero_shot("FER2013", first_found("fer2013", folders("fer2013/test"), wds("fer2013"))),
    "stl10": zero_shot(
        "STL-10",
        first_found("stl10", wds("stl10"), torchvision("STL10", split="test"), folders("stl10/test")),
        expected_samples=8_000,
    ),
    "eurosat": zero_shot("EuroSAT", first_found("eurosat", folders("eurosat/val"), wds("vtab-eurosat"))),
    "resisc45": zero_shot("RESISC45", first_found("resisc45", folders("resisc45/test"), wds("vtab-resisc45"))),
    "gtsrb": zero_shot(
        "GTSRB",
        first_found("gtsrb", wds("gtsrb"), torchvision("GTSRB", split="test"), folders("gtsrb/test")),
        expected_samples=12_630,
    ),
    "kitti_distance": zero_shot(
        "KITTI distance",
        first_found("kitti_distance", folders("kitti_distance/val"), wds("vtab-kitti_closest_vehicle_distance")),
        expected_samples=711,
    ),
    "country211": zero_shot(
        "Country211",
        first_found(
            "country211", wds("country211"), torchvision("Country211", split="test"), folders("country211/test")
        ),
        expected_samples=21_100,
    ),
    "patch_camelyon": zero_shot(
        "PatchCamelyon",
        first_found(
            "patch_camelyon", torchvision("PCAM", split="val"), folders("patch_camelyon/val"), wds("vtab-pcam")
        ),
        expected_samples=32_768,
    ),
    "ucf101_frames": zero_shot("UCF101 frames", first_found("ucf101_frames", folders("ucf101_frames/val"))),
    "kinetics700_frames": zero_shot(
        "Kinetics-700 frames",
        first_found("kinetics700_frames", folders("kinetics700_frames/val_images")),
        metric="mean_of_top1_top5",
    ),
    "clevr_counts": zero_shot(
        "CLEVR counts",
        first_found("clevr_counts", lists("clevr_counts", "val", classes=CLEVRS_COUNTS), wds("vtab-clevr_count_all")),
    ),
    "hateful_memes": zero_shot(
        "Hateful Memes",
        first_found("hateful_memes", folders("hateful_memes/dev")),
        metric="roc_auc",
        expected_samples=500,
    ),
    "rendered_sst2": zero_shot(
        "Rendered SST2",
        first_found(
            "rendered_sst2",
            wds("renderedsst2"),
            torchvision("RenderedSST2", split="test"),
            folders("rendered_sst2/test"),
        ),
        expected_samples=1_821,
    ),
}
OF_CLIP_BENCHMARK = {
    "svhn": zero_shot(
        "SVHN", first_found("svhn", wds("vtab-svhn"), torchvision("SVHN", split="test")), expected_samples=26_032
    ),
    "dmlab": zero_shot("DMLab", first_found("dmlab", wds("vtab-dmlab")), expected_samples=IN_CLIP_BENCHMARK["dmlab"]),
    "diabetic_retinopathy": zero_shot(
        "Diabetic Retinopathy",
        first_found("diabetic_retinopathy", wds("vtab-diabetic_retinopathy")),
        expected_samples=IN_CLIP_BENCHMARK["diabetic_retinopathy"],
    ),
    "clevr_distance": zero_shot(
        "CLEVR distance",
        first_found("clevr_distance", wds("vtab-clevr_closest_object_distance")),
        expected_samples=15_000,
    ),
    "dsprites_label_orientation": zero_shot(
        "dSprites orientation",
        first_found("dsprites_label_orientation", wds("vtab-dsprites_label_orientation")),
        expected_samples=IN_CLIP_BENCHMARK["dsprites"],
    ),
    "dsprites_label_x_position": zero_shot(
        "dSprites x position",
        first_found("dsprites_label_x_position", wds("vtab-dsprites_label_x_position")),
        expected_samples=IN_CLIP_BENCHMARK["dsprites"],
    ),
    "smallnorb_azimuth": zero_shot(
        "SmallNORB azimuth",
        first_found("smallnorb_azimuth", wds("vtab-smallnorb_label_azimuth")),
        expected_samples=IN_CLIP_BENCHMARK["smallnorb"],
    ),
    "smallnorb_elevation": zero_shot(
        "SmallNORB elevation",
        first_found("smallnorb_elevation", wds("vtab-smallnorb_label_elevation")),
        expected_samples=IN_CLIP_BENCHMARK["smallnorb"],
    ),
    "voc2007": zero_shot("PASCAL VOC 2007 crops", first_found("voc2007", wds("voc2007")), expected_samples=14_976),
    "voc2007_multilabel": {  # VOC2007's development kit: 4,952 images in ImageSets/Main/test.txt
        "_target_": "openslip.evaluation.multilabel.MultiLabel",
        "title": "VOC2007 multi-label zero-shot",
        "source": first_found(
            "voc2007_multilabel",
            wds("voc2007_multilabel"),
            {"voc": place("voc.Voc2007", root=f"{DATA}/VOCdevkit/VOC2007", split="test")},
        ),
        "classnames": "voc2007",
        "templates": "voc2007",
        "expected_samples": 4_952,
        **PUBLISHED,
    },
    "fashion_mnist": zero_shot(  # arXiv:1708.07747, table 1; templates are our own
        "Fashion-MNIST",
        first_found("fashion_mnist", wds("fashion_mnist"), torchvision("FashionMNIST", train=False)),
        classnames=None,
        templates=["a photo of a {}.", "a picture of a {}.", "a drawing of a {}."],
        expected_samples=10_000,
    ),
}

# ---- ImageNet and its variants: open_clip's 80 templates (clip_benchmark), SLIP's 7, or one

VALIDATION = first_found("imagenet", folders("val", IMAGENET), wds("imagenet1k"))
OF_80 = {"templates": "imagenet80"}
IMAGENETS = {
    "imagenet": without(  # main.py's, which leaves the defaults out
        zero_shot("ImageNet", VALIDATION, title="ImageNet zero-shot top-1", templates="imagenet7"),
        "metric",
        "expected_samples",
    ),
    "imagenet1": zero_shot(
        "ImageNet",
        VALIDATION,
        title="ImageNet zero-shot with 1 template",
        templates=["a photo of a {}."],
        expected_samples=50_000,
    ),
    "imagenet80": zero_shot(
        "ImageNet", VALIDATION, title="ImageNet zero-shot with 80 templates", expected_samples=50_000, **OF_80
    ),
    "imagenetv2": zero_shot(
        "ImageNet-V2",
        first_found(
            "imagenetv2",
            wds("imagenetv2"),
            {
                "folders": place(
                    "numbered_folder.NumberedFolder",
                    root=f"{DATA}/imagenetv2-matched-frequency-format-val",
                    num_classes=1000,
                )
            },
        ),
        classnames="imagenet",
        expected_samples=10_000,
        **OF_80,
    ),
    "imagenet_a": zero_shot(
        "ImageNet-A",
        first_found("imagenet_a", wds("imagenet-a"), folders("imagenet-a")),
        expected_samples=7_500,
        **OF_80,
    ),
    "imagenet_o": zero_shot(
        "ImageNet-O",
        first_found("imagenet_o", wds("imagenet-o"), folders("imagenet-o")),
        expected_samples=2_000,
        **OF_80,
    ),
    "imagenet_r": zero_shot(
        "ImageNet-R",
        first_found("imagenet_r", wds("imagenet-r"), folders("imagenet-r")),
        expected_samples=30_000,
        **OF_80,
    ),
    "imagenet_sketch": zero_shot(
        "ImageNet-Sketch",
        first_found("imagenet_sketch", wds("imagenet_sketch"), folders("sketch")),
        classnames="imagenet",
        expected_samples=50_889,
        **OF_80,
    ),
    "objectnet": zero_shot(
        "ObjectNet",
        first_found(
            "objectnet", {"folders": place("objectnet.ObjectNet", root=f"{DATA}/objectnet-1.0")}, wds("objectnet")
        ),
        expected_samples=18_574,
        **OF_80,
    ),
}

# ---- retrieval: the test images of Karpathy's splits


def karpathy(name: str, images: str) -> dict[str, Settings]:
    """Karpathy's own file of all splits."""
    captions = f"{DATA}/{name}/dataset_{name}.json"
    return {"karpathy": place("karpathy.karpathy", images=images, captions=captions, split="test")}


def flickr(name: str, title: str) -> Settings:
    """Flickr's sets: CLIP_benchmark's table of captions is the third layout."""
    images = f"{DATA}/{name}/Images"
    table = place("karpathy.caption_table", images=images, captions=f"{DATA}/{name}/{name}_test_karpathy.txt")
    places = (wds(name), karpathy(name, images), {"csv": table})
    return {
        "_target_": "openslip.evaluation.retrieval.Retrieval",
        "title": f"{title} retrieval (Karpathy test)",
        "source": first_found(name, *places),
        "expected_samples": 1_000,
        **PUBLISHED,
    }


COCO = place("karpathy.coco_captions", images=f"{DATA}/coco/val2014", captions=f"{DATA}/coco/coco_test_karpathy.json")
RETRIEVAL = {
    "coco": {
        "_target_": "openslip.evaluation.retrieval.Retrieval",
        "title": "COCO retrieval (Karpathy test)",
        "source": first_found("coco", wds("mscoco_captions"), karpathy("coco", f"{DATA}/coco"), {"coco": COCO}),
        "expected_samples": 5_000,
        **PUBLISHED,
    },
    "flickr8k": flickr("flickr8k", "Flickr8k"),
    "flickr30k": flickr("flickr30k", "Flickr30k"),
}

# ---- frozen features; the built-in dataset, the user's own images and the drawings share the protocols

OWN = {"_target_": f"{SOURCES}.image_folder.ImageFolder", "root": "???"}
OWN_SHARDS = {
    "_target_": f"{SOURCES}.shards.ShardSource",
    "shards": "???",
    "require": "caption",
    "equal_captions": "keep",  # each of them counts
    "cache": "${shard_cache}",
}
TEMPLATES = [
    *("a {}.", "a photo of a {}.", "a picture of a {}.", "a drawing of a {}."),
    *("there is a {} here.", "this is a {}.", "a {} in the picture."),
]
ATTRIBUTES = {"_target_": f"{SOURCES}.builtin.attributes"}
# arXiv:1805.01978 (k-NN); README of openai/CLIP (0.316), CLIP section A.3 (1000 iterations, no normalisation).
NEIGHBOURS = {"k": 20, "temperature": 0.07}
LOGISTIC = {"c": 0.316, "decrease": 1e-6, "max_iterations": 1000}
SWEPT = {**LOGISTIC, "c": "sweep", "validation": 0.1}
BEFORE_THE_PROJECTION = {"features": "tower", "normalise": False}
FEW_SHOTS = {**LOGISTIC, "shots": [1, 2, 4, 8, 16], "seeds": [0, 1, 2], **BEFORE_THE_PROJECTION}
EPISODES = {"num_pairs": 100_000, "ways": 20, "num_episodes": 400, "seed": 0}  # Koch et al. 2015, section 4.3
GATE = {"held_out": 0.1, "accepted": 0.95, "seed": 0, "normalise": True}  # as in fpr95
OUTLIERS = {
    "local_outlier_factor": {"_target_": "openslip.evaluation.novelty.LocalOutlierFactor", "neighbours": 20}
}  # scikit-learn's default
NOVELTY = {
    "max_similarity": {"_target_": "openslip.evaluation.novelty.MaxSimilarity"},
    "energy": {"_target_": "openslip.evaluation.novelty.Energy"},
    **OUTLIERS,
}


def builtin(split: str) -> Settings:
    """A split of the built-in dataset."""
    return {"_target_": f"{SOURCES}.builtin.builtin", "root": "data/builtin", "split": split}


def captioned(split: str) -> Settings:
    """A split of the built-in dataset with its captions."""
    return {"_target_": f"{SOURCES}.builtin_captions.captioned", "root": "data/builtin", "split": split}


def drawings(split: str) -> Settings:
    """A split of the drawings that have names."""
    return {"_target_": f"{SOURCES}.openclipart.named", "root": f"{DATA}/openclipart", "split": split}


def single(split: str) -> Settings:
    """The drawings of a split that have one name."""
    return {"_target_": f"{SOURCES}.single_label.SingleLabel", "source": drawings(split)}


def evaluated(target: str, title: str, *settings: Settings, **more: Any) -> Settings:
    """An evaluation of any kind."""
    merged = {key: value for part in settings for key, value in part.items()}
    return {"_target_": f"openslip.evaluation.{target}", "title": title, **merged, **more}


OF_IMAGENET = {
    "train": {"_target_": f"{SOURCES}.image_folder.ImageFolder", "root": f"{IMAGENET}/train"},
    "test": {"_target_": f"{SOURCES}.image_folder.ImageFolder", "root": f"{IMAGENET}/val"},
}
SEEN_IMAGES = "(held-out images of seen combinations)"
SEEN = {"train": builtin("train"), "test": builtin("seen")}
THREE_BUILTIN = {"train": builtin("train"), "seen": builtin("seen"), "unseen": builtin("unseen")}
THREE_DRAWINGS = {"train": single("train"), "seen": single("val"), "unseen": single("unseen")}
NEAREST = {"_target_": "openslip.evaluation.frozen_classifiers.NearestNeighbours", **NEIGHBOURS}
REGRESSION = {"_target_": "openslip.evaluation.frozen_classifiers.LogisticRegression", **LOGISTIC}
ONE_BATCH = {"loss_batch_size": 256}
NO_SWEEP = {"validation": None}

OTHERS = {
    # ImageNet
    "imagenet_knn": evaluated(  # DINO's k; the first is the headline
        "knn.KNN", "ImageNet k-NN top-1", OF_IMAGENET, PUBLISHED, k=[20, 10, 100, 200], temperature=0.07
    ),
    "imagenet_probe": evaluated(
        "probe.LinearProbe",
        "ImageNet linear probe top-1",
        *(OF_IMAGENET, SWEPT, BEFORE_THE_PROJECTION, PUBLISHED),
        seed=0,
        precision="float32",
    ),
    "imagenet_tokens": evaluated(
        "token_zeroshot.TokenZeroShot",
        "ImageNet zero-shot by tokens, top-1",
        PUBLISHED,
        source=OF_IMAGENET["test"],
        classnames="imagenet",
        templates="imagenet7",
        count_padding=False,
    ),
    # the user's own images and shards
    "folder": evaluated(
        "zeroshot.ZeroShot",
        "zero-shot top-1",
        OWN_IMAGES,
        source=OWN,
        classnames=None,
        templates=["a photo of a {}."],
        underscores="space",
    ),
    "shards": evaluated(
        "zeroshot.ZeroShot",
        "zero-shot top-1",
        OWN_IMAGES,
        source={**OWN_SHARDS, "require": "label"},
        classnames="???",
        templates=["a photo of a {}."],
        underscores="space",
    ),
    "retrieval": evaluated("retrieval.Retrieval", "retrieval", OWN_IMAGES, source=OWN_SHARDS),
    "geometry": evaluated("geometry.Geometry", "geometry", OWN_IMAGES, source=OWN_SHARDS),
    "held_out": evaluated("held_out_loss.HeldOutLoss", "held-out loss", ONE_BATCH, OWN_IMAGES, source=OWN_SHARDS),
    "knn": evaluated("knn.KNN", "k-NN top-1", NEIGHBOURS, OWN_IMAGES, train=OWN, test=OWN),
    "probe": evaluated(
        "probe.LinearProbe",
        "linear probe top-1",
        *(SWEPT, BEFORE_THE_PROJECTION, OWN_IMAGES),
        train=OWN,
        test=OWN,
        seed=0,
        precision="float64",
    ),
    "few_shot": evaluated("few_shot.FewShot", "few-shot top-1", FEW_SHOTS, OWN_IMAGES, train=OWN, test=OWN),
    # the built-in dataset
    "builtin": evaluated(
        "zeroshot.ZeroShot",
        "zero-shot top-1 (unseen combinations)",
        BUILTIN,
        source=builtin("unseen"),
        classnames=None,
        templates=TEMPLATES,
        attributes=ATTRIBUTES,
    ),
    "builtin_tokens": evaluated(
        "token_zeroshot.TokenZeroShot",
        "token-wise zero-shot top-1 (unseen combinations)",
        BUILTIN,
        source=builtin("unseen"),
        classnames=None,
        templates=TEMPLATES,
        count_padding=False,
    ),
    "builtin_retrieval": evaluated(
        "retrieval.Retrieval",
        "retrieval (one held-out image per seen combination)",
        BUILTIN,
        source={"_target_": f"{SOURCES}.one_per_class.OnePerClass", "source": builtin("seen")},
    ),
    "builtin_held_out": evaluated(  # as many pairs as in a batch of training
        "held_out_loss.HeldOutLoss", "held-out loss", BUILTIN, source=captioned("seen"), loss_batch_size=64
    ),
    "builtin_geometry": evaluated("geometry.Geometry", f"geometry {SEEN_IMAGES}", BUILTIN, source=captioned("seen")),
    "builtin_knn": evaluated("knn.KNN", f"k-NN top-1 {SEEN_IMAGES}", SEEN, NEIGHBOURS, BUILTIN),
    "builtin_probe": evaluated(
        "probe.LinearProbe",
        f"linear probe top-1 {SEEN_IMAGES}",
        *(SEEN, LOGISTIC, NO_SWEEP, BEFORE_THE_PROJECTION, BUILTIN),
        seed=0,
        precision="float64",
    ),
    "builtin_few_shot": evaluated("few_shot.FewShot", f"few-shot top-1 {SEEN_IMAGES}", SEEN, FEW_SHOTS, BUILTIN),
    "builtin_map": evaluated(
        "image_map.ImageMap",
        f"nearest neighbour on the map {SEEN_IMAGES}",
        BUILTIN,
        source=builtin("seen"),
        attributes=ATTRIBUTES,
        features="joint",
    ),
    "builtin_verification": evaluated(
        "verification.Verification",
        "verification (unseen combinations)",
        *(EPISODES, BUILTIN),
        source=builtin("unseen"),
        features="tower",
    ),
    "builtin_one_shot": evaluated(
        "verification.Verification",
        "siamese one-shot (unseen combinations)",
        *(EPISODES, BUILTIN),
        source=builtin("unseen"),
        features="joint",
        similarity="model",
    ),
    "builtin_semantic_codes": evaluated(
        "semantic_codes.SemanticCodes",
        "semantic codes (unseen combinations)",
        BUILTIN,
        train=builtin("train"),
        unseen=builtin("unseen"),
        attributes=ATTRIBUTES,
        ridge=1.0,
        c=0.316,
        tolerance=1e-4,  # scikit-learn's default
        max_iterations=1000,
        features="tower",
    ),
    "builtin_open_set": evaluated(
        "open_set.OpenSet",
        "open-set recognition",
        *(THREE_BUILTIN, GATE, BUILTIN),
        classifier=NEAREST,
        novelty=NOVELTY,
        classnames=None,
        templates=TEMPLATES,
        features="tower",
    ),
    "builtin_socher": evaluated(  # Socher et al. 2013: images in the space of the words, a gate before the classes
        "open_set.OpenSet",
        "seen and unseen classes behind a novelty gate",
        *(THREE_BUILTIN, GATE, BUILTIN),
        classifier=REGRESSION,
        novelty=OUTLIERS,
        classnames=None,
        templates=["{}"],
        features="joint",
    ),
    # the drawings
    "openclipart": evaluated(
        "seen_unseen.SeenUnseen",
        "zero-shot top-1 (held-out drawings)",
        DRAWINGS,
        seen=drawings("val"),
        unseen=drawings("unseen"),
        templates=["{}"],
    ),
    "openclipart_mean": evaluated(
        "nearest_mean.NearestMean",
        "nearest class mean (held-out drawings)",
        DRAWINGS,
        train=drawings("train"),
        test=drawings("val"),
    ),
    "openclipart_retrieval": evaluated(
        "retrieval.Retrieval",
        "retrieval (one held-out drawing per seen name)",
        DRAWINGS,
        source={"_target_": f"{SOURCES}.one_per_class.OnePerClass", "source": single("val")},
    ),
    "openclipart_open_set": evaluated(
        "open_set.OpenSet",
        "open-set recognition (held-out drawings)",
        *(THREE_DRAWINGS, GATE, DRAWINGS),
        classifier=NEAREST,
        novelty=NOVELTY,
        classnames=None,
        templates=["{}"],
        features="tower",
    ),
}
EVALUATIONS = SUITE | OF_CLIP_BENCHMARK | IMAGENETS | RETRIEVAL | OTHERS
LISTS = {  # evaluations that are several others
    "suite": [*SUITE, "imagenet"],
    "all": [
        *("builtin", "builtin_retrieval", "builtin_held_out", "builtin_geometry", "builtin_knn", "builtin_probe"),
        *("builtin_few_shot", "builtin_open_set", "builtin_verification", "builtin_map", "builtin_semantic_codes"),
    ],
}
