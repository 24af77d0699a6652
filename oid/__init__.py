"""Open Images without a network: hierarchy, files, boxes, fusion, metric, images. Imports neither Keras nor a00."""
