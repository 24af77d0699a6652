"""The page about a data set: which classes anchors cover worst, and the sizes of boxes and images."""

import html
import os
from collections.abc import Sequence

import numpy as np
import polars as pl

from oid import paths
from oid.anchors.coverage import COVERED, weighted_quantiles
from oid.anchors.report import PERCENTILES, LevelReport, Percentiles, box_percentiles, image_percentiles
from oid.page import Table, new_plot, plot_html, table_html, write_page

WORST = 30  # classes in the plot
FEWEST_OF_SIZE = 5  # boxes of a size for a point of the curves
FEWEST_OF_CLASS = 20  # boxes; classes with fewer are left to the table, unless all are so rare
COLOURS, GREY = ("#d1651b", "#1f6fb0", "#666666"), "#c9ced3"  # of the first set and that by k-means; of splits
RATIOS = (0.1, 0.2, 0.5, 1, 2, 5, 10)
STYLE = """
body { max-width: 1180px; } img { width: auto; max-width: 100%; } h2 { font-size: 1.5em; margin: 2em 0 .8em; }
.plots { display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start; }
"""

Distribution = tuple[np.ndarray, np.ndarray]  # values (N,), and how often each counts (N,)


def write_data_set_page(
    path: str | os.PathLike, image_sizes: dict[str, pl.DataFrame], reports: Sequence[LevelReport]
) -> None:
    """Writes the page, all or nothing.

    Args:
        path: the HTML file.
        image_sizes: of each split, see `oid.anchors.sampled_boxes.read_image_sizes`.
        reports: of the levels.
    """
    parts = [part for report in reports for part in level_html(report)]
    ratios = {split: (sizes["width"] / sizes["height"]).to_numpy() for split, sizes in image_sizes.items()}
    ratios = {split: (values, np.ones(len(values))) for split, values in ratios.items()}
    parts += ["<h2>Images</h2><p>As a02 measured them.</p><div class=plots>", images_plot(image_sizes)]
    parts += [ratios_plot(ratios, "Aspect ratio of the images"), "</div>"]
    for split, sizes in image_sizes.items():
        parts.append(percentile_table(f"{split}: percentiles of {len(sizes):,} images", image_percentiles(sizes)))
    write_page(path, "Data set", parts, style=STYLE)


def level_html(report: LevelReport) -> list[str]:
    """The part of the page about one level. The plots show its first split."""
    first = report.coverages[0]
    boxes, total = first.boxes, int(first.boxes.counts.sum())
    sample = f", of which {boxes.drawn:,} were drawn, up to a number for each class" if boxes.drawn < total else ""
    how = "letterboxed in" if boxes.resize == "letterbox" else "stretched to"
    ratios = {first.split: (boxes.sizes[:, 0] / boxes.sizes[:, 1], boxes.weights)}
    parts = [
        f"<h2>Level {html.escape(report.level)}: boxes and anchors</h2>",
        f"<p>{total:,} boxes of {first.split}{sample}; images {how} a square of {boxes.image_size} pixels. A box is "
        f"covered when its IoU with the best anchor is at least {COVERED:g}, all anchors lying where the network has "
        "them. By this IoU the assignment <code>max_iou</code> chooses which anchors learn a box; for "
        "<code>task_aligned</code> an anchor's centre in the box is enough.</p>",
        "<div class=plots>",
        worst_plot(report),
        coverage_plot(report),
        sizes_plot(report),
        ratios_plot(ratios, "Aspect ratio of the boxes"),
        "</div>",
        sets_table(report),
    ]
    for coverage in report.coverages:
        caption = f"{coverage.split}: percentiles of the boxes at {boxes.image_size} pixels"
        parts.append(percentile_table(caption, box_percentiles(coverage.boxes)))
    return parts


# === Tables ===========================================================================================================
def sets_table(report: LevelReport) -> str:
    """Each anchor set's share of boxes, and the mean of the classes' shares, for each split."""
    header, rows = ["anchors", "per cell"], [[anchors.name, anchors.per_cell] for anchors in report.sets]
    for coverage in report.coverages:
        header += [f"{coverage.split}: covered boxes", "mean of the classes", "mean IoU"]
        for number, row in enumerate(rows):
            mean = np.average(coverage.ious[number], weights=coverage.boxes.weights)
            of_classes = np.nanmean(coverage.class_shares(number))
            row += [f"{coverage.share(number):.1%}", f"{of_classes:.1%}", f"{mean:.3f}"]
    return table_html(Table("Anchor sets", header, rows))


def percentile_table(caption: str, percentiles: Percentiles) -> str:
    """A row for each quantity."""
    cells = [[name, *(f"{v:.2f}" if v < 10 else f"{v:.0f}" for v in values)] for name, values in percentiles]
    return table_html(Table(caption, ["", *(f"{share} %" for share in PERCENTILES)], cells))


# === Plots ============================================================================================================
def worst_plot(report: LevelReport) -> str:
    """The classes with the smallest covered share, one line each: before, and after k-means."""
    shown = report.classes.filter(pl.col("split") == report.coverages[0].split, pl.col("covered").is_not_null())
    frequent = shown.filter(pl.col("boxes") >= FEWEST_OF_CLASS)
    pool = f"{len(frequent)} classes with {FEWEST_OF_CLASS} boxes or more" if len(frequent) else f"{len(shown)} classes"
    shown = frequent if len(frequent) else shown
    chosen = shown.head(WORST)
    title = pool if len(chosen) == len(shown) else f"{len(chosen)} of {pool}"
    title = f"Worst-covered classes: {title}\n(all are in {paths.level_coverage('', report.level).name})"
    figure, axes = new_plot(6.2, 1.5 + 0.23 * max(4, len(chosen)), title)
    y, shares = np.arange(len(chosen)), [chosen[name].to_numpy() * 100 for name in ("covered", "covered_kmeans")]
    for number, values, colour in zip(report.compared, shares, COLOURS, strict=False):
        axes.plot(values, y, "o", color=colour, label=report.sets[number].title, zorder=3 - bool(number))
    if report.clusters is not None:
        axes.hlines(y, *shares, color=GREY, linewidth=2, zorder=1)
    axes.set_yticks(y, [f"{_shorter(name)} ({count:,})" for name, count in chosen.select("name", "boxes").iter_rows()])
    axes.set(ylim=(len(chosen) - 0.4, -0.6), xlim=(-2, 102), xlabel=f"boxes with IoU ≥ {COVERED:g}, %")
    axes.tick_params(axis="y", labelsize=8, length=0)
    return _with_legend(figure, axes, "worst-covered classes")


def coverage_plot(report: LevelReport) -> str:
    """The covered share by the size of the boxes, over a histogram of the sizes."""
    first = report.coverages[0]
    image_size, weights = first.boxes.image_size, first.boxes.weights
    sides = np.sqrt(first.boxes.sizes.prod(axis=1))
    edges = 2.0 ** np.arange(np.log2(_smallest(sides, weights)), np.log2(image_size) + 0.5, 0.5)
    bins, count = np.clip(np.digitize(sides, edges) - 1, 0, len(edges) - 2), len(edges) - 1
    total, drawn = np.bincount(bins, weights, count), np.bincount(bins, minlength=count)
    figure, axes = new_plot(5.2, 3.6, f"Covered boxes (IoU ≥ {COVERED:g}) by size")
    shares = 100 * total / total.sum()
    axes.bar(edges[:-1], shares, np.diff(edges), align="edge", color=GREY, label="share of all boxes")
    middles, shown = np.sqrt(edges[:-1] * edges[1:]), drawn >= min(FEWEST_OF_SIZE, drawn.max())
    for number, colour in zip(report.compared, COLOURS, strict=False):
        covered = np.bincount(bins, weights * (first.ious[number] >= COVERED), count)[shown] / total[shown]
        name = report.sets[number].title
        axes.plot(middles[shown], 100 * covered, "o-", color=colour, markersize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(ylim=(0, 102), xlabel=f"square root of the box's area, pixels at {image_size}", ylabel="%")
    return _with_legend(figure, axes, "covered boxes by size")


def sizes_plot(report: LevelReport) -> str:
    """Widths and heights of the boxes, and of the anchors."""
    boxes = report.coverages[0].boxes
    image_size, (width, height) = boxes.image_size, boxes.sizes.T
    limits = _smallest(np.minimum(width, height), boxes.weights), 2.0 * image_size
    title, unit = "Sizes of the boxes and of the anchors", f"pixels at {image_size}"
    figure, axes = _density_plot(width, height, boxes.weights, limits, title=title, what="boxes", unit=unit)
    for number, colour, marker in zip(report.compared, COLOURS, "s^", strict=False):
        anchors = report.sets[number]
        pairs = np.concatenate([np.asarray(sizes) for sizes in anchors.settings["sizes"]]) * image_size
        style = {"color": colour, "markeredgecolor": "white", "markersize": 7, "linestyle": ""}
        axes.plot(*pairs.T, marker, label=anchors.title, **style)
    return _with_legend(figure, axes, "sizes of boxes and anchors")


def images_plot(image_sizes: dict[str, pl.DataFrame]) -> str:
    """Widths and heights of the images of all splits."""
    width, height = pl.concat(image_sizes.values()).select("width", "height").to_numpy().T.astype("float64")
    limits = min(width.min(), height.min()) / 1.5, max(width.max(), height.max()) * 1.5
    title, weights = f"Sizes of the images: {', '.join(image_sizes)}", np.ones(len(width))
    figure, _ = _density_plot(width, height, weights, limits, title=title, what="images", unit="pixels")
    return plot_html(figure, "sizes of the images")


def ratios_plot(ratios: dict[str, Distribution], title: str) -> str:
    """Histograms of width / height, one for each split."""
    figure, axes = new_plot(5.2, 3.2, title)
    edges = np.geomspace(RATIOS[0], RATIOS[-1], 61)
    for (split, (values, weights)), colour in zip(ratios.items(), (COLOURS[1], COLOURS[0], COLOURS[2]), strict=False):
        share = np.histogram(np.clip(values, edges[0], edges[-1]), edges, weights=100 * weights / weights.sum())[0]
        axes.stairs(share, edges, color=colour, fill=len(ratios) == 1, alpha=0.85, linewidth=1.5, label=split)
    axes.set_xscale("log")
    axes.set_xticks(RATIOS, [f"{ratio:g}" for ratio in RATIOS])
    axes.minorticks_off()
    axes.set(xlabel="width / height (the outermost bars contain all beyond)", ylabel="%")
    axes.legend(fontsize=8, frameon=False)
    return plot_html(figure, title)


def _density_plot(width, height, weights, limits: tuple[float, float], *, title: str, what: str, unit: str):
    """Figure and axes with the density of points on logarithmic axes."""
    from matplotlib.colors import LogNorm

    figure, axes = new_plot(5.2, 4.9, title)
    edges = np.geomspace(*limits, 49)
    inside = (np.clip(side, *limits) for side in (width, height))
    counts = np.histogram2d(*inside, bins=(edges, edges), weights=weights)[0].T
    norm = LogNorm(1, max(2.0, counts.max()))
    mesh = axes.pcolormesh(edges, edges, np.ma.masked_less(counts, 0.5), cmap="Greys", norm=norm)
    figure.colorbar(mesh, ax=axes, label=what, shrink=0.7, format="%g")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=f"width, {unit}", ylabel=f"height, {unit}", xlim=limits, ylim=limits, aspect="equal")
    return figure, axes


def _smallest(sides: np.ndarray, weights: np.ndarray) -> float:
    """A power of two, in pixels, that hardly any side is below."""
    low = weighted_quantiles(sides, weights, np.array([0.002]))[0]
    return 2.0 ** np.floor(np.log2(max(low, 0.25)))


def _with_legend(figure, axes, alternative: str) -> str:
    """The HTML of a figure with a legend below its axes."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return plot_html(figure, alternative)


def _shorter(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"
