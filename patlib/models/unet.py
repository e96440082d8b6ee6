"""U-Net (Ronneberger et al., MICCAI 2015) with a classification network as encoder."""

from patlib.models.encoder_unet import EncoderUNet


class UNet(EncoderUNet):
    """U-Net (Ronneberger et al., MICCAI 2015), ``Unet`` of segmentation-models-pytorch.

    Arguments, shapes and errors: :class:`patlib.models.EncoderUNet`.
    """

    label = "U-Net"
    architecture = "Unet"
