"""A picture of a training run: losses and learning rate, and AP where there were tests."""

import json
import os


def draw_curves(metrics_file, target, logger):
    """Draw the losses and, if there are any, the test results of a metrics file.

    Args:
        metrics_file (str): metrics.jsonl of a run.
        target (str): the .png file to write.
        logger (logging.Logger): is told if matplotlib is not installed.

    Returns:
        bool: whether there is a picture.
    """
    with open(metrics_file, encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream if line.endswith("}\n")]
    training = [line for line in lines if "loss" in line]
    tests = [line for line in lines if "AP" in line or "map" in line]
    if not training:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        logger.info(f"Curves are not drawn, the import of matplotlib failed: {error} (pip install matplotlib)")
        return False

    figure = Figure(figsize=(7.0, 8.0 if tests else 4.5))
    FigureCanvasAgg(figure)  # draws without a display, whatever backend the user has chosen
    axes = figure.subplots(2 if tests else 1, 1, squeeze=False, sharex=True)[:, 0]
    _draw_losses(axes[0], training)
    if tests:
        _draw_tests(axes[1], tests)
    axes[-1].set_xlabel("iteration")
    figure.tight_layout()
    temporary = target + ".tmp.png"
    figure.savefig(temporary, dpi=110)
    os.replace(temporary, target)
    return True


def _draw_losses(axis, training):
    iterations = [line["iteration"] for line in training]
    for name in sorted(key for key in training[-1] if key.startswith("loss")):
        values = [line.get(name) for line in training]
        axis.plot(iterations, values, label=name, linewidth=1.6 if name == "loss" else 1.0)
    axis.set_ylabel("loss")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    rate = axis.twinx()
    rate.plot(iterations, [line["lr"] for line in training], color="0.6", linestyle=":", label="lr")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    axis.legend(*[a + b for a, b in zip(axis.get_legend_handles_labels(), rate.get_legend_handles_labels())])


def _draw_tests(axis, tests):
    series = {}
    for line in tests:
        for metric in ("AP", "AP50", "map"):
            if metric in line:
                label = f"{line.get('dataset', '')[-40:]} {metric}"  # of a path, the end tells more
                series.setdefault(label, []).append((line["iteration"], line[metric]))
    for label, points in sorted(series.items()):
        axis.plot(*zip(*points), marker="o", markersize=4, label=label)
    axis.set_ylabel("test")
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    axis.legend()
