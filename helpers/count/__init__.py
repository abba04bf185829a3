"""Parameters, MACs and FLOPs: counted layer by layer, and derived as algebra."""

from helpers.count.layers import Counts, count

__all__ = ["Counts", "count"]
