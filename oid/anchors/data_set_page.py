"""One page about a data set that needs no other file: which classes anchors cover worst, sizes of boxes and images."""

import base64
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from oid.anchors.coverage import weighted_quantiles
from oid.anchors.report import COVERED, PERCENTILES, AnchorSet, Coverage, image_rows, size_rows
from oid.files import replacing

WORST = 30  # classes in the plot
FEWEST_OF_SIZE = 5  # boxes of a size for a point of the curves
FEW = 20  # boxes: classes with fewer are left to the table, unless all are so rare
BEFORE, AFTER, GREY = "#d1651b", "#1f6fb0", "#c9ced3"
RATIOS = (0.1, 0.2, 0.5, 1, 2, 5, 10)
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1180px; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: .5em 0 1.5em; } caption { text-align: left; font-weight: 600; }
td, th { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; } img { max-width: 100%; } h2 { margin-top: 2em; }
.plots { display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start; }
"""


@dataclass(frozen=True)
class LevelSection:
    """What the page says of a level.

    Attributes:
        level: its name.
        coverages: of its splits; the plots show the first.
        sets: anchor sets, in the order of `Coverage.ious`.
        before, after: which of the sets the plots compare; None = there is no second.
        classes: of the first split, see `oid.anchors.report.class_table`.
        table: name of the file with all classes.
    """

    level: str
    coverages: Sequence[Coverage]
    sets: Sequence[AnchorSet]
    before: int
    after: int | None
    classes: pl.DataFrame
    table: str

    @property
    def compared(self) -> list[tuple[int, str, str]]:
        """Position, name and colour of the sets in the plots."""
        pairs = [(self.before, BEFORE)] + ([(self.after, AFTER)] if self.after is not None else [])
        return [(number, title_of(self.sets[number]), colour) for number, colour in pairs]


def title_of(anchors: AnchorSet) -> str:
    """An anchor set's name with its number of anchors."""
    return f"{anchors.name}, {anchors.per_cell} per cell"


def write_page(
    path: str | os.PathLike,
    *,
    image_sizes: dict[str, pl.DataFrame],
    sections: Sequence[LevelSection],
    image_size: int,
    resize: str,
) -> None:
    """Writes the page, all or nothing.

    Args:
        path: the HTML file.
        image_sizes: of each split, see `oid.anchors.sampled_boxes.read_image_sizes`.
        sections: the levels.
        image_size: side of the network's square in pixels.
        resize: "letterbox" or "warp".
    """
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>Data set</title><style>{STYLE}</style>"]
    for section in sections:
        parts += level_html(section, image_size, resize)
    parts.append("<h2>Images</h2><p>As a02 measured them.</p><div class=plots>")
    parts += [images_plot(image_sizes), ratios_plot(_image_ratios(image_sizes), "Aspect ratio of the images"), "</div>"]
    for split, sizes in image_sizes.items():
        parts.append(percentile_table(f"{split}: percentiles of {len(sizes):,} images", image_rows(sizes)))
    with replacing(path) as temporary:
        temporary.write_text("\n".join(parts) + "\n", encoding="utf-8")


def level_html(section: LevelSection, image_size: int, resize: str) -> list[str]:
    """The part of the page about one level."""
    first = section.coverages[0]
    how = "letterboxed in" if resize == "letterbox" else "stretched to"
    parts = [f"<h2>Level {html.escape(section.level)}: boxes and anchors</h2>"]
    drawn, total = first.boxes.drawn, int(first.boxes.counts.sum())
    sample = f", of which {drawn:,} were drawn, up to a number for each class" if drawn < total else ""
    parts.append(
        f"<p>{total:,} boxes of {first.split}{sample}; pictures {how} a square of {image_size} pixels. A box is "
        f"covered when its IoU with the best anchor is at least {COVERED:g}, all anchors lying where the network has "
        "them. By this IoU <code>--assignment max_iou</code> chooses which anchors learn a box; for "
        "<code>task_aligned</code> an anchor's centre in the box is enough.</p>"
    )
    parts += ["<div class=plots>", worst_plot(section), coverage_plot(section, image_size)]
    boxes = first.boxes
    ratios = {first.split: (boxes.sizes[:, 0] / boxes.sizes[:, 1], boxes.weights)}
    parts += [sizes_plot(section, image_size), ratios_plot(ratios, "Aspect ratio of the boxes"), "</div>"]
    parts.append(sets_table(section))
    for coverage in section.coverages:
        caption = f"{coverage.split}: percentiles of the boxes at {image_size} pixels"
        parts.append(percentile_table(caption, size_rows(coverage.boxes, image_size)))
    return parts


# === Tables ===========================================================================================================
def sets_table(section: LevelSection) -> str:
    """Each anchor set's share of boxes, and the mean of the classes' shares, for each split."""
    header = ["anchors", "per cell"]
    for coverage in section.coverages:
        header += [f"{coverage.split}: covered boxes", "mean of the classes", "mean IoU"]
    rows = []
    for number, anchors in enumerate(section.sets):
        row = [anchors.name, str(anchors.per_cell)]
        for coverage in section.coverages:
            shares = coverage.class_shares(number)
            mean = np.average(coverage.ious[number], weights=coverage.boxes.weights)
            row += [f"{coverage.share(number):.1%}", f"{np.nanmean(shares):.1%}", f"{mean:.3f}"]
        rows.append(row)
    return table_html("Anchor sets", header, rows)


def percentile_table(caption: str, rows: Sequence[tuple[str, list[float]]]) -> str:
    """A row for each quantity."""
    cells = [[name, *(f"{v:.2f}" if v < 10 else f"{v:.0f}" for v in values)] for name, values in rows]
    return table_html(caption, ["", *(f"{share} %" for share in PERCENTILES)], cells)


def table_html(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; the first column is text."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f"<table><caption>{html.escape(caption)}</caption>\n{row(header, 'th')}\n{body}</table>"


# === Plots ============================================================================================================
def worst_plot(section: LevelSection) -> str:
    """The classes with the smallest covered share, one line each: before, and after k-means."""
    shown = section.classes.filter(pl.col("covered").is_not_null())
    frequent = shown.filter(pl.col("boxes") >= FEW)
    chosen = (frequent if len(frequent) else shown).head(WORST)
    figure, axes = _figure(6.2, 1.5 + 0.23 * max(4, len(chosen)))
    y = np.arange(len(chosen))
    before = chosen["covered"].to_numpy() * 100
    axes.plot(before, y, "o", color=BEFORE, label=section.compared[0][1], zorder=3)
    if section.after is not None:
        after = chosen["covered_kmeans"].to_numpy() * 100
        axes.hlines(y, before, after, color=GREY, linewidth=2, zorder=1)
        axes.plot(after, y, "o", color=AFTER, label=section.compared[1][1], zorder=2)
    axes.set_yticks(y, [f"{_shorter(name)} ({count:,})" for name, count in chosen.select("name", "boxes").iter_rows()])
    axes.set(ylim=(len(chosen) - 0.4, -0.6), xlim=(-2, 102), xlabel=f"boxes with IoU ≥ {COVERED:g}, %")
    axes.tick_params(axis="y", labelsize=8, length=0)
    pool = f"{len(frequent)} classes with {FEW} boxes or more" if len(frequent) else f"{len(shown)} classes"
    of = pool if len(chosen) == len(frequent if len(frequent) else shown) else f"{len(chosen)} of {pool}"
    axes.set_title(f"Worst-covered classes: {of}\n(all are in {section.table})", fontsize=10, loc="left")
    _legend_below(figure, axes)
    return _image(figure, "worst-covered classes")


def coverage_plot(section: LevelSection, image_size: int) -> str:
    """The covered share by the size of the boxes, over a histogram of the sizes."""
    first = section.coverages[0]
    sides, weights = np.sqrt(first.boxes.sizes.prod(axis=1)) * image_size, first.boxes.weights
    edges = 2.0 ** np.arange(np.log2(_smallest(sides, weights)), np.log2(image_size) + 0.5, 0.5)
    bins = np.clip(np.digitize(sides, edges) - 1, 0, len(edges) - 2)
    total, drawn = np.bincount(bins, weights, len(edges) - 1), np.bincount(bins, minlength=len(edges) - 1)
    figure, axes = _figure(5.2, 3.6)
    axes.bar(
        edges[:-1], 100 * total / total.sum(), np.diff(edges), align="edge", color=GREY, label="share of all boxes"
    )
    middles = np.sqrt(edges[:-1] * edges[1:])
    total = np.maximum(total, 1e-9)
    for number, name, colour in section.compared:
        covered = np.bincount(bins, weights * (first.ious[number] >= COVERED), len(edges) - 1)
        shown = drawn >= min(FEWEST_OF_SIZE, drawn.max())
        axes.plot(middles[shown], 100 * (covered / total)[shown], "o-", color=colour, markersize=4, label=name)
    axes.set_xscale("log", base=2)
    _power_ticks(axes.set_xticks, edges[0], edges[-1])
    axes.set(ylim=(0, 102), xlabel=f"square root of the box's area, pixels at {image_size}", ylabel="%")
    axes.set_title(f"Covered boxes (IoU ≥ {COVERED:g}) by size", fontsize=10, loc="left")
    _legend_below(figure, axes)
    return _image(figure, "covered boxes by size")


def sizes_plot(section: LevelSection, image_size: int) -> str:
    """Widths and heights of the boxes, and of the anchors."""
    first = section.coverages[0]
    width, height = (first.boxes.sizes * image_size).T
    smallest, largest = _smallest(np.minimum(width, height), first.boxes.weights), 2.0 * image_size
    edges = np.geomspace(smallest, largest, 49)
    figure, axes = _figure(5.2, 4.9)
    mesh = _density(axes, width, height, first.boxes.weights, edges)
    figure.colorbar(mesh, ax=axes, label="boxes", shrink=0.7, format="%g")
    for (number, name, colour), marker in zip(section.compared, "s^", strict=False):
        pairs = np.concatenate([np.asarray(sizes) for sizes in section.sets[number].settings["sizes"]]) * image_size
        axes.plot(*pairs.T, marker, color=colour, markeredgecolor="white", markersize=7, label=name, linestyle="")
    axes.set(xlim=(smallest, largest), ylim=(smallest, largest), aspect="equal")
    _power_ticks(axes.set_xticks, smallest, largest)
    _power_ticks(axes.set_yticks, smallest, largest)
    axes.set(xlabel=f"width, pixels at {image_size}", ylabel=f"height, pixels at {image_size}")
    axes.set_title("Sizes of the boxes and of the anchors", fontsize=10, loc="left")
    _legend_below(figure, axes)
    return _image(figure, "sizes of boxes and anchors")


def images_plot(image_sizes: dict[str, pl.DataFrame]) -> str:
    """Widths and heights of the images of all splits."""
    width, height = pl.concat(image_sizes.values()).select("width", "height").to_numpy().T.astype("float64")
    figure, axes = _figure(5.2, 4.6)
    low, high = min(width.min(), height.min()) / 1.5, max(width.max(), height.max()) * 1.5
    edges = np.geomspace(low, high, 49)
    mesh = _density(axes, width, height, np.ones(len(width)), edges)
    figure.colorbar(mesh, ax=axes, label="images", shrink=0.7, format="%g")
    _power_ticks(axes.set_xticks, low, high)
    _power_ticks(axes.set_yticks, low, high)
    axes.set(xlabel="width, pixels", ylabel="height, pixels", xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_title(f"Sizes of the images: {', '.join(image_sizes)}", fontsize=10, loc="left")
    return _image(figure, "sizes of the images")


def ratios_plot(ratios: dict[str, tuple[np.ndarray, np.ndarray]], title: str) -> str:
    """Histograms of width / height, {split: (values, weights)}."""
    figure, axes = _figure(5.2, 3.2)
    edges = np.geomspace(RATIOS[0], RATIOS[-1], 61)
    for (split, (values, weights)), colour in zip(ratios.items(), (AFTER, BEFORE, "#666666"), strict=False):
        share = np.histogram(np.clip(values, edges[0], edges[-1]), edges, weights=100 * weights / weights.sum())[0]
        axes.stairs(share, edges, color=colour, fill=len(ratios) == 1, alpha=0.85, linewidth=1.5, label=split)
    axes.set_xscale("log")
    axes.set_xticks(RATIOS, [f"{ratio:g}" for ratio in RATIOS])
    axes.minorticks_off()
    axes.set(xlabel="width / height (the outermost bars have what is beyond)", ylabel="%")
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)
    return _image(figure, title)


def _image_ratios(image_sizes: dict[str, pl.DataFrame]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    ratios = {split: (sizes["width"] / sizes["height"]).to_numpy() for split, sizes in image_sizes.items()}
    return {split: (values, np.ones(len(values))) for split, values in ratios.items()}


def _density(axes, width: np.ndarray, height: np.ndarray, weights: np.ndarray, edges: np.ndarray):
    """Draws how many points lie where, on logarithmic axes, and returns the coloured mesh."""
    from matplotlib.colors import LogNorm

    inside = (np.clip(side, edges[0], edges[-1]) for side in (width, height))
    counts = np.histogram2d(*inside, bins=(edges, edges), weights=weights)[0].T
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    limits = LogNorm(1, max(2.0, counts.max()))
    return axes.pcolormesh(edges, edges, np.ma.masked_less(counts, 0.5), cmap="Greys", norm=limits)


def _smallest(sides: np.ndarray, weights: np.ndarray) -> float:
    """A power of two, in pixels, below which hardly any side is."""
    low = weighted_quantiles(sides, weights, np.array([0.002]))[0]
    return 2.0 ** np.floor(np.log2(max(low, 0.25)))


def _power_ticks(set_ticks, low: float, high: float) -> None:
    """Marks the powers of two on an axis."""
    ticks = [tick for tick in 2.0 ** np.arange(-2, 21) if low <= tick <= high]
    set_ticks(ticks, [f"{tick:g}" for tick in ticks])


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _legend_below(figure, axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def _image(figure, words: str) -> str:
    """The figure as a PNG within the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    source = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{source}">'


def _shorter(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"
