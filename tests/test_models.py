import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from patlib.models import ENCODERS, MODELS, AttentionGate, build_model, encoder_unet

SMALL = {"segnet": {"width": 8}, "attention_unet": {"width": 8}}  # others as they are
MULTIPLE = {"attention_unet": 16}  # of the padded size; 32 in the others
NUM_CLASSES = 5


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For networks this small, threads only wait for one another, long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


every_model = pytest.mark.parametrize("name", MODELS)
our_model = pytest.mark.parametrize("name", ["segnet", "attention_unet"])
smp_model = pytest.mark.parametrize("name", ["unet", "unetplusplus"])


def build(name, seed=0):
    torch.manual_seed(seed)
    return build_model(name, NUM_CLASSES, **SMALL.get(name, {}))


def build_trained(name):
    """In evaluation mode, with biases in batch norm as training leaves them.

    Without, a black border would stay black through the whole network and go unnoticed.
    """
    model = build(name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    return model


def images(batch, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator)


def convolutions(module):
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def channel_pairs(module):
    return [(m.in_channels, m.out_channels) for m in convolutions(module)]


def test_every_model_has_a_label_of_its_own():
    labels = [model.label for model in MODELS.values()]
    assert all(labels) and len(set(labels)) == len(MODELS)


# --- all networks ---------------------------------------------------------------------------------


@every_model
@torch.no_grad()
def test_logits_have_the_size_of_the_images(name):
    model = build(name).eval()
    for size in [(32, 32), (33, 47), (64, 96)]:
        assert model(images(2, *size)).shape == (2, NUM_CLASSES, *size)


@every_model
@torch.no_grad()
def test_logits_are_the_output_of_the_classifier_and_linear(name):
    model = build(name).eval()
    seen = []
    model.classifier.register_forward_hook(lambda module, args, output: seen.append(output))
    logits = model(images(2, 64, 64))
    assert isinstance(model.classifier, nn.Conv2d)
    assert model.classifier.out_channels == NUM_CLASSES
    assert torch.equal(logits, seen[0])
    assert (logits < 0).any() and (logits > 0).any()


@every_model
@torch.no_grad()
def test_smaller_images_are_padded_with_zeros_at_the_bottom_and_right(name):
    model = build_trained(name)
    small = images(1, 33, 70)
    multiple = MULTIPLE.get(name, 32)
    height, width = (math.ceil(side / multiple) * multiple for side in (33, 70))
    # After normalisation, where there is one, zero is the mean colour.
    colour = model.mean if hasattr(model, "mean") else torch.zeros(3, 1, 1)
    padded = colour.expand(1, 3, height, width).clone()
    padded[..., :33, :70] = small
    seen = []
    convolutions(model)[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    expected = model(padded)[..., :33, :70]
    torch.testing.assert_close(model(small), expected)
    # And no further than the network needs.
    assert [x.shape for x in seen] == [padded.shape] * 2


@every_model
@torch.no_grad()
def test_moving_the_image_moves_the_logits(name):
    # Exactly so for a move by the stride of the coarsest features, beyond the reach of the borders.
    model = build_trained(name)
    wide = images(1, 32, 1563)
    first, moved = model(wide[..., :-32]), model(wide[..., 32:])
    inner = slice(512, -512)
    torch.testing.assert_close(first[..., 32:][..., inner], moved[..., :-32][..., inner])
    assert not torch.allclose(first[..., inner], moved[..., inner], atol=1e-2)


@every_model
def test_the_same_seed_draws_the_same_weights(name):
    first, again, other = (build(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    kernels = [key for key in first if first[key].ndim == 4]
    assert kernels
    assert not any(torch.equal(first[key], other[key]) for key in kernels)


@every_model
def test_gradient_reaches_every_parameter(name):
    model = build(name)
    logits = model(images(2, 64, 64))
    (logits * torch.randn(logits.shape)).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@every_model
def test_the_batch_matters_in_training_only(name):
    model = build(name)
    batch = images(3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(model(batch)[:2], model(batch[:2]), atol=1e-3)
        model.eval()
        torch.testing.assert_close(model(batch)[:2], model(batch[:2]), rtol=1e-3, atol=1e-4)


@our_model  # of the others, test_gradient_reaches_every_parameter asks the same
def test_learns_a_simple_picture(name):
    model = build(name)
    target = torch.zeros(2, 32, 32, dtype=torch.long)
    target[0, 8:24, 4:20] = 1
    target[1, :, 16:] = 2
    picture = F.one_hot(target, 3).permute(0, 3, 1, 2).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(25):
        loss = F.cross_entropy(model(picture), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(picture).argmax(1) == target).float().mean() > 0.95


@every_model
@pytest.mark.parametrize("train", [True, False])
def test_bfloat16_and_channels_last(name, train):
    model = build(name).train(train).to(memory_format=torch.channels_last)
    batch = images(2, 64, 64).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert logits.is_contiguous(memory_format=torch.channels_last)
    logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_meta_device(name):
    # A forward pass on the meta device also proves that no value is looked at, so that no GPU is
    # waited for.
    with torch.device("meta"):
        model = build_model(name, NUM_CLASSES)
        logits = model(torch.rand(2, 3, 33, 47))
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    assert logits.shape == (2, NUM_CLASSES, 33, 47)


@every_model
@torch.no_grad()
def test_export(name):
    model = build(name).eval()
    batch = images(2, 33, 47)
    exported = torch.export.export(model, (batch,)).module()
    torch.testing.assert_close(exported(batch), model(batch))


@our_model
@torch.no_grad()
def test_compiles_into_one_graph(name):
    model = build(name).eval()
    batch = images(1, 33, 47)
    compiled = torch.compile(model, backend="eager", fullgraph=True)(batch)
    torch.testing.assert_close(compiled, model(batch))


@our_model
def test_initial_weights(name):
    torch.manual_seed(0)
    model = build_model(name, NUM_CLASSES, width=16)
    for convolution in convolutions(model):
        if convolution.weight.numel() > 10_000:
            fan_in = convolution.weight[0].numel()
            assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
            assert abs(convolution.weight.mean().item()) < 0.1 * math.sqrt(2 / fan_in)
        assert convolution.bias is None or not convolution.bias.any()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_classes", "params", "message"),
    [
        ("resnet", 3, {}, "model must be one of .*'segnet', 'unet', .*, got 'resnet'"),
        (["segnet"], 3, {}, r"model must be one of .*, got \['segnet'\]"),
        (
            "segnet",
            3,
            {"encoder": "resnet18"},
            "model 'segnet' has no parameter 'encoder', it has normalized_.*, stages, width",
        ),
        (
            "unet",
            3,
            {"width": 8},
            "model 'unet' has no parameter 'width', it has decoder_channels, encoder, .*",
        ),
        (
            "unetplusplus",
            3,
            {"pretrained": True},
            "model 'unetplusplus' has no parameter 'pretrained'",
        ),
        ("segnet", 3, {"width": 0}, "width must be an integer >= 1 and <= 65536, got 0"),
        ("segnet", 3, {"width": True}, "width must be an integer >= 1 and <= 65536, got True"),
        ("attention_unet", 3, {"width": 8.0}, "width must be an integer >= 1 and .* got 8.0"),
        ("attention_unet", 3, {"width": "8"}, "width must be an integer >= 1 and .* got '8'"),
        ("segnet", 3, {"stages": 0}, "stages must be an integer >= 1 and <= 5, got 0"),
        ("segnet", 3, {"stages": 6}, "stages must be an integer >= 1 and <= 5, got 6"),
        ("segnet", 3, {"stages": 4.0}, "stages must be an integer .*, got 4.0"),
        ("segnet", 3, {"stages": True}, "stages must be an integer .*, got True"),
        ("segnet", 0, {}, "num_classes must be an integer >= 1 and <= 65536, got 0"),
        ("attention_unet", -1, {}, "num_classes must be an integer >= 1 and <= 65536, got -1"),
        ("unet", True, {}, "num_classes must be an integer >= 1 and <= 65536, got True"),
        ("unetplusplus", 3.0, {}, "num_classes must be an integer >= 1 and <= 65536, got 3.0"),
        (
            "unet",
            3,
            {"encoder": "resnet19"},
            "encoder must be one of .*'resnet18', .*got 'resnet19'",
        ),
        ("unetplusplus", 3, {"encoder": None}, "encoder must be one of .*'resnet18', .*got None"),
        (
            "unet",
            3,
            {"encoder_weights": "imagenets"},
            "encoder_weights of 'resnet18' must be one of None, 'imagenet', .*got 'imagenets'",
        ),
        ("unet", 3, {"encoder_weights": True}, "encoder_weights of 'resnet18' must be .*got True"),
        (
            "unet",
            3,
            {"encoder": "dpn92", "encoder_weights": "imagenet"},
            "encoder_weights of 'dpn92' must be one of None, .*got 'imagenet'",
        ),
        (
            "unet",
            3,
            {"decoder_channels": [64, 32]},
            r"decoder_channels must be five integers or None, got \[64, 32\]",
        ),
        (
            "unetplusplus",
            3,
            {"decoder_channels": [64, 32, 16, 8, 0]},
            "decoder_channels must be an integer >= 1, got 0",
        ),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_refuses_wrong_arguments(name, num_classes, params, message, device):
    with torch.device(device), pytest.raises(ValueError, match=message):
        build_model(name, num_classes, **params)


@every_model
def test_refuses_wrong_images(name):
    with torch.device("meta"):
        model = build_model(name, NUM_CLASSES, **SMALL.get(name, {}))
        for shape, dtype, message in (
            ((2, 3, 31, 64), torch.float32, r"H and W >= 32, got \(31, 64\)"),
            ((2, 3, 64, 31), torch.float32, r"H and W >= 32, got \(64, 31\)"),
            ((2, 1, 64, 64), torch.float32, r"shape \(B, 3, H, W\), got .*\(2, 1, 64, 64\)"),
            ((3, 64, 64), torch.float32, r"shape \(B, 3, H, W\), got .*\(3, 64, 64\)"),
            ((2, 3, 64, 64), torch.uint8, "floating point .*, got torch.uint8"),
        ):
            with pytest.raises(ValueError, match=message):
                model(torch.zeros(shape, dtype=dtype))


# --- SegNet ---------------------------------------------------------------------------------------


def test_segnet_of_width_64_has_the_convolutions_of_vgg16():
    with torch.device("meta"):
        vgg16 = torchvision.models.vgg16().features
        segnet = build_model("segnet", 11, width=64)
    encoder = channel_pairs(segnet.encoder)
    assert len(encoder) == 13
    assert encoder == channel_pairs(vgg16)
    # The decoder mirrors it, but for the last convolution, which goes to the classes.
    mirrored = [(outputs, inputs) for inputs, outputs in reversed(encoder)]
    decoder = channel_pairs(segnet.decoder) + channel_pairs(segnet.classifier)
    assert decoder == [*mirrored[:-1], (64, 11)]
    assert {m.kernel_size for m in convolutions(segnet)} == {(3, 3)}


@pytest.mark.parametrize("stages", [1, 4])
def test_segnet_of_fewer_stages_is_the_first_ones_of_the_whole(stages):
    with torch.device("meta"):
        whole, part = (build_model("segnet", 11, width=4, stages=n) for n in (5, stages))
    assert channel_pairs(part.encoder) == channel_pairs(whole.encoder[:stages])
    assert channel_pairs(part.decoder) == channel_pairs(whole.decoder[-stages:])
    logits = build_model("segnet", 11, width=4, stages=stages)(torch.rand(2, 3, 33, 47))
    assert logits.shape == (2, 11, 33, 47)


def test_segnet_normalises_and_rectifies_after_every_convolution_but_the_last():
    model = build("segnet")
    for stage in (*model.encoder, *model.decoder):
        kinds = [type(layer) for layer in stage]
        assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * (len(kinds) // 3)
        assert all(layer.bias is None for layer in convolutions(stage))


def test_segnet_unpools_to_where_the_maxima_were():
    # With nothing but pooling and unpooling left, five times, the largest value of each square of
    # 32x32 must come back to its place, and zeros everywhere else.
    model = build("segnet")
    model.encoder = nn.ModuleList(nn.Identity() for _ in range(5))
    model.decoder = nn.ModuleList(nn.Identity() for _ in range(5))
    model.classifier = nn.Identity()
    batch = images(2, 64, 96)
    squares = batch.view(2, 3, 2, 32, 3, 32)
    largest = squares.amax(dim=(3, 5), keepdim=True)
    expected = torch.where(squares == largest, squares, 0).view_as(batch)
    assert expected.count_nonzero() == 2 * 3 * 2 * 3
    assert torch.equal(model(batch), expected)


# --- Attention U-Net ------------------------------------------------------------------------------


def plain_unet(model, x):
    """The U-Net of an AttentionUNet: its gates are left out."""
    skips = []
    for level in model.encoder:
        x = level(F.max_pool2d(x, 2) if skips else x)
        skips.append(x)
    for up, level, skip in zip(model.up, model.decoder, skips[-2::-1], strict=True):
        x = level(torch.cat([skip, up(x)], dim=1))
    return model.classifier(x)


@torch.no_grad()
def test_open_gates_leave_the_plain_unet():
    model = build("attention_unet").eval()
    batch = images(2, 64, 96)
    expected = plain_unet(model, batch)
    assert not torch.allclose(model(batch), expected, atol=1e-2)
    for gate in model.gates:
        gate.psi.bias.fill_(1e3)
    torch.testing.assert_close(model(batch), expected)


@torch.no_grad()
def test_closed_gates_leave_the_finest_skip_alone():
    model = build("attention_unet").eval()
    for gate in model.gates:
        gate.psi.bias.fill_(-1e3)
    batch = images(2, 64, 96)
    closed = model(batch)
    # The weights that read the gated skips are now without effect, those of the finest are not.
    coarse, finest = model.decoder[:-1], model.decoder[-1]
    for level in coarse:
        level[0].weight[:, : level[0].in_channels // 2] = 0
    torch.testing.assert_close(model(batch), closed)
    finest[0].weight[:, : finest[0].in_channels // 2] = 0
    assert not torch.allclose(model(batch), closed, atol=1e-2)


def test_every_gate_reads_the_level_below():
    model = build("attention_unet")
    channels = [(g.w_x.in_channels, g.w_g.in_channels) for g in model.gates]
    assert channels == [(64, 128), (32, 64), (16, 32)]


@torch.no_grad()
def test_gate_coefficients():
    torch.manual_seed(0)
    gate = AttentionGate(skip_channels=6, gating_channels=10, inner_channels=4)
    skip, gating = torch.randn(2, 6, 8, 12), torch.randn(2, 10, 4, 6)
    alpha = gate.coefficients(skip, gating)
    assert alpha.shape == (2, 1, 8, 12)
    assert (alpha > 0).all() and (alpha < 1).all()
    assert alpha.std() > 0.01
    assert torch.equal(gate(skip, gating), alpha * skip)
    assert not torch.allclose(gate.coefficients(skip, 2 * gating), alpha, atol=1e-3)


@torch.no_grad()
def test_gate_computes_the_formula():
    # On maps that are constant over the image, the formula of Oktay et al. needs no grid.
    torch.manual_seed(0)
    gate = AttentionGate(skip_channels=6, gating_channels=10, inner_channels=4)
    x, g = torch.randn(6), torch.randn(10)
    inner = gate.w_x.weight.sum((2, 3)) @ x + gate.w_g.weight[..., 0, 0] @ g + gate.w_g.bias
    expected = torch.sigmoid(gate.psi.weight.flatten() @ inner.clamp(min=0) + gate.psi.bias)
    alpha = gate.coefficients(
        x.view(1, 6, 1, 1).expand(1, 6, 8, 12), g.view(1, 10, 1, 1).expand(1, 10, 4, 6)
    )
    torch.testing.assert_close(alpha, expected.view(1, 1, 1, 1).expand_as(alpha))


@torch.no_grad()
def test_gate_upsamples_bilinearly():
    gate = AttentionGate(skip_channels=1, gating_channels=1, inner_channels=1)
    for weights, value in [(gate.w_x.weight, 0.0), (gate.w_g.weight, 1.0), (gate.psi.weight, 1.0)]:
        weights.fill_(value)
    gate.w_g.bias.zero_()
    gate.psi.bias.zero_()
    left, right = 0.6, 0.9
    gating = torch.logit(torch.tensor([left, right])).expand(1, 1, 2, 2)
    row = torch.tensor([left, 0.75 * left + 0.25 * right, 0.25 * left + 0.75 * right, right])
    alpha = gate.coefficients(torch.ones(1, 1, 4, 4), gating)
    torch.testing.assert_close(alpha, row.expand(1, 1, 4, 4))


# --- UNet and UNet++ ------------------------------------------------------------------------------


@pytest.fixture
def downloads(monkeypatch):
    """What would have been downloaded; every attempt ends with an OSError."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no download")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", refuse)
    return attempts


@smp_model
def test_downloads_weights_only_when_asked(name, downloads):
    build_model(name, NUM_CLASSES)
    with torch.device("meta"):
        build_model(name, NUM_CLASSES, encoder_weights="imagenet")
    assert downloads == []
    with pytest.raises(OSError, match="no download"):
        build_model(name, NUM_CLASSES, encoder_weights="imagenet")
    assert downloads


@smp_model
def test_decoder_channels(name):
    channels = [24, 16, 8, 8, 4]
    network = build_model(name, NUM_CLASSES, decoder_channels=channels)
    library = getattr(encoder_unet.smp, network.architecture)
    expected = library(
        "resnet18", encoder_weights=None, classes=NUM_CLASSES, decoder_channels=channels
    )
    shapes, wanted = ([tuple(p.shape) for p in n.parameters()] for n in (network.network, expected))
    assert shapes == wanted
    assert network.classifier.in_channels == 4


@torch.no_grad()
def test_checkpoint_of_a_pretrained_network_needs_no_download(monkeypatch):
    library = encoder_unet.smp
    network, asked = library.Unet, []

    def pretend(encoder, encoder_weights, classes):
        asked.append((encoder, encoder_weights))
        return network(encoder, encoder_weights=None, classes=classes)

    def published(encoder, weights):
        asked.append((encoder, weights))
        return {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}

    monkeypatch.setattr(library, "Unet", pretend)
    monkeypatch.setattr(library.encoders, "get_preprocessing_params", published)
    pretrained = build_model("unet", NUM_CLASSES, encoder_weights="ssl").eval()
    other = build_model("unet", NUM_CLASSES).eval()
    assert asked == [("resnet18", "ssl"), ("resnet18", "ssl"), ("resnet18", None)]
    batch = images(2, 32, 32)
    expected = (batch - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.4, 0.5, 0.6]
    ).view(3, 1, 1)
    torch.testing.assert_close(pretrained(batch), pretrained.network(expected))
    other.load_state_dict(pretrained.state_dict())
    assert torch.equal(other(batch), pretrained(batch))


@smp_model
@torch.no_grad()
def test_only_normalises_around_the_network(name):
    model = build(name).eval()
    batch = images(2, 64, 96)
    normalised = torchvision.transforms.functional.normalize(
        batch, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(model(batch), model.network(normalised))


def test_names_choose_the_network_and_the_encoder():
    with torch.device("meta"):
        networks = {
            name: build_model(name, 3, encoder="resnet34").network
            for name in ("unet", "unetplusplus")
        }
    assert type(networks["unet"]) is encoder_unet.smp.Unet
    assert type(networks["unetplusplus"]) is encoder_unet.smp.UnetPlusPlus
    blocks = [len(networks["unet"].encoder.get_submodule(f"layer{i}")) for i in (1, 2, 3, 4)]
    assert blocks == [3, 4, 6, 3]


@pytest.mark.parametrize(
    ("name", "encoder"),
    [("unetplusplus", "mobilenet_v2"), ("unet", "vgg16_bn"), ("unet", "efficientnet-b0")],
)
def test_other_encoders(name, encoder):
    assert encoder in ENCODERS
    with torch.device("meta"):
        model = build_model(name, 3, encoder=encoder)
        assert model(torch.rand(2, 3, 33, 47)).shape == (2, 3, 33, 47)
