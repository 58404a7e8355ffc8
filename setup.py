"""What pyproject.toml cannot say: the source distribution keeps the link normreg/kernels."""

import os

from setuptools import setup
from setuptools.command.sdist import sdist


class WithTheLink(sdist):
    """A source distribution that is imported, tested and built from as a checkout is."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        os.symlink("../kernels", os.path.join(base_dir, "normreg", "kernels"))


setup(cmdclass={"sdist": WithTheLink})
