"""The surroundings of the generated objects: photographs, textures, and clutter without a class."""

import cv2
import numpy as np


def photographs() -> list[np.ndarray]:
    """The two photographs that scikit-learn ships, each `(427, 640, 3)` uint8 RGB."""
    from sklearn.datasets import load_sample_images  # imported here: it takes a second

    return load_sample_images().images


def background(rng: np.random.Generator, height: int, width: int, photos: list[np.ndarray]) -> np.ndarray:
    """A background `(height, width, 3)` float32 RGB in [0, 255]: 60 % show a photograph, the others a texture."""
    if rng.random() < 0.6:
        return _photograph(rng, height, width, photos[rng.integers(len(photos))])
    return _texture(rng, height, width)


def _photograph(rng: np.random.Generator, height: int, width: int, photo: np.ndarray) -> np.ndarray:
    """A random crop of a photograph, resized, flipped, with other colours and less contrast."""
    share = rng.uniform(0.4, 1.0) * min(photo.shape[0] / height, photo.shape[1] / width)
    crop_height, crop_width = int(height * share), int(width * share)
    top = rng.integers(photo.shape[0] - crop_height + 1)
    left = rng.integers(photo.shape[1] - crop_width + 1)
    crop = photo[top : top + crop_height, left : left + crop_width, rng.permutation(3)]
    crop = crop[:, :: -1 if rng.random() < 0.5 else 1]
    picture = cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    mean = picture.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    shifted = mean + rng.uniform(-40, 40, 3).astype(np.float32)
    return np.clip((picture - mean) * np.float32(rng.uniform(0.45, 0.85)) + shifted, 0, 255)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Clouds between two colours, with a fine grain that may have a direction, like cloth or brushed metal."""
    clouds = np.zeros((height, width), np.float32)
    for cells, weight in ((3, 0.5), (7, 0.3), (17, 0.2)):
        coarse = rng.random((cells, cells), dtype=np.float32)
        clouds += weight * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    blur = [(1, 1), (1, 15), (15, 1), (3, 3)][rng.integers(4)]
    grain = cv2.blur(rng.random((height, width), dtype=np.float32) - 0.5, blur) * np.float32(rng.uniform(0.2, 0.8))
    first = rng.uniform(30, 225, 3).astype(np.float32)
    second = np.clip(first + rng.uniform(-70, 70, 3), 0, 255).astype(np.float32)
    return np.clip(first + (clouds + grain)[..., None] * (second - first), 0, 255)


def clutter(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A line, a letter or a blob: its mask `(height, width)` uint8 and its colour `(3,)`."""
    mask = np.zeros((height, width), np.uint8)
    side = min(height, width)
    centre = rng.uniform(0, 1, 2) * (width, height)
    kind = rng.integers(3)
    if kind == 0:  # a bent line of 12 segments
        turn = np.cumsum(rng.uniform(-0.6, 0.6, 12)) + rng.uniform(0, 2 * np.pi)
        steps = np.stack([np.cos(turn), np.sin(turn)], axis=1) * side * rng.uniform(0.02, 0.06)
        line = np.round((centre + np.cumsum(steps, axis=0)) * 16).astype(np.int32)
        cv2.polylines(mask, [line], False, 255, int(rng.integers(2, 6)), cv2.LINE_AA, 4)
    elif kind == 1:
        letter = "ACEFGKLMNPRSUWZ234579"[rng.integers(21)]
        place = (int(centre[0]), int(centre[1]))
        cv2.putText(mask, letter, place, int(rng.integers(8)), rng.uniform(0.8, 2.5), 255, 3, cv2.LINE_AA)
    else:  # a blob with a ragged edge
        angle = np.sort(rng.uniform(0, 2 * np.pi, 14))
        radius = side * rng.uniform(0.02, 0.09) * rng.uniform(0.4, 1.2, 14)
        edge = centre + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
        cv2.fillPoly(mask, [np.round(edge * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask, rng.uniform(0, 255, 3).astype(np.float32)
