"""Draw the picture of the README: the embedded data, cross-entropy beside PAT.

python book/ce_and_pat.py writes book/images/ce_and_pat.png; two runs of about a minute.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib

from patlib import RunConfig, load_model, train
from patlib.data import build_dataset
from patlib.plots import plot_panels

matplotlib.use("agg")
PICKED = (3, 33, 63, 93)  # spread over the 120 test images, not chosen by what they show

dataset = build_dataset("synthetic", split="test")
images, masks = zip(*(dataset.arrays(i) for i in PICKED), strict=True)
rows = {"truth": masks}
for loss, title in (("ce", "cross-entropy"), ("pat", "PAT")):
    with TemporaryDirectory() as folder:
        config = RunConfig(
            loss=loss,
            model="attention_unet",
            model_params={"width": 8},
            epochs=20,
            batch_size=8,
            output_dir=folder,
        )
        scores = train(config).result["test"]
        network, _ = load_model(folder)
    rows[f"{title}\nmIoU {scores['miou']:.2f}\ntail {scores['tail']:.2f}"] = [
        network(dataset[i][0][None]).argmax(1)[0].numpy() for i in PICKED
    ]
figure = plot_panels(images, rows, dataset.class_names)
path = Path(__file__).parent / "images" / "ce_and_pat.png"
path.parent.mkdir(exist_ok=True)
figure.savefig(path, dpi=100)
