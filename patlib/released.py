"""What the authors' released code computes where it differs from the paper, in our own words.

The code that was released for "PAT: Pixel-wise Adaptive Training for Long-tailed Segmentation"
(version 4, arXiv 2404.05393) trains with another loss than Eq. (4) and (5), and measures another
mIoU than the usual one. Both are here so that its numbers can be understood; neither is meant for
new work. For the loss of the paper see `patlib.losses.pat_loss`.
"""

import torch
from torch import Tensor

from patlib.checks import check_integer, check_number
from patlib.losses._checks import check_batch
from patlib.losses._formula import computed_in, true_class_log_prob

# Added to intersection and union of each class.
_SMOOTHING = 1e-10


def pat_inap(logits: Tensor, target: Tensor, tau: float = 1.0) -> Tensor:
    """Released PAT, variant "inap": mean over B·L·H·W of -log p · w, w = 1 / (2 exp(p - 1)).

    p is the probability of the pixel's true class under softmax(logits / τ). Beside Eq. (4) and
    (5): nothing is divided by the class size S; T of Eq. (5) is missing, τ divides the logits
    instead; and the mean over the one-hot target's L channels makes the loss L times smaller than
    a mean over pixels. The gradient flows through w. w lies in [0.5, 1.36].

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, 0 ... L-1. The released code has no ignored pixels: void is
            a class (data loaded with `void="class"`), and 255 is refused.
        tau: τ > 0, divides the logits.

    Raises:
        ValueError: τ not positive or not finite; shapes, types or labels other than these.

    >>> logits = torch.zeros(1, 2, 1, 1)
    >>> target = torch.zeros(1, 1, 1, dtype=torch.int64)
    >>> round(pat_inap(logits, target).item(), 4)  # log 2 / (2 exp(-1/2)) / 2
    0.2857
    """
    return _released_pat(logits, target, tau, times_classes=False)


def pat_ina(logits: Tensor, target: Tensor, tau: float = 1.0) -> Tensor:
    """Released PAT, variant "ina": as `pat_inap`, with w = 1 / (2 exp(L (p - 1))).

    L is the number of classes, so that w lies in [0.5, exp(L) / 2]: with 19 classes a pixel of
    p = 0 weighs 178 million times one of p = 1.

    Args, Raises: as `pat_inap`.

    >>> logits = torch.zeros(1, 2, 1, 1)
    >>> target = torch.zeros(1, 1, 1, dtype=torch.int64)
    >>> round(pat_ina(logits, target).item(), 4)  # log 2 / (2 exp(-1)) / 2
    0.471
    """
    return _released_pat(logits, target, tau, times_classes=True)


def _released_pat(logits: Tensor, target: Tensor, tau: float, times_classes: bool) -> Tensor:
    tau = check_number("tau", tau, above=0)
    check_batch(logits, target, ignore_index=255, reduction="mean")
    if (target == 255).any():
        raise ValueError(
            "target has ignored pixels (255), which the released code does not know: load the "
            'data with void="class"'
        )
    logits = logits.to(computed_in(logits))
    log_p = true_class_log_prob(logits / tau, target, ignore_index=255)
    exponent = logits.shape[1] if times_classes else 1
    w = 1 / (2 * torch.exp(exponent * (log_p.exp() - 1)))
    return (w * -log_p).sum() / max(logits.numel(), 1)


def released_miou(prediction: Tensor, target: Tensor, num_classes: int = 3) -> float:
    """mIoU of one batch as the released code measures it; its runs report the mean over batches::

        mean over the classes c < num_classes that are present in the batch's target of
        (|prediction = c and target = c| + 1e-10) / (|prediction = c or target = c| + 1e-10)

    The default of 3 classes is the released one, used there with every data set: of 13 or 19
    classes only 0, 1 and 2 count. A class absent from the batch's target is left out, so that
    predicting it wrongly there costs nothing.

    Args:
        prediction: class labels, integer, any shape.
        target: class labels, integer, same shape. Pixels of label 255 are left out, with what is
            predicted there (the released code has none).
        num_classes: how many classes count, from class 0.

    Returns:
        The mean, in [0, 1]; NaN if none of those classes is in the target.

    Raises:
        ValueError: shapes that differ, labels that are not integers or are negative.

    >>> prediction, target = torch.tensor([0, 0, 1, 5]), torch.tensor([0, 1, 1, 4])
    >>> round(released_miou(prediction, target), 6)  # of classes 0 and 1: there is no 2
    0.5
    """
    if prediction.shape != target.shape:
        raise ValueError(
            "prediction and target must have the same shape, got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    for name, labels in (("prediction", prediction), ("target", target)):
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"{name} must be integer class labels, got {labels.dtype}")
    num_classes = check_integer("num_classes", num_classes, minimum=1)
    valid = target != 255
    prediction, target = prediction[valid].long(), target[valid].long()
    labels = torch.cat([prediction, target, prediction.new_tensor([num_classes - 1])])
    if labels.min() < 0:
        raise ValueError(f"labels must be >= 0, got {labels.min().item()}")
    size = int(labels.max()) + 1
    pairs = torch.bincount(target * size + prediction, minlength=size**2)
    return released_miou_from_confusion(pairs.reshape(size, size), num_classes)


def released_miou_from_confusion(confusion: Tensor, num_classes: int = 3) -> float:
    """`released_miou` from the confusion matrix of one batch.

    Args:
        confusion: (L, L), integer; [t, p] counts the pixels of class t predicted as p.
        num_classes: how many classes count, from class 0; at most L.

    Returns:
        The mean, in [0, 1]; NaN if none of those classes is in the target.

    Raises:
        ValueError: confusion is not a square integer matrix, or has fewer than num_classes rows.

    >>> confusion = torch.tensor([[6, 2], [0, 2]])
    >>> round(released_miou_from_confusion(confusion, num_classes=2), 6)  # of 6/8 and 2/4
    0.625
    """
    num_classes = check_integer("num_classes", num_classes, minimum=1)
    integer = not (confusion.is_floating_point() or confusion.is_complex())
    if not integer or confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(
            "confusion must be an integer (L, L) matrix, got "
            f"{confusion.dtype} of shape {tuple(confusion.shape)}"
        )
    if num_classes > len(confusion):
        raise ValueError(
            f"num_classes must be at most the {len(confusion)} classes of the confusion matrix, "
            f"got {num_classes}"
        )
    confusion = confusion.cpu()
    intersection = confusion.diagonal()[:num_classes].double()
    true = confusion.sum(1)[:num_classes]
    predicted = confusion.sum(0)[:num_classes]
    union = (true + predicted).double() - intersection
    iou = (intersection + _SMOOTHING) / (union + _SMOOTHING)
    return iou[true > 0].mean().item()
