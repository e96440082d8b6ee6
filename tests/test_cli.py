"""The command line: what it writes, what it refuses, and its exit codes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import patlib.label_maps
from conftest import write_image
from patlib import Predictor, RunConfig, RunRecord, load_model, predict, train
from patlib.cli import build_parser, build_parsers, main
from patlib.data import build_dataset
from patlib.label_maps import label_files
from patlib.plots import class_colors


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained network of 8 classes."""
    from patlib.data.synthetic import NUM_IMAGES

    with pytest.MonkeyPatch.context() as patch:
        for split, n in {"train": 4, "validation": 2, "test": 2}.items():
            patch.setitem(NUM_IMAGES, split, n)
        folder = tmp_path_factory.mktemp("run")
        config = RunConfig(
            image_size=(32, 48),
            model_params={"width": 2, "stages": 2},
            epochs=1,
            batch_size=4,
            device="cpu",
            output_dir=str(folder),
        )
        train(config, progress=False)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Seven images of several sizes and names, in a folder with a subfolder."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(["a.jpg", "b.png", "in/a.jpg", "in/ß ü.jpeg", "c.d.png", "e.bmp"]):
        image = rng.integers(0, 256, (40 + i, 50, 3), np.uint8)
        write_image(tmp_path / "photos" / name, image)
    return tmp_path / "photos"


def complaint(capsys):
    """What is on standard error: one line, and perhaps a list or a layout, indented."""
    said = capsys.readouterr().err.rstrip().splitlines()
    assert said[0].startswith("patlib: ") and all(line.startswith("  ") for line in said[1:])
    return said[0]


# -- predict --------------------------------------------------------------------------------------


def test_predict_writes_what_predict_gives_with_the_colours_of_the_classes(run, photos, tmp_path):
    out = tmp_path / "out"
    command = ["predict", str(run), str(photos), "--out", str(out), "--batch_size", "2"]
    assert main([*command, "--overlay", "--prior_shift", "tau=0.5", "--device", "cpu"]) == 0
    names = load_model(run)[1]["class_names"]
    files = sorted(f for f in photos.rglob("*") if f.is_file())
    assert len(files) == 6
    for file in files:
        there = out / file.relative_to(photos).with_suffix("")
        written = Image.open(f"{there}.png")
        expected = predict(run, file, prior_shift={"tau": 0.5})
        np.testing.assert_array_equal(written, expected)
        assert written.mode == "P"
        colors = np.asarray(written.convert("RGB"))
        for label in np.unique(expected):
            wanted = [int(class_colors(names)[label][i : i + 2], 16) for i in (1, 3, 5)]
            assert (colors[expected == label] == wanted).all()
        # The overlay is the mean of the image and the colours, but for JPEG.
        blended = np.asarray(Image.open(f"{there}_overlay.jpg")).astype(float)
        image = np.asarray(Image.open(file).convert("RGB")).astype(float)
        assert abs((blended - (image + colors) / 2).mean()) < 2
        assert blended.shape == image.shape
    legend = json.loads((out / "classes.json").read_text())
    assert [c["name"] for c in legend["classes"]] == list(names)
    assert [c["value"] for c in legend["classes"]] == list(range(8))  # drawn images have no masks
    assert legend["prior_shift"] == {"tau": 0.5}


COLORS = ("#804080", "#00008e", "#dcdc00")


@pytest.mark.parametrize("values", [(26, 7, 200), COLORS], ids=["numbers", "colours"])
def test_label_maps_are_like_the_masks(tmp_path, values):
    """Each of the files is a mask that the data set reads, and means what predict says."""
    rng = np.random.default_rng(0)
    root = tmp_path / "mine"
    as_rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLORS], np.uint8)
    table = as_rgb if values == COLORS else np.array(values, np.uint8)
    for i in range(10):
        image = rng.integers(0, 256, (32, 32, 3), np.uint8)
        write_image(root / "images" / f"{i}.png", image)
        write_image(root / "masks" / f"{i}.png", table[rng.integers(0, 3, (32, 32))])
    classes = "".join(f'  "{v}": class {v[1:]}\n' if values == COLORS else f"  {v}: class {v}\n"
                      for v in values)  # fmt: skip
    (root / "classes.yaml").write_text(f"classes:\n{classes}image_size: [32, 32]\n")
    run = tmp_path / "run"
    config = RunConfig(
        dataset="folder", data_root=str(root), model_params={"width": 4, "stages": 2}, epochs=1,
        batch_size=4, device="cpu", output_dir=str(run),
    )  # fmt: skip
    train(config, progress=False)
    out = tmp_path / "out"
    assert main(["predict", str(run), str(root / "images"), "--out", str(out), "--overlay"]) == 0
    seen = set()
    for path in sorted(out.glob("*.png")):
        labels = predict(run, root / "images" / path.name)
        seen |= set(labels.ravel().tolist())
        written = Image.open(path)
        found = written.convert("RGB") if values == COLORS else written
        np.testing.assert_array_equal(np.asarray(found), table[labels])
        (root / "masks" / path.name).write_bytes(path.read_bytes())
    assert len(seen) > 1
    dataset = build_dataset("folder", root, "train")
    for i, sample in enumerate(dataset.samples):
        np.testing.assert_array_equal(dataset.arrays(i)[1], predict(run, sample.image))
    legend = json.loads((out / "classes.json").read_text())["classes"]
    assert [c["name"] for c in legend] == [f"class {str(v).lstrip('#')}" for v in values]
    if values == COLORS:
        assert [c["color"] for c in legend] == list(COLORS)
    else:
        assert [c["value"] for c in legend] == list(values)


def test_predict_takes_the_shift_that_a_comparison_recommends(run, photos, tmp_path, capsys):
    best = tmp_path / "best"
    shutil.copytree(run, best)
    (best / "chosen.json").write_text('{"method": "CE", "prior_shift": {"tau": 1.0}}')
    for number, (option, shift) in enumerate(
        {None: {"tau": 1.0}, "chosen": {"tau": 1.0}, "none": None, "tau=-1": {"tau": -1.0}}.items()
    ):
        out = tmp_path / f"out{number}"
        command = ["predict", str(best), str(photos / "b.png"), "--out", str(out)]
        assert main([*command, *([] if option is None else ["--prior_shift", option])]) == 0
        told = "with the prior shift tau=" if shift else "without a prior shift"
        assert told in capsys.readouterr().out
        expected = predict(best, photos / "b.png", prior_shift=shift)
        np.testing.assert_array_equal(Image.open(out / "b.png"), expected)


def test_predict_keeps_what_is_there_and_refuses_the_folder_of_another_network(
    run, photos, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    label_files(run, [photos / "a.jpg"], out)
    before = (out / "a.png").stat().st_mtime_ns
    labelled = []
    original = Predictor._label_batch
    monkeypatch.setattr(
        Predictor,
        "_label_batch",
        lambda self, images: labelled.extend(images) or original(self, images),
    )
    command = ["predict", str(run), str(photos), "--out", str(out)]
    assert main(command) == 0
    assert len(labelled) == 5 and (out / "a.png").stat().st_mtime_ns == before
    assert main(command) == 0 and len(labelled) == 5
    assert main([*command, "--prior_shift", "tau=1"]) == 2
    assert "holds label maps of another network or prior shift" in complaint(capsys)


def test_predict_takes_the_shift_that_validation_chose(run, photos, tmp_path):
    chosen = RunRecord.load(run / "record.json").result["shifted"]["any"]["prior_shift"]
    main(["predict", str(run), str(photos), "--out", str(tmp_path / "o"), "--prior_shift=chosen"])
    expected = predict(run, photos / "b.png", prior_shift=chosen)
    np.testing.assert_array_equal(Image.open(tmp_path / "o" / "b.png"), expected)


def test_a_broken_image_is_named_and_those_before_it_are_kept(run, photos, tmp_path, capsys):
    whole = (photos / "b.png").read_bytes()
    (photos / "d.png").write_bytes(whole[: len(whole) // 2])  # its header can be read
    out = tmp_path / "out"
    assert main(["predict", str(run), str(photos), "--out", str(out), "--batch_size", "1"]) == 2
    assert "d.png: the image file cannot be read" in complaint(capsys)
    assert {f.stem for f in out.glob("*.png")} == {"a", "b", "c.d"}
    assert not list(out.glob(".*")) and (out / "classes.json").is_file()
    command = ["predict", str(run), str(photos / "d.png"), "--out", str(tmp_path / "new")]
    assert main(command) == 2 and not (tmp_path / "new").exists()  # nothing was labelled


def test_predict_refuses_before_it_labels(run, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(patlib.label_maps, "Predictor", None)
    for images, message in {
        (photos / "nix.png",): "there is no file",
        (tmp_path / "empty",): "there is no image in the folder",
        (photos / "a.jpg", photos / "in" / "a.jpg"): "images must have different names, got",
    }.items():
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert main(["predict", str(run), *map(str, images), "--out", str(tmp_path / "out")]) == 2
        assert message in complaint(capsys)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(b"something else")
    for out, message in {
        photos: "out must not lie in the folder of the images, got",
        photos / "in" / "labels": "out must not lie in the folder of the images, got",
        tmp_path / "other": "where a.png is something else: there is no classes.json",
    }.items():
        assert main(["predict", str(run), str(photos), "--out", str(out)]) == 2
        assert message in complaint(capsys)
    for name in ("f.png", "g.png"):
        (photos / name).write_bytes(b"no image")
    assert main(["predict", str(run), str(photos), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and "2 files are not; nothing was labelled:" in said[0]
    assert [line.split(": ")[0].strip() for line in said[1:]] == [
        str(photos / name) for name in ("f.png", "g.png")
    ]
    for name in ("f.png", "g.png"):
        (photos / name).unlink()
    for option in (["--prior_shift", "tau=much"], ["--batch_size", "0"]):
        command = ["predict", str(run), str(photos), "--out", str(tmp_path / "out"), *option]
        assert main(command) == 2
        assert option[0][2:] in complaint(capsys)
    assert not (tmp_path / "out").exists()


# -- train ----------------------------------------------------------------------------------------


def test_train_takes_every_field_of_the_configuration(camvid_tree, tmp_path, capsys):
    command = f"""train --dataset camvid --data_root {camvid_tree} --image_size [32,40]
        --loss focal --loss_params.gamma 1.5 --model segnet --model_params {{"width":2,"stages":2}}
        --epochs 1 --batch_size 2 --learning_rate 1e-2 --device cpu --output_dir {tmp_path}/run"""
    assert main(command.split()) == 0
    record = RunRecord.load(tmp_path / "run" / "record.json")
    assert record.config["loss_params"] == {"gamma": 1.5, "class_weights": None}
    assert record.config["image_size"] == [32, 40] and record.config["learning_rate"] == 0.01
    assert f"{100 * record.result['test']['miou']:.1f} %" in capsys.readouterr().out


def test_help_of_train_is_that_of_the_fields(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and "``" not in text and ":func:" not in text
    for field in dataclasses.fields(RunConfig):
        assert f"--{field.name} " in text
    defaults = build_parser(build_parsers()).parse_args(["train"]).train
    assert RunConfig(**vars(defaults)) == RunConfig()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", 'expected "command" to be one of {train,predict,compare}'),
        ("trian", "must be train, predict, compare, got 'trian' (did you mean train?)"),
        ("train --epochs two", "epochs must be an integer, got 'two'"),
        ("train --learning_rate x", "learning_rate must be a number, got 'x'"),
        ("train --image_size 32 31", "image_size must be (H, W), two integers >= 32, got (32, 31)"),
        ("train --image_size 32", "image_size must be HEIGHT and WIDTH in pixels, such as 96 128"),
        ("train --image_size [32,48,3]", "image_size must be HEIGHT and WIDTH in pixels"),
        ("train --image-size [32,x]", "image_size must be HEIGHT and WIDTH in pixels"),
        ("train --loss_params 3", "loss_params must be names and values in braces"),
        ("train --image_sise [32,48]", "(did you mean --image_size?)"),
        ("compare x --buget 3", "(did you mean --budget?)"),
        ("predict a b --out c --overlai", "(did you mean --overlay?)"),
        ("predict a", "the following arguments are required: images, out"),
        ("compare x --seeds few", "seeds must be an integer, got 'few'"),
        ("compare x --model_params 3", "model_params must be names and values in braces"),
        ("train --epochs 0", "epochs must be an integer >= 1, got 0"),
        ("train --foo ce", "unrecognized arguments: --foo ce"),
        ("train --loss cee", "did you mean 'ce'?"),
        ("train --dataset camvid --data_root nowhere", "data_root must be a folder, got"),
    ],
)
def test_what_is_refused_is_named_with_code_2(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert message in complaint(capsys)


def test_options_may_have_hyphens(capsys):
    assert main(["train", "--image-size", "[32,31]", "--loss-params.gamma=1", "--loss=focal"]) == 2
    assert "image_size must be" in complaint(capsys)


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and patlib.__version__ in capsys.readouterr().out


def test_another_run_in_the_folder_is_refused_before_anything_is_read(
    run, camvid_tree, capsys, monkeypatch
):
    before = sorted(path.name for path in run.iterdir())
    monkeypatch.setattr("patlib.training.load_arrays", None)
    assert main(["train", "--output_dir", str(run), "--loss", "ce"]) == 2
    assert "holds another run: it differs in" in (said := complaint(capsys)) and "loss" in said
    (run / "record.json").rename(run / "kept")
    assert main(["train", "--output_dir", str(run), "--loss", "ce"]) == 2
    assert "holds another run: it differs in" in complaint(capsys)
    (run / "kept").rename(run / "record.json")
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_refusal_leaves_no_folder(tmp_path, capsys):
    (tmp_path / "there").mkdir()
    for out in ("new/run", "there"):
        command = ["train", "--output_dir", str(tmp_path / out), "--device", "cpu"]
        assert main([*command, "--batch_size", "100000", "--image_size", "[32,32]"]) == 2
        assert "batch_size must be at most the" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_fails_on_the_way_is_one_line_and_code_1(tmp_path, capsys, monkeypatch):
    import patlib.training

    for error, message in {
        FloatingPointError("the training loss became nan"): "the training loss became nan",
        OSError(28, "No space left on device", "x/last.ckpt"): "No space left",
        KeyboardInterrupt(): "interrupted",
        torch.OutOfMemoryError(): "OutOfMemoryError",
    }.items():

        def fails(*args, error=error):
            raise error

        monkeypatch.setattr(patlib.training, "train", fails)
        assert main(["train", "--output_dir", str(tmp_path)]) == 1
        assert message in complaint(capsys)
