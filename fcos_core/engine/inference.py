"""Testing: run the model over a data set on all processes, collect the detections, score them.

loader of a test set -> compute_on_dataset -> gather over the processes -> predictions.pth -> evaluate
"""

import logging
import os
import sys
import time

import torch

from fcos_core.data.datasets.evaluation import evaluate
from fcos_core.structures.bounding_box import BoxList
from fcos_core.utils.comm import all_gather, get_world_size, is_main_process, synchronize
from fcos_core.utils.timer import Timer, get_time_str

from .bbox_aug import im_detect_bbox_aug, make_bbox_aug
from .forward import detect, evaluation_mode, unwrap_model
from .predictions import from_plain, save_predictions, to_plain

__all__ = ["compute_on_dataset", "folder_name", "inference", "inference_options", "run_test"]


def inference(
    model,
    data_loader,
    dataset_name,
    iou_types=("bbox",),
    box_only=False,
    device="cuda",
    expected_results=(),
    expected_results_sigma_tol=4,
    output_folder=None,
    bbox_aug=None,
    amp="",
    channels_last=False,
    scorer="pycocotools",
    progress=None,
):
    """Detect on a whole data set and score the result.

    With several processes each one handles its part; all must call this function. The model comes back in the mode
    (train or eval) that it was in.

    Args:
        model (nn.Module): on ``device``; may be wrapped in DDP.
        data_loader: batches (ImageList, targets, indices into the data set); for ``bbox_aug`` raw PIL images.
        dataset_name (str): for the log.
        iou_types, box_only, expected_results, expected_results_sigma_tol: see `do_coco_evaluation`.
        device (torch.device | str)
        output_folder (str): receives ``predictions.pth`` (format: engine/predictions.py) and the files of the
            evaluation; None writes nothing.
        bbox_aug (BBoxAugSettings): multi-scale testing; None for a single pass, or for what the loader was made for:
            one with TEST.BBOX_AUG.ENABLED brings its config.
        amp (str): "", "float16" or "bfloat16".
        channels_last (bool): images in channels-last order.
        scorer (str): "pycocotools" or "faster_coco_eval".
        progress (bool): progress bar; None shows one on a terminal.

    Returns:
        on the main process what the evaluation returns: (COCOResults, dict of json-ready detections) for a COCO data
        set, a dict with ``ap`` and ``map`` for a VOC one. None on the others.
    """
    device = torch.device(device)
    devices = get_world_size()
    logger = logging.getLogger("fcos_core.inference")
    dataset = data_loader.dataset
    logger.info("Start evaluation on %s dataset (%d images).", dataset_name, len(dataset))
    timer = Timer()
    start = time.time()
    own = compute_on_dataset(model, data_loader, device, timer, bbox_aug, amp, channels_last, progress)
    synchronize()
    seconds = time.time() - start
    logger.info(
        "Total run time: %s (%.4f s / img per device, %.2f img / s, on %d devices)",
        get_time_str(seconds),
        seconds * devices / max(len(dataset), 1),
        len(dataset) / max(seconds, 1e-9),
        devices,
    )
    logger.info(
        "Model inference time: %s (%.4f s / img per device, on %d devices)",
        get_time_str(timer.total_time),
        timer.total_time / max(len(own), 1),
        devices,
    )
    predictions = _accumulate_predictions_from_multiple_gpus(own)
    if not is_main_process():
        return None
    if output_folder:
        os.makedirs(output_folder, exist_ok=True)
        save_predictions(os.path.join(output_folder, "predictions.pth"), predictions, dataset_name)
    return evaluate(
        dataset=dataset,
        predictions=_one_per_image(predictions, dataset, logger),
        output_folder=output_folder,
        box_only=box_only,
        iou_types=iou_types,
        expected_results=expected_results,
        expected_results_sigma_tol=expected_results_sigma_tol,
        scorer=scorer,
    )


def compute_on_dataset(
    model, data_loader, device, timer=None, bbox_aug=None, amp="", channels_last=False, progress=None
):
    """Detections of the batches of one process.

    Args:
        timer (Timer): adds up the time of the model, without that of data loading.
        others: see `inference`.

    Returns:
        dict[int, BoxList]: by index in the data set, on the CPU, in pixels of the network input.
    """
    device, model = torch.device(device), unwrap_model(model)
    predictions = {}
    bbox_aug = bbox_aug or _settings_of_loader(data_loader)
    with evaluation_mode(model):
        for images, _, indices in _with_progress_bar(data_loader, progress):
            if timer:
                timer.tic()
            if bbox_aug:
                boxlists = im_detect_bbox_aug(model, images, device, bbox_aug)
            else:
                boxlists = detect(model, images, device, amp, channels_last)
            # The copy to the CPU waits for the GPU, so the time is right without a synchronisation of its own.
            boxlists = [boxlist.to("cpu") for boxlist in boxlists]
            if timer:
                timer.toc()
            predictions.update(zip((int(index) for index in indices), boxlists))
    return predictions


def _settings_of_loader(data_loader):
    """Settings of multi-scale testing for a loader of raw images, or None. Old scripts hand over the loader only."""
    cfg = getattr(getattr(data_loader, "collate_fn", None), "cfg", None)
    return None if cfg is None else make_bbox_aug(cfg)


def _with_progress_bar(data_loader, progress):
    if progress is None:
        progress = sys.stderr.isatty()
    if not (progress and is_main_process()):
        return data_loader
    try:
        from tqdm import tqdm
    except ImportError:  # a convenience only
        return data_loader
    return tqdm(data_loader, desc="test", unit="batch", dynamic_ncols=True)


def _accumulate_predictions_from_multiple_gpus(predictions_per_gpu):
    """The predictions of all processes, dict by index; None on all but the main process.

    Samplers hand out images twice to give every process equally many; the first prediction of an image stays.
    """
    if get_world_size() == 1:
        return predictions_per_gpu
    gathered = all_gather(to_plain(predictions_per_gpu))
    if not is_main_process():
        return None
    predictions = {}
    for rows in gathered:
        for index, boxlist in from_plain(rows).items():
            predictions.setdefault(index, boxlist)
    return predictions


def _one_per_image(predictions, dataset, logger):
    """List over the images of the data set; an image that was not run gets no boxes, and a warning counts them."""
    missing = [index for index in range(len(dataset)) if index not in predictions]
    if missing:
        logger.warning(
            "%d of %d images have no prediction (first index: %d) and count as images without detections.",
            len(missing),
            len(dataset),
            missing[0],
        )
    complete = []
    for index in range(len(dataset)):
        boxlist = predictions.get(index)
        if boxlist is None:
            info = dataset.get_img_info(index)
            boxlist = BoxList(torch.zeros(0, 4), (info["width"], info["height"]))
            boxlist.add_field("scores", torch.zeros(0))
            boxlist.add_field("labels", torch.zeros(0, dtype=torch.int64))
        complete.append(boxlist)
    return complete


def inference_options(cfg):
    """The keyword arguments of `inference` that the config decides."""
    return {
        "expected_results": cfg.TEST.EXPECTED_RESULTS,
        "expected_results_sigma_tol": cfg.TEST.EXPECTED_RESULTS_SIGMA_TOL,
        "bbox_aug": make_bbox_aug(cfg),
        "amp": cfg.SOLVER.AMP,
        "channels_last": cfg.MODEL.CHANNELS_LAST,
        "scorer": cfg.TEST.SCORER,
    }


def run_test(cfg, model, data_loaders, device, progress=None):
    """Test on every data set of DATASETS.TEST; results go to ``OUTPUT_DIR/inference/<data set>``.

    Args:
        cfg: the configuration.
        model (nn.Module): on ``device``.
        data_loaders (list): one per name in DATASETS.TEST, from ``make_data_loader(cfg, is_train=False)``.
        device (torch.device | str)
        progress (bool): see `inference`.

    Returns:
        dict: data set name -> result of `inference`.
    """
    results = {}
    for name, data_loader in zip(cfg.DATASETS.TEST, data_loaders):
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", folder_name(name)) if cfg.OUTPUT_DIR else None
        options = inference_options(cfg)
        results[name] = inference(
            model, data_loader, name, device=device, output_folder=folder, progress=progress, **options
        )
        synchronize()
    return results


def folder_name(dataset_name):
    """A data set name as one folder name: names like ``path/file.json:path/images`` hold separators."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in dataset_name).strip("_")
