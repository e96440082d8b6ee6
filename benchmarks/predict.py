"""Images a second of `patlib predict`, beside a bare loop over the same network.

    python benchmarks/predict.py [--device cpu|cuda] [--quick]

500 drawn images of 240x320 as JPEG, labelled by a SegNet of width 16 at 96x128, its label maps
written as PNG:

1. `predict`: `patlib.label_maps.label_files`, which reads and writes in threads;
2. `loop`: a loop as one writes it, that opens and resizes the images of a batch, runs the network,
   resizes the logits back and saves the labels;
3. `network`: the network alone, on a batch that is always the same.

All by turns. Prints a table and writes benchmarks/records/predict-<device>.json.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import add_device, save, seconds, spread
from PIL import Image

from patlib import RunConfig, load_model, train
from patlib.data import build_dataset
from patlib.label_maps import label_files
from patlib.plots.colors import label_colors

SIZE, PHOTO, BATCH = (96, 128), (240, 320), 8


def bare_loop(network, files, out, palette, device) -> None:
    """Label files into a folder, in the plainest way."""
    for start in range(0, len(files), BATCH):
        images = [Image.open(file) for file in files[start : start + BATCH]]
        small = [np.asarray(i.resize(SIZE[::-1], Image.Resampling.BILINEAR)) for i in images]
        batch = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            logits = F.interpolate(network(batch.to(device)), size=PHOTO, mode="bilinear")
        for file, labels in zip(files[start:], logits.argmax(1).byte().cpu().numpy(), strict=False):
            label_map = Image.fromarray(labels)
            label_map.putpalette(palette)
            label_map.save(out / f"{file.stem}.png", compress_level=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_device(parser)
    parser.add_argument("--quick", action="store_true", help="24 images, one repetition")
    options = parser.parse_args()
    device = torch.device(options.device)
    number, repetitions = (24, 1) if options.quick else (500, 5)

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        photos = scratch / "photos"
        photos.mkdir()
        drawn = build_dataset("synthetic", image_size=PHOTO)
        for i in range(number):
            image, _ = drawn.arrays(i % len(drawn))
            Image.fromarray(image).save(photos / f"{i:03d}.jpg")
        files = sorted(photos.iterdir())
        run = scratch / "run"
        config = RunConfig(
            image_size=SIZE,
            model_params={"width": 16, "stages": 4},
            epochs=1,
            device=device.type,
            output_dir=str(run),
        )
        train(config, progress=False)
        network, content = load_model(run)
        network = network.to(device)
        palette = label_colors(np.arange(256), content["class_names"]).tobytes()
        batch = torch.rand(BATCH, 3, *SIZE, device=device)

        @torch.no_grad()
        def network_alone():
            for _ in range(0, number, BATCH):
                logits = network(batch)
            return logits.sum().item()

        rates = {"predict": [], "loop": [], "network": []}
        for repetition in range(repetitions + 1):
            places = [scratch / f"{name}{repetition}" for name in ("predict", "loop")]
            places[1].mkdir()
            work = {
                "predict": lambda out=places[0]: label_files(
                    run, [photos], out, batch_size=BATCH, device=device.type
                ),
                "loop": lambda out=places[1]: bare_loop(network, files, out, palette, device),
                "network": network_alone,
            }
            for name, function in work.items():
                taken = seconds(function, device)
                if repetition:  # the first one warms up
                    rates[name].append(number / taken)
        same = [np.asarray(Image.open(p / f"{files[-1].stem}.png")) for p in places]
        assert np.array_equal(*same), "both label alike"

    ratio = spread([a / b for a, b in zip(rates["predict"], rates["loop"], strict=True)])
    measured = {name: spread(values) for name, values in rates.items()}
    for name, values in measured.items():
        print(f"{name:>8}: {values['median']:7.1f} images/s")
    print(f"predict / loop: {ratio['median']:.3f} ({ratio['q1']:.3f} to {ratio['q3']:.3f})")
    setting = {"images": number, "photo": PHOTO, "image_size": SIZE, "batch_size": BATCH}
    print(save("predict", device, options.quick, setting=setting, rates=measured, ratio=ratio))


if __name__ == "__main__":
    main()
