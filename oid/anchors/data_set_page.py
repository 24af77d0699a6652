"""The page about a data set: which classes anchors cover worst, and the sizes of boxes and images."""

import html
import os
from collections.abc import Sequence

import numpy as np
import polars as pl

from oid import paths
from oid.anchors.coverage import COVERED
from oid.anchors.report import PERCENTILES, LevelReport, Percentiles, percentiles
from oid.page import Table, new_plot, plot_html, table_html, write_page

WORST = 30  # classes in the plot
FEWEST_OF_SIZE = 5  # boxes of a size for a point of the curves
FEWEST_OF_CLASS = 20  # rarer classes are only in the CSV file, unless all are rare
COLOURS, GREY = ("#d1651b", "#1f6fb0"), "#c9ced3"  # of the first set of anchors, and of that by k-means
STYLE = """
body { max-width: 1180px; } img { width: auto; max-width: 100%; } h2 { font-size: 1.5em; margin: 2em 0 .8em; }
.plots { display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start; }
"""


def write_data_set_page(
    path: str | os.PathLike, image_sizes: dict[str, pl.DataFrame], reports: Sequence[LevelReport]
) -> None:
    """Writes the page as an HTML file, all or nothing.

    `image_sizes` has the result of `oid.images.table.read_image_sizes` for each split.
    """
    parts = [part for report in reports for part in level_html(report)]
    parts += ["<h2>Images</h2><p>As a02 measured them.</p>", images_plot(image_sizes)]
    for split, sizes in image_sizes.items():
        caption = f"{split}: percentiles of {len(sizes):,} images"
        parts.append(percentile_table(caption, percentiles("image", sizes.select("width", "height").to_numpy())))
    write_page(path, "Data set", parts, style=STYLE)


def level_html(report: LevelReport) -> list[str]:
    """The part of the page about one level. The plots show its first split."""
    first = report.coverages[0]
    boxes, total = first.boxes, int(first.boxes.counts.sum())
    sample = f", of which {boxes.drawn:,} were drawn, up to a number for each class" if boxes.drawn < total else ""
    how = "letterboxed in" if boxes.resize == "letterbox" else "stretched to"
    parts = [
        f"<h2>Level {html.escape(report.level)}: boxes and anchors</h2>",
        f"<p>{total:,} boxes of {first.split}{sample}; images {how} a square of {boxes.image_size} pixels. A box is "
        f"covered if its IoU with the best anchor of the grid is at least {COVERED:g}. By this IoU the assignment "
        "<code>max_iou</code> chooses which anchors learn a box; for <code>task_aligned</code> it is enough that an "
        "anchor's centre lies in the box.</p>",
        f"<div class=plots>{worst_plot(report)}\n{coverage_plot(report)}\n{sizes_plot(report)}</div>",
        sets_table(report),
    ]
    for coverage in report.coverages:
        caption = f"{coverage.split}: percentiles of the boxes at {boxes.image_size} pixels"
        rows = percentiles("box", coverage.boxes.sizes, coverage.boxes.weights)
        parts.append(percentile_table(caption, rows))
    return parts


# === Tables ===========================================================================================================
def sets_table(report: LevelReport) -> str:
    """The share of boxes that each set of anchors covers, and the mean of the classes' shares, for each split."""
    header, rows = ["anchors", "per cell"], [[anchors.name, anchors.grids.per_cell] for anchors in report.sets]
    for coverage in report.coverages:
        header += [f"{coverage.split}: covered boxes", "mean of the classes", "mean IoU"]
        for number, row in enumerate(rows):
            mean = np.average(coverage.ious[number], weights=coverage.boxes.weights)
            of_classes = np.nanmean(coverage.class_shares(number))
            row += [f"{coverage.share(number):.1%}", f"{of_classes:.1%}", f"{mean:.3f}"]
    return table_html(Table("Anchor sets", header, rows))


def percentile_table(caption: str, rows: Percentiles) -> str:
    """A row for each quantity."""
    cells = [[name, *(f"{v:.2f}" if v < 10 else f"{v:.0f}" for v in values)] for name, values in rows]
    return table_html(Table(caption, ["", *(f"{share} %" for share in PERCENTILES)], cells))


# === Plots ============================================================================================================
def worst_plot(report: LevelReport) -> str:
    """A line for each of the classes with the smallest covered share: by the first set, and by k-means."""
    shown = report.classes.filter(pl.col("split") == report.coverages[0].split, pl.col("covered").is_not_null())
    frequent, pool = shown.filter(pl.col("boxes") >= FEWEST_OF_CLASS), f"{len(shown)} classes"
    if len(frequent):
        shown, pool = frequent, f"{len(frequent)} classes with {FEWEST_OF_CLASS} boxes or more"
    chosen = shown.head(WORST)
    title = pool if len(chosen) == len(shown) else f"{len(chosen)} of {pool}"
    title = f"Worst-covered classes: {title}\n(all are in {paths.level_coverage('', report.level).name})"
    figure, axes = new_plot(6.2, 1.5 + 0.23 * max(4, len(chosen)), title)
    y, shares = np.arange(len(chosen)), [chosen[name].to_numpy() * 100 for name in ("covered", "covered_kmeans")]
    for number, values, colour in zip(report.compared, shares, COLOURS, strict=False):
        axes.plot(values, y, "o", color=colour, label=report.sets[number].title, zorder=3 - bool(number))
    if report.clusters is not None:
        axes.hlines(y, *shares, color=GREY, linewidth=2, zorder=1)
    axes.set_yticks(y, [f"{name[:28]} ({count:,})" for name, count in chosen.select("name", "boxes").iter_rows()])
    axes.set(ylim=(len(chosen) - 0.4, -0.6), xlim=(-2, 102), xlabel=f"boxes with IoU ≥ {COVERED:g}, %")
    axes.tick_params(axis="y", labelsize=8, length=0)
    return plot_html(figure, "worst-covered classes", legend=True)


def coverage_plot(report: LevelReport) -> str:
    """The covered share by the size of the boxes, over a histogram of the sizes."""
    first = report.coverages[0]
    image_size, weights = first.boxes.image_size, first.boxes.weights
    sides = np.sqrt(first.boxes.sizes.prod(axis=1))
    edges = 2.0 ** np.arange(np.log2(_smallest(sides, weights)), np.log2(image_size) + 0.5, 0.5)
    bins, count = np.clip(np.digitize(sides, edges) - 1, 0, len(edges) - 2), len(edges) - 1
    total, drawn = np.bincount(bins, weights, count), np.bincount(bins, minlength=count)
    figure, axes = new_plot(5.2, 3.6, f"Covered boxes (IoU ≥ {COVERED:g}) by size", log2="x")
    shares = 100 * total / total.sum()
    axes.bar(edges[:-1], shares, np.diff(edges), align="edge", color=GREY, label="share of all boxes")
    middles, shown = np.sqrt(edges[:-1] * edges[1:]), drawn >= min(FEWEST_OF_SIZE, drawn.max())
    for number, colour in zip(report.compared, COLOURS, strict=False):
        covered = np.bincount(bins, weights * (first.ious[number] >= COVERED), count)[shown] / total[shown]
        name = report.sets[number].title
        axes.plot(middles[shown], 100 * covered, "o-", color=colour, markersize=4, label=name)
    axes.set(ylim=(0, 102), xlabel=f"square root of the box's area, pixels at {image_size}", ylabel="%")
    return plot_html(figure, "covered boxes by size", legend=True)


def sizes_plot(report: LevelReport) -> str:
    """Widths and heights of the boxes, and of the anchors."""
    boxes = report.coverages[0].boxes
    limits = _smallest(boxes.sizes.min(axis=1), boxes.weights), 2.0 * boxes.image_size
    figure, axes = _density_plot(boxes.sizes, boxes.weights, limits, "Sizes of the boxes and of the anchors", "boxes")
    for number, colour, marker in zip(report.compared, COLOURS, "s^", strict=False):
        anchors = report.sets[number]
        pairs = np.concatenate([np.asarray(sizes) for sizes in anchors.grids.sizes]) * boxes.image_size
        style = {"color": colour, "markeredgecolor": "white", "markersize": 7, "linestyle": ""}
        axes.plot(*pairs.T, marker, label=anchors.title, **style)
    return plot_html(figure, "sizes of boxes and anchors", legend=True)


def images_plot(image_sizes: dict[str, pl.DataFrame]) -> str:
    """Widths and heights of the images of all splits."""
    sizes = pl.concat(image_sizes.values()).select("width", "height").to_numpy().astype("float64")
    limits, title = (sizes.min() / 1.5, sizes.max() * 1.5), f"Sizes of the images: {', '.join(image_sizes)}"
    figure, _ = _density_plot(sizes, np.ones(len(sizes)), limits, title, "images")
    return plot_html(figure, "sizes of the images")


def _density_plot(sizes: np.ndarray, weights: np.ndarray, limits: tuple[float, float], title: str, what: str):
    """Figure and axes with the density of widths and heights `(N, 2)` in pixels on logarithmic axes."""
    from matplotlib.colors import LogNorm

    figure, axes = new_plot(5.2, 4.9, title, log2="xy")
    edges = np.geomspace(*limits, 49)
    counts = np.histogram2d(*np.clip(sizes, *limits).T, bins=(edges, edges), weights=weights)[0].T
    norm = LogNorm(1, max(2.0, counts.max()))
    mesh = axes.pcolormesh(edges, edges, np.ma.masked_less(counts, 0.5), cmap="Greys", norm=norm)
    figure.colorbar(mesh, ax=axes, label=what, shrink=0.7, format="%g")
    axes.set(xlabel="width, pixels", ylabel="height, pixels", xlim=limits, ylim=limits, aspect="equal")
    return figure, axes


def _smallest(sides: np.ndarray, weights: np.ndarray) -> float:
    """A power of two, in pixels, below almost all sides."""
    low = np.quantile(sides, 0.002, weights=weights, method="inverted_cdf")
    return 2.0 ** np.floor(np.log2(max(low, 0.25)))
