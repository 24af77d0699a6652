"""From pictures to the network's square and back: stretched over all of it, or in their own aspect ratio on grey; and
to sizes of their own, for networks that see pictures of any shape."""

from typing import Literal, get_args

import cv2
import numpy as np

Resize = Literal["warp", "letterbox"]
RESIZES = get_args(Resize)
GREY = (114, 114, 114)  # beside a letterboxed picture: one that no augmentation can tell from a wall


def warp_to_square(image: np.ndarray, side: int, *, smooth: bool = True) -> np.ndarray:
    """Resizes a picture to `(side, side, 3)` uint8 without keeping the aspect ratio, as the paper does.

    Bilinear where it grows; where it shrinks by area averaging, so that nothing flickers, unless not `smooth`: the
    released code is bilinear there too.
    """
    return _resized(image, side, side, smooth=smooth)


def letterbox_to_square(image: np.ndarray, side: int, *, smooth: bool = True) -> np.ndarray:
    """Resizes a picture in its aspect ratio, as large as fits in the middle of a grey `(side, side, 3)` uint8 square.

    `boxes_of_picture` leads back. For `smooth` see `warp_to_square`.
    """
    x0, y0, x1, y1 = letterbox_frame(*image.shape[:2], side, side)
    square = np.full((side, side, 3), GREY, "uint8")
    square[y0:y1, x0:x1] = _resized(image, x1 - x0, y1 - y0, smooth=smooth)
    return square


def resize_to_sides(image: np.ndarray, min_side: int, max_side: int) -> np.ndarray:
    """Resizes a picture in its aspect ratio: the shorter side becomes `min_side` pixels, or the longer one `max_side`
    where it would be more. As keras-retinanet does it: bilinear, in float32 and without rounding, by OpenCV's scale.

    It subtracts the mean before; as the weights of a pixel's four neighbours sum to 1, it can as well be done after.

    Returns:
        `(height, width, 3)` float32.
    """
    height, width = image.shape[:2]
    scale = min_side / min(height, width)
    if max(height, width) * scale > max_side:
        scale = max_side / max(height, width)
    scale = max(scale, 1 / min(height, width))  # a pixel is left of the narrowest picture
    return cv2.resize(np.asarray(image, "float32"), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)


def _resized(image: np.ndarray, width: int, height: int, *, smooth: bool) -> np.ndarray:
    if image.dtype != np.uint8:
        image = np.clip(np.rint(image), 0, 255).astype("uint8")
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] * image.shape[1] > height * width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks and smooth else cv2.INTER_LINEAR)


def letterbox_frame(height: float, width: float, frame_height: int, frame_width: int) -> tuple[int, int, int, int]:
    """The rectangle x0, y0, x1, y1 in whole pixels that a picture fills in a frame: as large as fits, in the middle."""
    scale = min(frame_height / height, frame_width / width)
    h = min(frame_height, max(1, round(height * scale)))
    w = min(frame_width, max(1, round(width * scale)))
    x0, y0 = (frame_width - w) // 2, (frame_height - h) // 2
    return x0, y0, x0 + w, y0 + h


def boxes_of_picture(boxes: np.ndarray, height: int, width: int, side: int) -> np.ndarray:
    """Boxes in the picture from boxes in its letterboxed square.

    Args:
        boxes: `(n, 4)` xyxy, normalised to the square.
        height, width: of the picture before `letterbox_frame`, in pixels.
        side: of the square in pixels.

    Returns:
        `(n, 4)` xyxy, normalised to the picture, clipped to [0, 1]: what lies on the grey has no area then.
    """
    x0, y0, x1, y1 = letterbox_frame(height, width, side, side)
    moved = (boxes * side - (x0, y0, x0, y0)) / (x1 - x0, y1 - y0, x1 - x0, y1 - y0)
    return np.clip(moved, 0.0, 1.0).astype(boxes.dtype)
