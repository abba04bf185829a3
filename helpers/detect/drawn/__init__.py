"""Drawn traffic: scenes and clips whose boxes, identities and events are known exactly."""
