"""A demo script as users of the predecessors have it, beside demo/predictor.py; without its windows."""
import argparse
import glob
import os
import sys
import time

import cv2

from fcos_core.config import cfg


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config-file", default="configs/fcos/fcos_imprv_R_50_FPN_1x.yaml", metavar="FILE")
    parser.add_argument("--weights", default="FCOS_imprv_R_50_FPN_1x.pth", metavar="FILE")
    parser.add_argument("--images-dir", default="demo/images", metavar="DIR")
    parser.add_argument("--min-image-size", type=int, default=800)
    parser.add_argument("--demo-dir", required=True, help="old scripts lie there, so Python finds predictor.py")
    parser.add_argument("opts", default=None, nargs=argparse.REMAINDER)
    args = parser.parse_args()
    sys.path.insert(0, args.demo_dir)
    from predictor import COCODemo

    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.MODEL.WEIGHT = args.weights
    cfg.freeze()

    thresholds_for_classes = [0.0] * (cfg.MODEL.FCOS.NUM_CLASSES - 1)
    coco_demo = COCODemo(
        cfg, confidence_thresholds_for_classes=thresholds_for_classes, min_image_size=args.min_image_size
    )
    for path in sorted(glob.glob(os.path.join(args.images_dir, "*"))):
        image = cv2.imread(path)
        start_time = time.time()
        composite = coco_demo.run_on_opencv_image(image)
        assert composite.shape == image.shape and (composite != image).any()
        print("{}\tinference time: {:.2f}s".format(os.path.basename(path), time.time() - start_time))


if __name__ == "__main__":
    main()
