"""keras-retinanet's side of `retinanet.py`, in its own environment: detects once for each line that it gets."""

import json
import sys
import time

import h5py
import numpy as np
from keras_retinanet import models
from keras_retinanet.models.retinanet import retinanet_bbox


def main(*, file: str, classes: int, shape: list[int], picture: str) -> None:
    """Loads the file and answers each line, "network" or "boxes", with the seconds of one picture.

    Args:
        file: of ResNet50's network, as trained
        classes: of the network
        shape: height and width of the picture in pixels
        picture: .npy file of it, float32 BGR minus the mean
    """
    network = models.backbone("resnet50").retinanet(classes)
    load_by_position(network, file)
    ways = {"network": network, "boxes": retinanet_bbox(model=network)}
    batch = np.load(picture)[None]
    assert batch.shape == (1, *shape, 3)
    for line in sys.stdin:
        begin = time.perf_counter()
        found = ways[line.strip()].predict_on_batch(batch)
        print("seconds", time.perf_counter() - begin, sum(len(values[0]) for values in found), flush=True)


def load_by_position(network, file: str) -> None:
    """What `load_weights` does, for files whose model_config is a stand-in."""
    with h5py.File(file) as source:
        root = source["model_weights"]
        for layer in network.layers:
            if layer.weights:
                group = root[layer.name]
                layer.set_weights([group[name][()] for name in group.attrs["weight_names"]])


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
