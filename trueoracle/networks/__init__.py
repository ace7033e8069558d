"""Dense networks; importing the room registers the shipped ones."""

from trueoracle.networks import lenet, mlp, resnet, vgg, vit

__all__ = ["lenet", "mlp", "resnet", "vgg", "vit"]
