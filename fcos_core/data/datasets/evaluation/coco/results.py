"""The result of a COCO evaluation, and its comparison with expected values."""

import logging
from collections import OrderedDict

__all__ = ["COCOResults", "check_expected_results"]


class COCOResults(object):
    """Metrics by task: ``results.results["bbox"]["AP"]``; -1 where a metric was not computed or has no object.

    Args:
        *iou_types (str): tasks, each a key of ``METRICS``.
    """

    METRICS = {
        "bbox": ["AP", "AP50", "AP75", "APs", "APm", "APl"],
        "segm": ["AP", "AP50", "AP75", "APs", "APm", "APl"],
        "box_proposal": [
            "AR@100",
            "ARs@100",
            "ARm@100",
            "ARl@100",
            "AR@1000",
            "ARs@1000",
            "ARm@1000",
            "ARl@1000",
        ],
        "keypoints": ["AP", "AP50", "AP75", "APm", "APl"],
    }

    def __init__(self, *iou_types):
        unknown = [iou_type for iou_type in iou_types if iou_type not in self.METRICS]
        if unknown:
            raise ValueError(
                "COCOResults: expected iou_types among {}, got {}; leave it out".format(
                    ", ".join(sorted(self.METRICS)), unknown[0]
                )
            )
        self.results = OrderedDict(
            (iou_type, OrderedDict((metric, -1) for metric in self.METRICS[iou_type])) for iou_type in iou_types
        )

    def update(self, coco_eval):
        """Take over the summary of a COCOeval (``params.iouType`` says which task, ``stats`` the numbers)."""
        if coco_eval is None:
            return
        metrics = self.results[coco_eval.params.iouType]
        for metric, value in zip(list(metrics), coco_eval.stats):
            metrics[metric] = float(value)

    def to_dict(self):
        """Plain nested dicts, for saving."""
        return {task: dict(metrics) for task, metrics in self.results.items()}

    def __repr__(self):
        lines = []
        for task, metrics in self.results.items():
            width = max(8, *(len(name) + 2 for name in metrics))
            lines.append("Task: {}".format(task))
            lines.append("".join(name.rjust(width) for name in metrics))
            lines.append("".join("{:.4f}".format(value).rjust(width) for value in metrics.values()))
        return "\n".join(lines)


def check_expected_results(results, expected_results, sigma_tol):
    """Log PASS or FAIL for every expected value (``TEST.EXPECTED_RESULTS``).

    Args:
        results (COCOResults)
        expected_results: rows [task, metric, [mean, standard deviation]].
        sigma_tol (float): a value may differ from the mean by this many standard deviations.

    Returns:
        bool: every row passed (True without rows).

    Raises:
        KeyError: a task or metric that was not evaluated.
    """
    logger = logging.getLogger("fcos_core.inference")
    passed = True
    for task, metric, (mean, std) in expected_results:
        if task not in results.results or metric not in results.results[task]:
            raise KeyError(
                "check_expected_results: expected an evaluated task and metric, got {} {}; evaluated: {}".format(
                    task, metric, {name: list(metrics) for name, metrics in results.results.items()}
                )
            )
        actual = results.results[task][metric]
        low, high = mean - sigma_tol * std, mean + sigma_tol * std
        within = low < actual < high or actual == mean  # the second for a deviation of zero
        message = "{} > {} (actual vs. expected): {:.3f} vs. mean={:.4f}, std={:.4f}, range=({:.4f}, {:.4f})".format(
            task, metric, actual, mean, std, low, high
        )
        if within:
            logger.info("PASS: %s", message)
        else:
            logger.error("FAIL: %s", message)
        passed = passed and within
    return passed
