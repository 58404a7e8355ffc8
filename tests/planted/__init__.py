"""Bugs planted in the library, a patch each, and what proves that the tests find them."""
