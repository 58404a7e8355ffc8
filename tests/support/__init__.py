"""What tests of several folders need; conftest.py puts tests/ on the path of imports."""
