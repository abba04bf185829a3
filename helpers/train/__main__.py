"""Train the configuration in a JSON file; `torchrun` starts this on several processes."""

import sys

from helpers.runs.config import Config
from helpers.train import processes, train

processes.join()
try:
    train(Config.load(sys.argv[1]))
finally:
    processes.leave()
