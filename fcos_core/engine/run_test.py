"""From weights to metrics: everything that tools/test_net.py does.

weights and config -> device and processes -> model -> data -> run_test
"""

import logging

from fcos_core.data import make_data_loader, resolve_num_classes
from fcos_core.layers._library import check_operators
from fcos_core.modeling.detector import build_detection_model
from fcos_core.utils.comm import get_local_rank, get_rank, get_world_size, init_distributed, shut_down
from fcos_core.utils.logger import setup_logger
from fcos_core.utils.preflight import check_device, resolve_device

from .forward import move_model
from .inference import run_test
from .restore import load_weights, restore_run

__all__ = ["evaluate_checkpoint"]


def evaluate_checkpoint(config_file="", opts=()):
    """Test weights on DATASETS.TEST, alone or as one of several processes that a launcher started.

    Args:
        config_file (str): yaml; "" takes the config from the checkpoint.
        opts (sequence[str]): KEY VALUE pairs.

    Returns:
        dict: data set name -> result of `inference` (None on all but the main process).

    Raises:
        ValueError: no data set to test on, no weights, or no config; see `restore_run`.
    """
    logger = logging.getLogger("fcos_core.inference")
    run = restore_run(config_file, opts)
    cfg = run.cfg
    if not cfg.DATASETS.TEST:
        raise ValueError(
            "evaluate_checkpoint: expected DATASETS.TEST to name a data set, got none; add for example "
            "DATASETS.TEST \"('shapes_val',)\" to the command"
        )
    device = resolve_device(cfg.MODEL.DEVICE, get_local_rank())
    init_distributed(device.type)
    setup_logger("fcos_core", cfg.OUTPUT_DIR, get_rank())
    check_device(device, logger)
    check_operators(device, logger)
    logger.info("Using %d process(es), this one on %s", get_world_size(), device)
    # A checkpoint with class names has set the number: then it is the data that has to agree.
    explicit = bool(run.categories) or any(name.endswith(".NUM_CLASSES") for name in run.explicit)
    resolve_num_classes(cfg, tuple(cfg.DATASETS.TEST), explicit)
    model = build_detection_model(cfg)
    load_weights(cfg, model, run.weights)
    model = move_model(model, device, cfg.MODEL.CHANNELS_LAST)
    data_loaders = make_data_loader(cfg, is_train=False, is_distributed=get_world_size() > 1)
    for name, data_loader in zip(cfg.DATASETS.TEST, data_loaders):
        _compare_classes(name, getattr(data_loader.dataset, "categories", None), run.categories, logger)
    results = run_test(cfg, model, data_loaders, device)
    shut_down()
    return results


def _compare_classes(name, of_data, of_weights, logger):
    """Equal numbers of classes in another order would give low metrics without any other sign."""
    if of_data and of_weights and list(of_data) != list(of_weights):
        logger.warning(
            "The classes of %s are %s, those of the weights %s: labels are compared by number, so this is right only "
            "if the same things go by different names.",
            name,
            list(of_data),
            list(of_weights),
        )
