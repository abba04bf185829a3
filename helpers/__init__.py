"""Five Blocks: the code behind the notebooks. Data flows one way:
config -> data -> models -> train -> a run folder -> everything that reads runs.
"""

import gc
import sys
from pathlib import Path

# torch makes a million objects that stay until the end: looking for garbage among them takes half a
# second while they are made, and another when Python exits. What torchvision adds is not frozen:
# triton would then list its objects as leaks.
if "torch._dynamo" not in sys.modules:
    gc.disable()
    import torch  # noqa: F401

    gc.freeze()
    import torchvision  # noqa: F401

    gc.enable()

ROOT = Path(__file__).resolve().parent.parent  # anchors every relative path of the project

if sys.platform == "linux" and not Path("/proc/self").exists():
    raise OSError("/proc is not mounted, so neither the memory's size nor which processes live can "
                  "be known: mount it (mount -t proc proc /proc) and start again")  # fmt: skip
