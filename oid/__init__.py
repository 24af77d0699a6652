"""Open Images without a neural network: hierarchy, files, boxes, fusion, metric, images. Imports neither Keras nor a00."""
