"""Where a picture lies in the network's square: stretched over all of it, or in its own aspect ratio on grey."""

from typing import Literal

import numpy as np

GREY = (114, 114, 114)  # beside the picture
Resize = Literal["warp", "letterbox"]


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
