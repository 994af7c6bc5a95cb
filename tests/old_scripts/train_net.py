"""A training script as users of the predecessors have it: every name from its old place, every call in the old way.

Replacing fcos_core by atss_core gives the same script for that package.
"""
# the import alone runs the user's set-up code
from fcos_core.utils.env import setup_environment  # noqa: F401 isort: skip

import argparse
import os

import torch

from fcos_core.config import cfg
from fcos_core.data import make_data_loader
from fcos_core.engine.inference import inference
from fcos_core.engine.trainer import do_train
from fcos_core.modeling.detector import build_detection_model
from fcos_core.solver import make_lr_scheduler, make_optimizer
from fcos_core.utils.checkpoint import DetectronCheckpointer
from fcos_core.utils.collect_env import collect_env_info
from fcos_core.utils.comm import get_rank, is_pytorch_1_1_0_or_later, synchronize
from fcos_core.utils.imports import import_file
from fcos_core.utils.logger import setup_logger
from fcos_core.utils.miscellaneous import mkdir


def train(cfg, local_rank, distributed):
    model = build_detection_model(cfg)
    device = torch.device(cfg.MODEL.DEVICE)
    model.to(device)
    if cfg.MODEL.USE_SYNCBN:
        assert is_pytorch_1_1_0_or_later()
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)

    optimizer = make_optimizer(cfg, model)
    scheduler = make_lr_scheduler(cfg, optimizer)
    if distributed:
        on_gpu = device.type == "cuda"
        model = torch.nn.parallel.DistributedDataParallel(
            model,
            device_ids=[local_rank] if on_gpu else None,
            output_device=local_rank if on_gpu else None,
            broadcast_buffers=False,
        )

    arguments = {}
    arguments["iteration"] = 0
    save_to_disk = get_rank() == 0
    checkpointer = DetectronCheckpointer(cfg, model, optimizer, scheduler, cfg.OUTPUT_DIR, save_to_disk)
    extra_checkpoint_data = checkpointer.load(cfg.MODEL.WEIGHT)
    arguments.update(extra_checkpoint_data)

    data_loader = make_data_loader(
        cfg, is_train=True, is_distributed=distributed, start_iter=arguments["iteration"]
    )
    do_train(
        model,
        data_loader,
        optimizer,
        scheduler,
        checkpointer,
        device,
        cfg.SOLVER.CHECKPOINT_PERIOD,
        arguments,
    )
    return model


def run_test(cfg, model, distributed):
    if distributed:
        model = model.module
    one_stage = cfg.MODEL.FCOS_ON or cfg.MODEL.RETINANET_ON or cfg.MODEL.ATSS_ON
    data_loaders = make_data_loader(cfg, is_train=False, is_distributed=distributed)
    for dataset_name, data_loader in zip(cfg.DATASETS.TEST, data_loaders):
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        mkdir(output_folder)
        inference(
            model,
            data_loader,
            dataset_name=dataset_name,
            iou_types=("bbox",),
            box_only=False if one_stage else cfg.MODEL.RPN_ONLY,
            device=cfg.MODEL.DEVICE,
            expected_results=cfg.TEST.EXPECTED_RESULTS,
            expected_results_sigma_tol=cfg.TEST.EXPECTED_RESULTS_SIGMA_TOL,
            output_folder=output_folder,
        )
        synchronize()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config-file", default="", metavar="FILE")
    parser.add_argument("--local_rank", type=int, default=0)
    parser.add_argument("--skip-test", dest="skip_test", action="store_true")
    parser.add_argument("opts", default=None, nargs=argparse.REMAINDER)
    args = parser.parse_args()

    num_gpus = int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else 1
    args.distributed = num_gpus > 1

    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()

    if args.distributed:
        if cfg.MODEL.DEVICE == "cuda":
            torch.cuda.set_device(args.local_rank)
        backend = "nccl" if cfg.MODEL.DEVICE == "cuda" else "gloo"
        torch.distributed.init_process_group(backend=backend, init_method="env://")
        synchronize()

    if cfg.OUTPUT_DIR:
        mkdir(cfg.OUTPUT_DIR)
    logger = setup_logger("fcos_core", cfg.OUTPUT_DIR, get_rank())
    logger.info("Using {} GPUs".format(num_gpus))
    logger.info(args)
    logger.info("Collecting env info (might take some time)")
    logger.info("\n" + collect_env_info())
    paths_catalog = import_file("paths_catalog", cfg.PATHS_CATALOG, True)
    logger.info("{} data sets are known".format(len(paths_catalog.DatasetCatalog.DATASETS)))

    model = train(cfg, args.local_rank, args.distributed)
    if not args.skip_test:
        run_test(cfg, model, args.distributed)


if __name__ == "__main__":
    main()
