"""Inside a network: filters, feature maps, what excites a neuron, which pixels matter."""

from helpers.visualize.guided import guided_backprop

__all__ = ["guided_backprop"]
