"""Records that come from no training, and small grids."""

import numpy as np
import yaml

from patlib.data import DATASETS, build_dataset
from patlib.metrics import class_groups
from patlib.records import RunRecord


def counts(tp, true, predicted):
    """(1, N, 3, L) from true positives, true and predicted pixels (N, L)."""
    return np.stack([tp, true, predicted], axis=1)[None]


def fake_record(planned, folder, bonus=0.0, validation=None, images=20, tested="same"):
    """A record and its counts that agree with each other, but come from no training."""
    s = planned.settings
    names = build_dataset("synthetic").class_names
    if s["dataset"] != "synthetic":
        names = DATASETS[s["dataset"]].class_names
        names = [*names, "void"] if s["void"] == "class" else names
    rng = np.random.default_rng([s["seed"], *map(ord, planned.method)])
    class_counts = (1e6 * 10 ** (-2.5 * np.arange(len(names)) / len(names))).astype(int)
    true = 50 + (np.random.default_rng(0).random((images, len(names))) * class_counts / 50)
    share = np.clip(0.5 + bonus + 0.02 * rng.standard_normal(true.shape), 0, 1)
    table = counts((true * share).astype(int), true.astype(int), true.astype(int))[0]
    sums = table.sum(0)
    iou = sums[0] / (sums[1] + sums[2] - sums[0])
    scores = dict(
        miou=iou.mean(),
        pixel_accuracy=sums[0].sum() / sums[1].sum(),
        dice_error=1 - np.mean(2 * sums[0] / (sums[1] + sums[2])),
        released_miou=iou[:3].mean(),
        iou=iou.tolist(),
        **{group: iou[members].mean() for group, members in class_groups(class_counts).items()},
    )
    scores = {k: v if k == "iou" else float(v) for k, v in scores.items()}
    epochs = range(1, s["epochs"] + 1)
    miou = scores["miou"] if validation is None else validation
    record = RunRecord(
        config={**s, "device": "cpu"},
        result=dict(
            test=scores,
            validation={**scores, "miou": miou},
            curves=dict(
                epoch=list(epochs),
                train_loss=[1 / e for e in epochs],
                validation_miou=[miou * (1 - 1 / (e + 1)) for e in epochs],
                validation_pixel_accuracy=[0.5 for _ in epochs],
            ),
            class_names=list(names),
            class_counts=class_counts.tolist(),
            results_version=1,
        ),
        provenance=dict(
            device="cpu",
            seconds=dict(data=1.0, training=50.0, all=60.0),
            data=dict(train="same", test=tested),
            num_images=dict(train=9, validation=3, test=images),
        ),
    )
    record.save(folder / f"{planned.name}.json")
    shown = np.linspace(0, images - 1, 8).astype(int)
    labels = np.zeros((8, *s["image_size"]), np.uint8)
    np.savez(folder / f"{planned.name}.npz", counts=table, shown=shown, labels=labels)


def grid_file(tmp_path, methods, seeds=(0, 1, 2), **settings):
    base = dict(dataset="synthetic", image_size=[32, 40], model="attention_unet", epochs=2)
    block = dict(settings={**base, **settings}, methods=methods, seeds=list(seeds))
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"blocks": [block]}, sort_keys=False))
    return path
