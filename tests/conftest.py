"""Settings that all tests share."""

import gc
import os
import sys

# Many tests compare to the last bit, as only a CPU calculates. The notebooks, which `make test`
# runs next, use a GPU where there is one.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# No deadline: on a busy machine the first example pays for imports. Same examples every time.
settings.register_profile("repository", deadline=None, derandomize=True)
settings.load_profile("repository")


def pytest_collection_finish():
    """Look no more for garbage among what was imported: each time would take half a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()  # else triton would list its objects as leaks at exit


@pytest.fixture(autouse=True)
def seeded():
    """Draw the same random numbers whatever tests ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
