"""Package metadata, and the files that mim looks for inside an installed package."""

import os
import re
import shutil
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithMim(build_py):
    """Adds configs, tools and the model index as mmgdrq/.mim (links in an editable install)."""

    def run(self):
        super().run()
        mim = Path(ROOT if self.editable_mode else self.build_lib, 'mmgdrq', '.mim')
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        ignore = shutil.ignore_patterns('__pycache__', '*.pyc', 'setup_env.py')
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
    'mmgdrq.quant._kernels',
    ['mmgdrq/quant/kernels.c'],
    extra_compile_args=['-std=gnu11', '-O3', '-fno-math-errno', '-fno-trapping-math', '-ffp-contract=off', '-fopenmp'],
    optional=True,
)


def version():
    text = (ROOT / 'mmgdrq' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"__version__ = '(.+)'", text)[1]


def readme():
    path = ROOT / 'README.md'
    return path.read_text(encoding='utf-8') if path.exists() else ''


setup(
    name='mmgdrq',
    version=version(),
    description='Low-bit quantization-aware training for OpenMMLab with GDRQ',
    long_description=readme(),
    long_description_content_type='text/markdown',
    author='The mmgdrq authors',
    license='Apache-2.0',
    keywords='quantization, quantization-aware training, low-bit, computer vision, OpenMMLab',
    packages=find_packages(include=['mmgdrq', 'mmgdrq.*']),
    ext_modules=[KERNELS],
    cmdclass={'build_py': BuildWithMim},
    python_requires='>=3.9',
    # Meant for an environment that has torch and OpenMMLab already: not asking for these is what
    # keeps them in place. requirements.txt has the releases that the tests run with.
    install_requires=['safetensors'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.9',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    zip_safe=False,
)
