"""Settings that all tests share."""

from hypothesis import settings

# No deadline: on a busy machine the first example pays for imports. Same examples every time.
settings.register_profile("repository", deadline=None, derandomize=True)
settings.load_profile("repository")
