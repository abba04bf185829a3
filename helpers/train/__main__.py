"""Train the configuration in a JSON file; `torchrun` starts this on several processes."""

import sys

from helpers import data, models
from helpers.config import Config
from helpers.train import fit, processes

processes.join()
config = Config.load(sys.argv[1])
if processes.is_first():
    data.load(config)  # decodes once, before the others look
processes.wait()
splits = data.load(config)
fit(models.build(config, len(splits.classes)), splits, config)
