"""Files are read as OpenCV reads them."""

import numpy as np
import pytest

from mmgdrq_runtime import images
from mmgdrq_runtime.errors import InputError
from mmgdrq_runtime.images import load_image
from mmgdrq_runtime.preprocessing import installed

cv2 = pytest.importorskip('cv2', reason='OpenCV is not installed')
pillow = pytest.importorskip('PIL.Image', reason='Pillow is not installed')
PIXELS = np.random.default_rng(0).integers(0, 256, (14, 9, 3), dtype=np.uint8)


@pytest.fixture
def without_opencv(monkeypatch):
    monkeypatch.setattr(images, 'installed', lambda name: None if name == 'cv2' else installed(name))


@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'P', '1', 'I;16'])
def test_kinds_of_png(tmp_path, mode, without_opencv):
    if mode == 'I;16':
        picture = pillow.fromarray(PIXELS[..., 0].astype(np.uint16) * 257 + 3)
    else:
        picture = pillow.fromarray(PIXELS).convert(mode)
    if mode == 'RGBA':
        picture.putalpha(pillow.fromarray(PIXELS[..., 1]))
    picture.save(tmp_path / 'image.png')
    expected = cv2.imread(str(tmp_path / 'image.png'))
    assert np.array_equal(load_image(tmp_path / 'image.png'), expected)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_photograph_is_turned_upright(tmp_path, orientation, without_opencv):
    exif = pillow.Exif()
    exif[0x0112] = orientation
    pillow.fromarray(np.kron(PIXELS, np.ones((4, 4, 1), np.uint8))).save(tmp_path / 'image.jpg', exif=exif)
    assert np.array_equal(load_image(str(tmp_path / 'image.jpg')), cv2.imread(str(tmp_path / 'image.jpg')))


def test_opencv_reads_the_same(tmp_path):
    cv2.imwrite(str(tmp_path / 'image.png'), PIXELS)
    assert np.array_equal(load_image(tmp_path / 'image.png'), PIXELS)
    assert load_image(PIXELS) is PIXELS


@pytest.mark.parametrize('content', [b'', b'no image', b'\x89PNG\r\n\x1a\n' + bytes(40)])
@pytest.mark.parametrize('library', ['cv2', 'pillow'])
def test_what_is_no_image(tmp_path, content, library, request):
    if library == 'pillow':
        request.getfixturevalue('without_opencv')
    (tmp_path / 'image.png').write_bytes(content)
    with pytest.raises(InputError, match=r'image\.png cannot be read'):
        load_image(tmp_path / 'image.png')


@pytest.mark.parametrize(
    'image', [PIXELS[..., 0], PIXELS.astype(float), PIXELS[..., :2], PIXELS[:0], 'missing.png', None, 3]
)
def test_what_is_refused(image):
    with pytest.raises(InputError, match='image'):
        load_image(image)


def test_without_a_library_arrays_still_work(tmp_path, monkeypatch):
    monkeypatch.setattr(images, 'installed', lambda name: None)
    cv2.imwrite(str(tmp_path / 'image.png'), PIXELS)
    assert load_image(PIXELS) is PIXELS
    with pytest.raises(InputError, match='pip install pillow'):
        load_image(tmp_path / 'image.png')
