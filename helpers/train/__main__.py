"""Train the configuration in a JSON file; `torchrun` starts this on several processes.

    torchrun ... -m helpers.train CONFIG.JSON [FOLDER in which a relative folder:PATH starts]
"""

import os
import sys

from helpers.runs.config import Config
from helpers.train import processes, train

config = Config.load(sys.argv[1])
processes.join()
os.chdir(sys.argv[2] if len(sys.argv) > 2 else ".")
try:
    train(config)
finally:
    processes.leave()
