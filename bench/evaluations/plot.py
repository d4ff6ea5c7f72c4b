"""Bars of an evaluation: a panel a score, groups of questions across, a bar a method."""

from __future__ import annotations

from pathlib import Path


def bars(groups: list[dict], scores: dict[str, str], file: Path, title: str) -> bool:
    """Draws mean scores in percent; False when matplotlib is not there or nothing to draw.

    groups   dicts of group, method, cases, fit (of them) and scores
    scores   the panels: name of a score -> its label
    """
    scores = {n: s for n, s in scores.items() if any(n in g["scores"] for g in groups)}
    try:
        import matplotlib
    except ImportError:
        return False
    if not scores:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    methods = list(dict.fromkeys(g["method"] for g in groups))
    by_key = {(g["group"], g["method"]): g for g in groups}
    # A group of which none of these scores is known has no place here (the clozes of LooGLE).
    names = [
        name
        for name in dict.fromkeys(g["group"] for g in groups)
        if any(_known(by_key.get((name, m)), score) for m in methods for score in scores)
    ]
    count = {n: max(by_key[n, m]["cases"] for m in methods if (n, m) in by_key) for n in names}
    size = (max(6.0, 1.7 * len(names)), 2.9 * len(scores))
    figure, axes = plt.subplots(len(scores), 1, figsize=size, sharex=True, squeeze=False,
                                layout="constrained")  # fmt: skip
    width = 0.8 / len(methods)
    for axis, (score, label) in zip(axes[:, 0], scores.items(), strict=True):
        for i, method in enumerate(methods):
            places = {n: x - 0.4 + (i + 0.5) * width for x, n in enumerate(names)}
            mine = {n: by_key.get((n, method)) for n in names}
            heights = {
                n: 100 * g["scores"][score] for n, g in mine.items() if g and _known(g, score)
            }
            drawn = axis.bar([places[n] for n in heights], [*heights.values()], width, label=method)
            axis.bar_label(drawn, fmt="%.0f", fontsize=7)
            for n, group in mine.items():
                if group and not group["fit"]:
                    axis.annotate(
                        "does not fit", (places[n], 0), (0, 3), textcoords="offset points",
                        rotation=90, ha="center", va="bottom", fontsize=6, color="0.45",
                    )  # fmt: skip
        axis.set_ylabel(f"{label}, %")
        axis.spines[["top", "right"]].set_visible(False)
    labels = [n.replace(": ", ":\n").replace(" information", "\ninformation") for n in names]
    labels = [f"{label}\n({count[n]})" for label, n in zip(labels, names, strict=True)]
    axes[-1, 0].set_xticks(range(len(names)), labels, fontsize=8)
    axes[0, 0].set_title(title, loc="left")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        *handles, ncols=len(methods), fontsize=8, frameon=False, loc="outside upper right"
    )
    figure.savefig(file, dpi=130)
    plt.close(figure)
    return True


def _known(group: dict | None, score: str) -> bool:
    return group is not None and group["scores"].get(score) is not None
