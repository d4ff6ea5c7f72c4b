"""Bars of an evaluation: a panel a score, groups of questions across, a bar a method."""

from __future__ import annotations

from pathlib import Path


def bars(groups: list[dict], scores: dict[str, str], file: Path, title: str) -> bool:
    """Draws mean scores in percent; False when matplotlib is not there or nothing to draw.

    groups   dicts of group, method, cases and scores
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

    names = list(dict.fromkeys(g["group"] for g in groups))
    methods = list(dict.fromkeys(g["method"] for g in groups))
    count = {g["group"]: g["cases"] for g in groups}
    values = {(g["group"], g["method"]): g["scores"] for g in groups}
    size = (max(6.0, 1.7 * len(names)), 2.9 * len(scores))
    figure, axes = plt.subplots(len(scores), 1, figsize=size, sharex=True, squeeze=False)
    width = 0.8 / len(methods)
    for axis, (score, label) in zip(axes[:, 0], scores.items(), strict=True):
        for i, method in enumerate(methods):
            at = [x - 0.4 + (i + 0.5) * width for x in range(len(names))]
            heights = [100 * (values.get((n, method), {}).get(score) or 0) for n in names]
            drawn = axis.bar(at, heights, width, label=method)
            axis.bar_label(drawn, fmt="%.0f", fontsize=7)
        axis.set_ylabel(f"{label}, %")
        axis.spines[["top", "right"]].set_visible(False)
    labels = [n.replace(": ", ":\n").replace(" information", "\ninformation") for n in names]
    labels = [f"{label}\n({count[n]})" for label, n in zip(labels, names, strict=True)]
    axes[-1, 0].set_xticks(range(len(names)), labels, fontsize=8)
    axes[0, 0].set_title(title, loc="left")
    axes[0, 0].legend(ncols=len(methods), fontsize=8, frameon=False, loc="upper right")
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
    return True
