"""Dense networks; importing this package registers the shipped ones."""

from trueoracle.networks import language, lenet, mlp, resnet, vgg, vit

__all__ = ["language", "lenet", "mlp", "resnet", "vgg", "vit"]
