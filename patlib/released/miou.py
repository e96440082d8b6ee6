"""mIoU as the released code measures it."""

import torch
from torch import Tensor

from patlib.checks import check_integer

# Added to intersection and union of each class.
_SMOOTHING = 1e-10


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
