"""Read images from files, and check those that are given as arrays."""

from pathlib import Path
from typing import Union

import numpy as np

from .errors import InputError
from .preprocessing import installed

Image = Union[str, Path, np.ndarray]


def load_image(image: Image) -> np.ndarray:
    """Return an image as OpenCV would, shape ``(H, W, 3)``, uint8, BGR.

    Args:
        image: a file, or such an array.

    Raises:
        InputError: the file does not exist or is no image, the array has another shape or type, or neither OpenCV nor
            Pillow is installed to read files.
    """
    if isinstance(image, np.ndarray):
        return _checked(image)
    if not isinstance(image, (str, Path)):
        raise InputError(f'image: {type(image).__name__}; expected a file or a BGR array')
    if not Path(image).is_file():
        raise InputError(f'image: {image} does not exist')
    for module, read in (('cv2', _read_cv2), ('PIL.Image', _read_pillow)):
        library = installed(module)
        if library:
            return read(library, Path(image))
    raise InputError(
        f'image: {image} needs Pillow or OpenCV to be read. Run `pip install pillow`, or pass an array (H, W, 3), '
        'uint8, BGR'
    )


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f'image: an array of shape {image.shape}, {image.dtype}; expected (H, W, 3), uint8, BGR, as cv2.imread '
            'gives it'
        )
    return image


def _read_cv2(cv2, file: Path) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(file.read_bytes() or b' ', np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f'image: {file} cannot be read as an image (OpenCV knows no such format)')
    return image


def _read_pillow(pillow, file: Path) -> np.ndarray:
    from PIL import ImageOps

    try:
        with pillow.open(file) as opened:
            return _as_bgr(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise InputError(f'image: {file} cannot be read as an image ({error})') from None


def _as_bgr(opened) -> np.ndarray:
    if opened.mode.startswith('I;16') or opened.mode == 'I':  # 16 bits of grey
        grey = (np.asarray(opened).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, 2)
    if opened.mode in ('RGBA', 'LA'):  # alpha is dropped, not blended
        opened = opened.convert('RGBA')
        return np.ascontiguousarray(np.asarray(opened)[..., 2::-1])
    return np.ascontiguousarray(np.asarray(opened.convert('RGB'))[..., ::-1])
