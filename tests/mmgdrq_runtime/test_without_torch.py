"""What starts where torch, OpenMMLab and cv2 are not installed."""

import subprocess
import sys

BLOCK = """
import sys
for name in ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2'):
    sys.modules[name] = None  # an import of it fails, as if it were not installed
"""
FOREIGN = (
    "sorted(name for name in sys.modules if name.split('.')[0].startswith(('torch', 'mm')) and 'gdrq' not in name)"
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_runtime_imports_no_torch_where_it_is_installed():
    assert run(f'import mmgdrq_runtime.engines, mmgdrq_runtime.manifest, sys; print({FOREIGN})') == '[]'


def test_the_package_starts_without_torch():
    assert run(f'{BLOCK}\nimport mmgdrq.runtime\nprint(mmgdrq.runtime.__name__, mmgdrq.__version__)').split()


def test_a_missing_name_says_what_is_missing():
    code = f'{BLOCK}\nimport mmgdrq\ntry:\n    mmgdrq.quantize\nexcept ImportError as error:\n    print(error)'
    assert 'torch' in run(code)


def test_a_name_that_nobody_has():
    code = f'{BLOCK}\nimport mmgdrq\nprint(hasattr(mmgdrq, "quantise"))'
    assert run(code) == 'False'
