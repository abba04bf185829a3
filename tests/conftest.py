"""Settings that all tests share."""

import os

# Many tests compare to the last bit, as only a CPU calculates. The notebooks, which `make test`
# runs next, use a GPU where there is one.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from hypothesis import settings  # noqa: E402

# No deadline: on a busy machine the first example pays for imports. Same examples every time.
settings.register_profile("repository", deadline=None, derandomize=True)
settings.load_profile("repository")
