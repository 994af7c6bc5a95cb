"""From a config to data loaders."""
import bisect
import logging

import torch
import torch.utils.data

from fcos_core.utils import comm

from . import datasets as D
from . import samplers
from .catalog import find_dataset, load_catalog
from .collate_batch import BatchCollator, BBoxAugCollator
from .transforms import build_transforms

logger = logging.getLogger(__name__)


def build_dataset(dataset_list, transforms, dataset_catalog, is_train=True):
    """Make data sets from their names.

    Args:
        dataset_list (sequence[str]): names or paths, see `DatasetCatalog.get`.
        transforms (callable | None): given to each data set.
        dataset_catalog: a class with `get(name)` as in `paths_catalog.py`.
        is_train (bool): join the data sets to one, and leave out difficult objects (VOC) and, for the COCO sets of the
            catalog, images without objects, as the ancestors did.  Own data and the built-in set keep theirs.

    Returns:
        list: one data set for training, otherwise one per name.

    Raises:
        ValueError: no name; for training: no annotations in any set, or sets with different classes.
    """
    names = [dataset_list] if isinstance(dataset_list, str) else list(dataset_list)
    if not names:
        raise ValueError("build_dataset: expected at least one data set, got none; set DATASETS.{}".format(
            "TRAIN" if is_train else "TEST"))
    parts = []
    for name in names:
        entry = find_dataset(name, dataset_catalog)
        arguments = dict(entry["args"], transforms=transforms)
        if entry["factory"] == "COCODataset":
            arguments.setdefault("remove_images_without_annotations", is_train)
        if entry["factory"] == "PascalVOCDataset":
            arguments.setdefault("use_difficult", not is_train)
        parts.append(getattr(D, entry["factory"])(**arguments))
    if not is_train:
        return parts
    if not any(getattr(part, "has_annotations", True) for part in parts):
        raise ValueError("build_dataset: expected annotations to train on, got none in {}; put a data set with boxes "
                         "into "
                         "DATASETS.TRAIN".format(names))
    named = [(name, list(part.categories)) for name, part in zip(names, parts) if part.categories]
    for name, categories in named:
        if categories != named[0][1]:
            raise ValueError(
                "build_dataset: expected the same classes in all data sets that are trained on together, got {} in "
                "{!r} and "
                "{} in {!r}; give all files the same list of "
                "categories".format(named[0][1], named[0][0], categories, name))
    return [parts[0] if len(parts) == 1 else D.ConcatDataset(parts)]


def make_data_sampler(dataset, shuffle, distributed, seed=0):
    """Order of the images for this process.

    Args:
        dataset: anything with a length.
        shuffle (bool): random order, reproducible from the seed, also in a single process.
        distributed (bool): only this process's part.
        seed (int): >= 0.
    """
    if distributed:
        return samplers.DistributedSampler(dataset, shuffle=shuffle, seed=seed)
    if shuffle:
        return samplers.DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=seed)
    return torch.utils.data.sampler.SequentialSampler(dataset)


def _quantize(x, bins):
    """Number of the bin of each value: how many of the ascending limits `bins` are <= it."""
    bins = sorted(bins)
    return [bisect.bisect_right(bins, value) for value in x]


def _compute_aspect_ratios(dataset):
    """Height / width of every image."""
    ratios = []
    for index in range(len(dataset)):
        info = dataset.get_img_info(index)
        ratios.append(float(info["height"]) / float(info["width"]))
    return ratios


def make_batch_data_sampler(dataset, sampler, aspect_grouping, images_per_batch, num_iters=None, start_iter=0,
                            seed=None, first_position=0):
    """Batches of indices.

    Args:
        dataset: asked for `get_img_info` if there is aspect grouping.
        sampler: order of the images.
        aspect_grouping (sequence[float] | bool): limits of height / width; a batch stays between two of them.  True
            stands for [1], False or empty for none.
        images_per_batch (int): of this process.
        num_iters (int | None): number of batches; None is one pass.
        start_iter (int): batches that an interrupted run has had; the next ones follow as if it had gone on.
        seed (int | None): see IterationBasedBatchSampler.
        first_position (int): see IterationBasedBatchSampler.
    """
    if aspect_grouping:
        limits = [1] if aspect_grouping is True else list(aspect_grouping)
        groups = _quantize(_compute_aspect_ratios(dataset), limits)
        batches = samplers.GroupedBatchSampler(sampler, groups, images_per_batch, drop_uneven=False)
    else:
        batches = torch.utils.data.sampler.BatchSampler(sampler, images_per_batch, drop_last=False)
    if num_iters is not None:
        batches = samplers.IterationBasedBatchSampler(
            batches, num_iters, start_iter, fast_forward=True, seed=seed, first_position=first_position)
    return batches


def make_data_loader(cfg, is_train=True, is_distributed=False, start_iter=0):
    """Data loaders for training or for testing.

    Args:
        cfg (CfgNode): keys DATASETS, DATALOADER, INPUT, SOLVER, TEST, SEED, MODEL.DEVICE, PATHS_CATALOG.
        is_train (bool): which.
        is_distributed (bool): give this process its part of the data only.
        start_iter (int): iterations (optimizer steps) that the run to be continued has done.

    Returns:
        DataLoader | list[DataLoader]: for training one, over SOLVER.MAX_ITER * SOLVER.ACCUMULATE micro-batches counted
        from iteration 0 (`len()` says so too), of which it yields those from start_iter on; for testing one per data
        set, over one pass.  Batches are (ImageList, tuple of BoxLists, tuple of indices), or tuples of raw images where
        TEST.BBOX_AUG is on.  The batches depend on cfg.SEED (-1 counts as 0) and on the iteration, not on
        NUM_WORKERS and not on where a run was resumed.

    Raises:
        ValueError: IMS_PER_BATCH is no multiple of processes * SOLVER.ACCUMULATE.
    """
    world, rank = (comm.get_world_size(), comm.get_rank()) if is_distributed else (1, 0)
    accumulate = cfg.SOLVER.ACCUMULATE if is_train else 1
    images_per_batch = _images_per_process(cfg, is_train, world, accumulate)
    multi_scale = not is_train and cfg.TEST.BBOX_AUG.ENABLED
    seed = max(cfg.SEED, 0)

    catalog = load_catalog(cfg.PATHS_CATALOG)
    names = cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
    parts = build_dataset(names, None if multi_scale else build_transforms(cfg, is_train), catalog, is_train)
    if cfg.DATALOADER.SKIP_BAD_IMAGES:
        _skip_bad_images(parts, is_train)

    loaders = []
    for dataset in parts:
        if is_train and len(dataset) == 0:
            raise ValueError("make_data_loader: expected images to train on, got none in {}; images without any box "
                             "may "
                             "have been left out".format(tuple(names)))
        sampler = make_data_sampler(dataset, is_train, is_distributed, seed)
        batches = make_batch_data_sampler(
            dataset, sampler, cfg.DATALOADER.ASPECT_RATIO_GROUPING, images_per_batch,
            cfg.SOLVER.MAX_ITER * accumulate if is_train else None, start_iter * accumulate if is_train else 0,
            seed=seed, first_position=rank * images_per_batch)
        loaders.append(torch.utils.data.DataLoader(
            dataset,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            batch_sampler=batches,
            collate_fn=BBoxAugCollator(cfg.clone()) if multi_scale else BatchCollator(cfg.DATALOADER.SIZE_DIVISIBILITY),
            pin_memory=_feeds_gpu(cfg) and not multi_scale,
            # Without a generator of its own the loader would draw from the global one and shift what follows.
            generator=torch.Generator().manual_seed(seed)))
    return loaders[0] if is_train else loaders


def _images_per_process(cfg, is_train, world, accumulate):
    key = "SOLVER.IMS_PER_BATCH" if is_train else "TEST.IMS_PER_BATCH"
    total = cfg.SOLVER.IMS_PER_BATCH if is_train else cfg.TEST.IMS_PER_BATCH
    if total < 1 or total % (world * accumulate):
        raise ValueError(
            "make_data_loader: expected {} to be a positive multiple of {} ({} process(es){}), got {}; set it to "
            "{}".format(
                key, world * accumulate, world, " times SOLVER.ACCUMULATE {}".format(accumulate) if is_train else "",
                total, max(-(-total // (world * accumulate)), 1) * world * accumulate))
    return total // (world * accumulate)


def _feeds_gpu(cfg):
    device = cfg.MODEL.DEVICE
    return (device == "auto" or device.startswith("cuda")) and torch.cuda.is_available()


def _skip_bad_images(parts, is_train):
    for part in parts:
        for dataset in getattr(part, "datasets", [part]):
            if hasattr(dataset, "handle_bad_images"):
                dataset.handle_bad_images("replace" if is_train else "blank")
            else:
                logger.warning("DATALOADER.SKIP_BAD_IMAGES has no effect on %s: it is not a DetectionDataset",
                               type(dataset).__name__)
