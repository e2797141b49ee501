"""The C extension, and the files that mim looks for inside an installed package; all else is in pyproject.toml."""

import os
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithMim(build_py):
    """Adds configs, tools and the model index as mmgdrq/.mim (links in an editable install)."""

    def run(self):
        super().run()
        mim = Path(ROOT if self.editable_mode else self.build_lib, 'mmgdrq', '.mim')
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        ignore = shutil.ignore_patterns('__pycache__', '*.pyc')
        for name in ('configs', 'tools', 'model-index.yml'):
            source = ROOT / name
            if self.editable_mode and source.exists():
                (mim / name).symlink_to(os.path.relpath(source, mim))
            elif source.is_dir():
                shutil.copytree(source, mim / name, ignore=ignore)
            elif source.exists():
                shutil.copy(source, mim / name)


# A plain C library that mmgdrq loads with ctypes: it needs neither torch nor Python headers, and is optional. OpenMP's
# functions come from the library that torch has loaded already.
KERNELS = Extension(
    'mmgdrq.kernels._kernels',
    ['mmgdrq/kernels/kernels.c'],
    extra_compile_args=['-std=gnu11', '-O3', '-fno-math-errno', '-fno-trapping-math', '-ffp-contract=off', '-fopenmp'],
    optional=True,
)

setup(ext_modules=[KERNELS], cmdclass={'build_py': BuildWithMim}, zip_safe=False)
