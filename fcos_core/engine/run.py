"""From a config to a trained and tested model: everything that tools/train_net.py does.

    device and processes -> model -> weights or resume -> data -> do_train -> tests, pictures, curves
"""

import logging
import os

import torch

from fcos_core.config.heads import chosen_head
from fcos_core.data import make_data_loader, resolve_num_classes
from fcos_core.engine.forward import move_model
from fcos_core.engine.guards import refuse_nothing_to_do
from fcos_core.engine.inference import folder_name, run_test
from fcos_core.engine.pictures import draw_predictions
from fcos_core.engine.precision import Precision
from fcos_core.engine.report import TrainingReport, append_results
from fcos_core.engine.trainer import do_train
from fcos_core.layers._library import check_operators
from fcos_core.modeling.detector import build_detection_model
from fcos_core.solver import make_lr_scheduler, make_optimizer
from fcos_core.utils.checkpoint import DetectronCheckpointer
from fcos_core.utils.collect_env import collect_env_info
from fcos_core.utils.comm import (
    broadcast_object,
    get_local_rank,
    get_rank,
    get_world_size,
    init_distributed,
    is_main_process,
    shut_down,
    synchronize,
)
from fcos_core.utils.command_line import exit_code_of
from fcos_core.utils.logger import setup_logger
from fcos_core.utils.miscellaneous import mkdir, write_atomically
from fcos_core.utils.preflight import check_device, resolve_device
from fcos_core.utils.rng import draw_seed, seed_everything


def run_training(cfg, explicit_keys=(), skip_test=False):
    """Train and test as the config says, alone or as one of several processes that a launcher started.

    Args:
        cfg (CfgNode): not frozen; the number of classes and the seed are filled in.
        explicit_keys (set[str]): dotted names that the user set, as `load_config` returns them.
        skip_test (bool): do not test after the training.

    Returns:
        int: exit code for the process. 0: done. 1: stopped for a reason that the log gives in a sentence.

    Raises:
        TrainingInterrupted: after SIGTERM or Ctrl-C, with a checkpoint written; exit code 128 + signal.
    """
    return exit_code_of(lambda: _run(cfg, explicit_keys, skip_test))


def _run(cfg, explicit_keys, skip_test):
    logger = logging.getLogger("fcos_core")
    device = resolve_device(cfg.MODEL.DEVICE, get_local_rank())
    init_distributed(device.type)
    setup_logger("fcos_core", cfg.OUTPUT_DIR, get_rank())
    check_device(device, logger)
    check_operators(device, logger)
    _train_and_test(cfg, explicit_keys, skip_test, device, logger)
    shut_down()


def _train_and_test(cfg, explicit_keys, skip_test, device, logger):
    logger.info(f"Using {get_world_size()} process(es), this one on {device}")
    logger.info("Environment:\n" + collect_env_info())
    names = tuple(cfg.DATASETS.TRAIN) + tuple(cfg.DATASETS.TEST)
    resolve_num_classes(cfg, names, _says_number_of_classes(cfg, explicit_keys))
    config_text = cfg.dump()
    _write_config(cfg.OUTPUT_DIR, config_text, logger)

    seed = cfg.SEED if cfg.SEED >= 0 else broadcast_object(draw_seed())
    seed_everything(seed)
    model = move_model(_build_model(cfg, device, logger), device, cfg.MODEL.CHANNELS_LAST)
    optimizer = make_optimizer(cfg, model)
    scheduler = make_lr_scheduler(cfg, optimizer)
    checkpointer = DetectronCheckpointer(cfg, model, optimizer, scheduler, cfg.OUTPUT_DIR, is_main_process())
    arguments = {"iteration": 0}
    arguments.update(checkpointer.load(cfg.MODEL.WEIGHT, skip_mismatched=True))
    refuse_nothing_to_do(arguments["iteration"], cfg.SOLVER.MAX_ITER)  # before the data is looked for

    cfg.SEED = _seed_of_the_data(cfg.SEED, seed, arguments, logger)
    data_loader = make_data_loader(cfg, True, get_world_size() > 1, arguments["iteration"])
    categories = list(getattr(data_loader.dataset, "categories", []))
    arguments.update(categories=categories, config=config_text, sampler={"seed": cfg.SEED})
    tester = _Tester(cfg, model, device)
    do_train(
        _wrap(model, device),
        data_loader,
        optimizer,
        scheduler,
        checkpointer,
        device,
        cfg.SOLVER.CHECKPOINT_PERIOD,
        arguments,
        precision=Precision(cfg.SOLVER.AMP, device),
        clip_gradients=cfg.SOLVER.CLIP_GRADIENTS,
        accumulate=cfg.SOLVER.ACCUMULATE,
        channels_last=cfg.MODEL.CHANNELS_LAST,
        report=TrainingReport(
            cfg.SOLVER.MAX_ITER,
            cfg.OUTPUT_DIR,
            cfg.SOLVER.LOG_PERIOD,
            cfg.SOLVER.TENSORBOARD,
            arguments["iteration"],
        ),
        test_period=cfg.SOLVER.TEST_PERIOD if cfg.DATASETS.TEST else 0,
        run_test=tester,
    )
    if cfg.DATASETS.TEST and not skip_test:
        results = tester(model)
        if is_main_process():
            append_results(cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER, results, cfg.SOLVER.TENSORBOARD)
            tester.draw()
        synchronize()


def _says_number_of_classes(cfg, explicit_keys):
    """Whether the user set MODEL.<head>.NUM_CLASSES of the head that is on."""
    return f"MODEL.{chosen_head(cfg)}.NUM_CLASSES" in explicit_keys


class _Tester(object):
    """Tests the model on the data sets of the config; builds their loaders once, at the first call."""

    def __init__(self, cfg, model, device):
        self._cfg = cfg
        self._model = model  # without DDP, whose forward pass would exchange buffers
        self._device = device
        self._loaders = None

    def __call__(self, _):
        """Returns {data set: {metric: value}} in the main process, {} in the others."""
        if self._loaders is None:
            self._loaders = make_data_loader(self._cfg, False, get_world_size() > 1)
        results = run_test(self._cfg, self._model, self._loaders, self._device)
        return {name: metrics_of(result) for name, result in results.items()}

    def draw(self):
        """Leave some pictures with detections of the last data set in OUTPUT_DIR."""
        folder = os.path.join(self._cfg.OUTPUT_DIR, "inference", folder_name(self._cfg.DATASETS.TEST[-1]))
        draw_predictions(
            self._loaders[-1].dataset, os.path.join(folder, "predictions.pth"), self._cfg.OUTPUT_DIR
        )


def metrics_of(result):
    """The plain numbers of an evaluation result.

    Args:
        result: what `inference` returns: (COCOResults, dict), a dict with "map", or None (no annotations; other
            processes than the main one).

    Returns:
        dict[str, float]: AP, AP50, ... or map; without those that could not be computed (-1).
    """
    if isinstance(result, tuple) and hasattr(result[0], "results"):
        values = result[0].results.get("bbox", {})
    elif isinstance(result, dict):
        values = {name: value for name, value in result.items() if isinstance(value, (int, float))}
    else:
        values = {}
    return {name: float(value) for name, value in values.items() if value >= 0}  # also drops NaN


def _build_model(cfg, device, logger):
    model = build_detection_model(cfg)
    if cfg.MODEL.USE_SYNCBN:
        if get_world_size() > 1 and device.type == "cuda":
            return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        logger.info("MODEL.USE_SYNCBN has no effect: it needs several processes on GPUs; BatchNorm stays local")
    return model


def _wrap(model, device):
    """The model as DDP trains it. Legacy: batch-norm buffers are not exchanged, each process keeps its own."""
    if get_world_size() == 1:
        return model
    return torch.nn.parallel.DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def _seed_of_the_data(configured, seed, arguments, logger):
    """Seed of the order of the data: the configured one, else the one that the resumed run used, else `seed`."""
    stored = arguments.get("sampler", {}).get("seed")
    chosen = stored if configured < 0 and stored is not None else seed
    if stored is not None and stored != chosen:
        logger.warning(f"The checkpoint was trained with SEED {stored}, not {chosen}: the data comes in another order")
    logger.info(f"SEED {chosen}" + ("" if configured >= 0 else " (drawn, since the config leaves it open)"))
    return chosen


def _write_config(output_dir, text, logger):
    if is_main_process() and output_dir:
        mkdir(output_dir)
        path = os.path.join(output_dir, "config.yml")
        write_atomically(path, lambda stream: stream.write(text.encode("utf-8")))
        logger.info(f"The config is saved in {path}")
