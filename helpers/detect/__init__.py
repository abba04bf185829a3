"""Vehicles in a video: detected, followed, judged by the rules of the road."""

from helpers.detect.pipeline import process, record

__all__ = ["process", "record"]
