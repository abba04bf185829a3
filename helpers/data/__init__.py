"""Images: found or downloaded, looked over, decoded once, cut into batches, augmented."""

from helpers.data.images import ImageSet, Splits, decode, load
from helpers.data.quality import check

__all__ = ["ImageSet", "Splits", "check", "decode", "load"]
