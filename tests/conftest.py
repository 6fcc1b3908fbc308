"""What holds for all tests."""

from hypothesis import settings

# A shared machine stalls now and then; time limits are pytest-timeout's affair.
settings.register_profile("pillion", deadline=None)
settings.load_profile("pillion")
