"""UNet++ (Zhou et al., DLMIA 2018) with a classification network as encoder."""

from patlib.models.encoder_unet import EncoderUNet


class UNetPlusPlus(EncoderUNet):
    """UNet++ (Zhou et al., DLMIA 2018), ``UnetPlusPlus`` of segmentation-models-pytorch.

    Deep supervision is off. Arguments, shapes and errors:
    :class:`patlib.models.EncoderUNet`.
    """

    label = "U-Net++"
    architecture = "UnetPlusPlus"
