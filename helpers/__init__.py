"""Five Blocks: the code behind the notebooks. Data flows one way:
config -> data -> models -> train -> a run folder -> everything that reads runs.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # anchors every relative path of the project
