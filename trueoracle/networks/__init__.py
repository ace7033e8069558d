"""Dense networks; importing the room registers the shipped ones."""

from trueoracle.networks import lenet, mlp

__all__ = ["lenet", "mlp"]
