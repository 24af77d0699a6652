"""Images as the network sees them: stretched to a square, letterboxed in it, or of their own shape; and boxes back."""

from typing import Literal

import cv2
import numpy as np

Resize = Literal["warp", "letterbox"]
GREY = (114, 114, 114)  # beside a letterboxed image; no augmentation can tell it from a wall


def warp_to_square(image: np.ndarray, side: int, *, smooth: bool = True) -> np.ndarray:
    """Resizes an image to `(side, side, 3)` uint8 without keeping the aspect ratio, as the paper does.

    Enlarges bilinearly. Reduces by area averaging, or bilinearly without `smooth`, as the released code does.
    """
    return _resized(image, side, side, smooth=smooth)


def letterbox_to_square(image: np.ndarray, side: int, *, smooth: bool = True) -> np.ndarray:
    """Resizes an image in its aspect ratio, as large as fits in the middle of a grey `(side, side, 3)` uint8 square.

    `boxes_of_picture` leads back. For `smooth` see `warp_to_square`.
    """
    x0, y0, x1, y1 = letterbox_frame(*image.shape[:2], side, side)
    square = np.full((side, side, 3), GREY, "uint8")
    square[y0:y1, x0:x1] = _resized(image, x1 - x0, y1 - y0, smooth=smooth)
    return square


def resize_to_sides(image: np.ndarray, min_side: int, max_side: int) -> np.ndarray:
    """Resizes an image in its aspect ratio to `(height, width, 3)` float32, bilinearly, as keras-retinanet does.

    The shorter side has `min_side` pixels, or less if the longer one would exceed `max_side`.
    """
    height, width = image.shape[:2]
    scale = min(min_side / min(height, width), max_side / max(height, width))
    scale = max(scale, 1 / min(height, width))  # the narrowest image keeps one pixel
    return cv2.resize(np.asarray(image, "float32"), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)


def _resized(image: np.ndarray, width: int, height: int, *, smooth: bool) -> np.ndarray:
    if image.dtype != np.uint8:
        image = np.clip(np.rint(image), 0, 255).astype("uint8")
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] * image.shape[1] > height * width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks and smooth else cv2.INTER_LINEAR)


def letterbox_frame(height, width, frame_height: int, frame_width: int) -> tuple:
    """The rectangle that an image fills in a frame: as large as fits, in the middle.

    Args:
        height, width: of the image; numbers, or arrays `(N,)` for many images.
        frame_height, frame_width: in pixels.

    Returns:
        x0, y0, x1, y1 in pixels: integers, or int64 `(N,)`.
    """
    scale = np.minimum(frame_height / height, frame_width / width)
    h = np.clip(np.rint(height * scale), 1, frame_height).astype(int)
    w = np.clip(np.rint(width * scale), 1, frame_width).astype(int)
    x0, y0 = (frame_width - w) // 2, (frame_height - h) // 2
    return x0, y0, x0 + w, y0 + h


def boxes_of_picture(boxes: np.ndarray, height: int, width: int, side: int) -> np.ndarray:
    """Converts boxes `(N, 4)` xyxy from a letterboxed square to its image; both are normalised.

    The result is clipped to [0, 1]: boxes on the grey have no area.
    """
    x0, y0, x1, y1 = letterbox_frame(height, width, side, side)
    moved = (boxes * side - (x0, y0, x0, y0)) / (x1 - x0, y1 - y0, x1 - x0, y1 - y0)
    return np.clip(moved, 0.0, 1.0).astype(boxes.dtype)


def boxes_in_square(boxes: np.ndarray, height: np.ndarray, width: np.ndarray, side: int) -> np.ndarray:
    """Converts boxes `(N, 4)` xyxy from images of `(N,)` heights and widths to their letterboxed squares."""
    x0, y0, x1, y1 = letterbox_frame(height, width, side, side)
    extent, offset = np.stack([x1 - x0, y1 - y0] * 2, axis=1), np.stack([x0, y0] * 2, axis=1)
    return (boxes * extent + offset) / side
