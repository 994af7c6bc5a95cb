"""Every configuration key, with its meaning, unit and allowed values.

A yaml file or a list of ``KEY VALUE`` pairs overrides these.  Keys and defaults of the code base that this package
succeeds are unchanged; keys that this package added are marked ``new``.  The values are read by ``build_*(cfg)`` and
``make_*(cfg)`` functions and by the constructors of old public classes, never below them.

Sizes are in pixels.  ``NUM_CLASSES`` counts the background; label 0 is the background.
"""
import os

from yacs.config import CfgNode as CN

from fcos_core.config.legacy import add_unused_keys

_C = CN()

# Fixes every random choice of a run (initial weights, order of the data, augmentation).  -1: a new one for each run,
# written to the log.  new
_C.SEED = -1
# Where checkpoints, logs, metrics and pictures go.
_C.OUTPUT_DIR = "."
# File with the classes DatasetCatalog and ModelCatalog.
_C.PATHS_CATALOG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "paths_catalog.py")

# ---------------------------------------------------------------------------------------------------------- MODEL
_C.MODEL = CN()
# "cuda", "cuda:1", "cpu", or "auto" (new): a GPU if torch sees one, else the CPU.
_C.MODEL.DEVICE = "cuda"
_C.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
# The dense head.  Switching another one than FCOS on switches FCOS off, and an option overrules the file; two that are
# switched on in the same place are an error.
_C.MODEL.FCOS_ON = True
_C.MODEL.ATSS_ON = False
_C.MODEL.RETINANET_ON = False
_C.MODEL.GFL_ON = False  # new
_C.MODEL.TOOD_ON = False  # new
# Dense heads give the detections themselves; kept because old files set it.
_C.MODEL.RPN_ONLY = False
# Initial weights: a file, a URL or "catalog://NAME".  Starting weights only: iteration and optimizer are not taken.
_C.MODEL.WEIGHT = ""
# Load what fits of weights that do not belong to this model, instead of stopping.  A new pyramid and head on the
# weights of a classifier, and another number of classes when training, are no such case.  new
_C.MODEL.ALLOW_WEIGHT_MISMATCH = False
# Turn every BatchNorm of the model into torch.nn.SyncBatchNorm when several processes train.
_C.MODEL.USE_SYNCBN = False
# Keep activations in channels-last memory format: faster on GPUs with tensor cores, same results.  new
_C.MODEL.CHANNELS_LAST = False

_C.MODEL.BACKBONE = CN()
# A name in fcos_core.modeling.registry.BACKBONES; or (new) "timm/NAME" or "torchvision/NAME": any network of these
# libraries that has maps of stride 8, 16 and 32, with a pyramid P3 to P7.
_C.MODEL.BACKBONE.CONV_BODY = "R-50-C4"
# The stem and the stages below this number get no gradients (2: stem and first stage; negative: all are trained).  Of
# the network of a library that is what has a stride of at most 2^n (2: up to stride 4).
_C.MODEL.BACKBONE.FREEZE_CONV_BODY_AT = 2
# Networks of libraries: start with the weights that the library offers, which it downloads.  MODEL.WEIGHT, if given, is
# loaded over them.  new
_C.MODEL.BACKBONE.PRETRAINED = False
# Networks of libraries: keep every BatchNorm constant, for pretrained weights and few images on a GPU.  new
_C.MODEL.BACKBONE.FREEZE_BN = False
_C.MODEL.BACKBONE.USE_GN = False

_C.MODEL.FPN = CN()
_C.MODEL.FPN.USE_GN = False
_C.MODEL.FPN.USE_RELU = False
# P7 is a convolution of ReLU(P6) (True) or of P6 (False: ATSS models of mmdetection).  new
_C.MODEL.FPN.RELU_BEFORE_P7 = True

_C.MODEL.GROUP_NORM = CN()
# Channels of a group; -1: NUM_GROUPS decides.
_C.MODEL.GROUP_NORM.DIM_PER_GP = -1
_C.MODEL.GROUP_NORM.NUM_GROUPS = 32
_C.MODEL.GROUP_NORM.EPSILON = 1e-5

_C.MODEL.RESNETS = CN()
# ResNeXt: groups of the 3x3 convolutions and channels of a group in the first stage.
_C.MODEL.RESNETS.NUM_GROUPS = 1
_C.MODEL.RESNETS.WIDTH_PER_GROUP = 64
# Put the stride into the first 1x1 convolution (MSRA weights) or into the 3x3 (Torch, ResNeXt weights).
_C.MODEL.RESNETS.STRIDE_IN_1X1 = True
# "BottleneckWithFixedBatchNorm", "BottleneckWithGN" or (new) "BottleneckWithBatchNorm" for training from scratch.
_C.MODEL.RESNETS.TRANS_FUNC = "BottleneckWithFixedBatchNorm"
# "StemWithFixedBatchNorm", "StemWithGN" or (new) "StemWithBatchNorm".
_C.MODEL.RESNETS.STEM_FUNC = "StemWithFixedBatchNorm"
_C.MODEL.RESNETS.RES5_DILATION = 1
# Channels of the FPN, hence of the head.
_C.MODEL.RESNETS.BACKBONE_OUT_CHANNELS = 256 * 4
# Channels behind the first stage; doubled by each further one.  For the default stands for their 64.
_C.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
_C.MODEL.RESNETS.STEM_OUT_CHANNELS = 64
# Deformable convolution in the four stages, with (v2) or without (v1) modulation.
_C.MODEL.RESNETS.STAGE_WITH_DCN = (False, False, False, False)
_C.MODEL.RESNETS.WITH_MODULATED_DCN = False
_C.MODEL.RESNETS.DEFORMABLE_GROUPS = 1

_C.MODEL.FCOS = CN()
# Foreground classes + 1.  tools/train_net.py takes it from the annotations when no file and no option sets it.
_C.MODEL.FCOS.NUM_CLASSES = 81
# Strides of P3 to P7, pixels.
_C.MODEL.FCOS.FPN_STRIDES = [8, 16, 32, 64, 128]
# Locations lie at stride * index plus this many strides, rounded down to pixels (0.0: models of torchvision).  new
_C.MODEL.FCOS.LOCATION_OFFSET = 0.5
# Initial foreground probability, sets the bias of the classification layer.
_C.MODEL.FCOS.PRIOR_PROB = 0.01
# A class probability must be above this to become a candidate.
_C.MODEL.FCOS.INFERENCE_TH = 0.05
# IoU above which the lower-scored of two boxes of a class is dropped.
_C.MODEL.FCOS.NMS_TH = 0.6
# Candidates kept per level and image before NMS.
_C.MODEL.FCOS.PRE_NMS_TOP_N = 1000
# Focal loss.
_C.MODEL.FCOS.LOSS_ALPHA = 0.25
_C.MODEL.FCOS.LOSS_GAMMA = 2.0
# Convolutions of each tower.
_C.MODEL.FCOS.NUM_CONVS = 4
# > 0: only locations within this many strides of a box's centre learn it.
_C.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 0.0
# "iou", "linear_iou" or "giou".
_C.MODEL.FCOS.IOU_LOSS_TYPE = "iou"
# Regress distances in units of the stride through a ReLU instead of pixels through exp.
_C.MODEL.FCOS.NORM_REG_TARGETS = False
# Predict centerness from the regression tower.
_C.MODEL.FCOS.CENTERNESS_ON_REG = False
# Make the last convolution of each tower deformable.
_C.MODEL.FCOS.USE_DCN_IN_TOWER = False

# Centre of the anchors of the first location: (stride - 1) / 2 + ANCHOR_SHIFT pixels.  Negative: as in the models that
# were published, 0.5 for ATSS and 0 for RetinaNet (0.5 for RetinaNet models trained with atss_core).  new
_C.MODEL.ANCHOR_SHIFT = -1.0

_C.MODEL.ATSS = CN()
# Foreground classes + 1.
_C.MODEL.ATSS.NUM_CLASSES = 81
# Side of a square anchor of P3 to P7, pixels; strides of the levels; height / width of the anchors.
_C.MODEL.ATSS.ANCHOR_SIZES = (64, 128, 256, 512, 1024)
_C.MODEL.ATSS.ANCHOR_STRIDES = (8, 16, 32, 64, 128)
_C.MODEL.ATSS.ASPECT_RATIOS = (1.0,)
# Sizes between ANCHOR_SIZES and OCTAVE times that: sizes times OCTAVE^(k / SCALES_PER_OCTAVE).
_C.MODEL.ATSS.SCALES_PER_OCTAVE = 1
_C.MODEL.ATSS.OCTAVE = 2.0
# Unused: all anchors count, also those that cross the border.
_C.MODEL.ATSS.STRADDLE_THRESH = 0
# Which anchors are positive: "ATSS", "SSC" (the rule of FCOS), "IoU" (the rule of RetinaNet) or "TOPK".
_C.MODEL.ATSS.POSITIVE_TYPE = "ATSS"
# ATSS: candidates of a box on each level, for each anchor of a location.  TOPK: positives of a box.
_C.MODEL.ATSS.TOPK = 9
# IoU: a match from FG on, background below BG, ignored between.
_C.MODEL.ATSS.FG_IOU_THRESHOLD = 0.5
_C.MODEL.ATSS.BG_IOU_THRESHOLD = 0.4
# "BOX": offsets and log sizes relative to the anchor; "POINT": distances to the four sides, one anchor at a location.
_C.MODEL.ATSS.REGRESSION_TYPE = "BOX"
# Factor of the regression loss.
_C.MODEL.ATSS.REG_LOSS_WEIGHT = 2.0
# As in MODEL.FCOS.
_C.MODEL.ATSS.LOSS_ALPHA = 0.25
_C.MODEL.ATSS.LOSS_GAMMA = 2.0
_C.MODEL.ATSS.PRIOR_PROB = 0.01
_C.MODEL.ATSS.NUM_CONVS = 4
_C.MODEL.ATSS.USE_DCN_IN_TOWER = False
_C.MODEL.ATSS.INFERENCE_TH = 0.05
_C.MODEL.ATSS.NMS_TH = 0.6
_C.MODEL.ATSS.PRE_NMS_TOP_N = 1000

_C.MODEL.RETINANET = CN()
# Foreground classes + 1.
_C.MODEL.RETINANET.NUM_CLASSES = 81
# Anchors: as in MODEL.ATSS.
_C.MODEL.RETINANET.ANCHOR_SIZES = (32, 64, 128, 256, 512)
_C.MODEL.RETINANET.ASPECT_RATIOS = (0.5, 1.0, 2.0)
_C.MODEL.RETINANET.ANCHOR_STRIDES = (8, 16, 32, 64, 128)
_C.MODEL.RETINANET.STRADDLE_THRESH = 0
_C.MODEL.RETINANET.OCTAVE = 2.0
_C.MODEL.RETINANET.SCALES_PER_OCTAVE = 3
# P6 from C5 (True) or from P5 (False); read by every P3-P7 backbone, not only by RetinaNet.
_C.MODEL.RETINANET.USE_C5 = True
_C.MODEL.RETINANET.NUM_CONVS = 4
# Divides the regression loss.
_C.MODEL.RETINANET.BBOX_REG_WEIGHT = 4.0
# Where smooth L1 turns from a parabola into a line.
_C.MODEL.RETINANET.BBOX_REG_BETA = 0.11
_C.MODEL.RETINANET.PRE_NMS_TOP_N = 1000
# A match from FG on, background below BG, ignored between.
_C.MODEL.RETINANET.FG_IOU_THRESHOLD = 0.5
_C.MODEL.RETINANET.BG_IOU_THRESHOLD = 0.4
_C.MODEL.RETINANET.LOSS_ALPHA = 0.25
_C.MODEL.RETINANET.LOSS_GAMMA = 2.0
_C.MODEL.RETINANET.PRIOR_PROB = 0.01
_C.MODEL.RETINANET.INFERENCE_TH = 0.05
_C.MODEL.RETINANET.NMS_TH = 0.4

# Generalized focal loss.  The whole section is new.
_C.MODEL.GFL = CN()
# Foreground classes + 1.
_C.MODEL.GFL.NUM_CLASSES = 81
# Side of the square anchor of P3 to P7, pixels, and strides of the levels; only the assignment uses the sizes.
_C.MODEL.GFL.ANCHOR_SIZES = (64, 128, 256, 512, 1024)
_C.MODEL.GFL.ANCHOR_STRIDES = (8, 16, 32, 64, 128)
# Candidates of a box on each level, as in MODEL.ATSS.
_C.MODEL.GFL.TOPK = 9
# Largest distance from a location to a side of its box that is predicted, in strides: a distribution over 0, 1, ... n.
_C.MODEL.GFL.REG_MAX = 16
# Exponent of the quality focal loss.
_C.MODEL.GFL.QUALITY_BETA = 2.0
# Factors of the GIoU loss and of the distribution focal loss (mean over the four sides).
_C.MODEL.GFL.REG_LOSS_WEIGHT = 2.0
_C.MODEL.GFL.DFL_LOSS_WEIGHT = 0.25
# As in MODEL.FCOS.
_C.MODEL.GFL.PRIOR_PROB = 0.01
_C.MODEL.GFL.NUM_CONVS = 4
_C.MODEL.GFL.USE_DCN_IN_TOWER = False
_C.MODEL.GFL.INFERENCE_TH = 0.05
_C.MODEL.GFL.NMS_TH = 0.6
_C.MODEL.GFL.PRE_NMS_TOP_N = 1000

# Task-aligned detection.  The whole section is new.
_C.MODEL.TOOD = CN()
# Foreground classes + 1.
_C.MODEL.TOOD.NUM_CLASSES = 81
# Strides of P3 to P7, pixels.
_C.MODEL.TOOD.FPN_STRIDES = [8, 16, 32, 64, 128]
# Convolutions of the tower that both tasks share.
_C.MODEL.TOOD.NUM_CONVS = 6
# Positives of a box: the TOPK locations inside it with the largest (class probability)^ALPHA * (IoU)^BETA.
_C.MODEL.TOOD.TOPK = 13
_C.MODEL.TOOD.ALIGN_ALPHA = 1.0
_C.MODEL.TOOD.ALIGN_BETA = 6.0
# Exponent of the classification loss, and factor of the GIoU loss.
_C.MODEL.TOOD.LOSS_GAMMA = 2.0
_C.MODEL.TOOD.REG_LOSS_WEIGHT = 2.0
# As in MODEL.FCOS.
_C.MODEL.TOOD.PRIOR_PROB = 0.01
_C.MODEL.TOOD.INFERENCE_TH = 0.05
_C.MODEL.TOOD.NMS_TH = 0.6
_C.MODEL.TOOD.PRE_NMS_TOP_N = 1000

# ---------------------------------------------------------------------------------------------------------- INPUT
_C.INPUT = CN()
# The short side is resized to one of these, chosen at random, unless the long side would pass MAX_SIZE.
_C.INPUT.MIN_SIZE_TRAIN = (800,)
# (a, b): any integer from a to b instead; (-1, -1): off.
_C.INPUT.MIN_SIZE_RANGE_TRAIN = (-1, -1)
_C.INPUT.MAX_SIZE_TRAIN = 1333
_C.INPUT.MIN_SIZE_TEST = 800
_C.INPUT.MAX_SIZE_TEST = 1333
# Probability of a left-right flip in training.  new
_C.INPUT.HORIZONTAL_FLIP_PROB_TRAIN = 0.5
# Mean and deviation of the channels, in the channel order and range that TO_BGR255 says.
_C.INPUT.PIXEL_MEAN = [102.9801, 115.9465, 122.7717]
_C.INPUT.PIXEL_STD = [1.0, 1.0, 1.0]
# True: the network sees BGR in 0..255; False: RGB in 0..1.
_C.INPUT.TO_BGR255 = True

# ------------------------------------------------------------------------------------------------------- DATASETS
_C.DATASETS = CN()
# Names of the catalog, "instances.json:image_folder" or "voc_folder:split".
_C.DATASETS.TRAIN = ()
_C.DATASETS.TEST = ()

_C.DATALOADER = CN()
# Worker processes; 0: everything runs in the training process (for debuggers).
_C.DATALOADER.NUM_WORKERS = 4
# Batches are padded at the right and bottom to a multiple of this.
_C.DATALOADER.SIZE_DIVISIBILITY = 0
# Batches hold only landscape or only portrait images.
_C.DATALOADER.ASPECT_RATIO_GROUPING = True
# Replace unreadable images by the next good one, and count them, instead of stopping.  new
_C.DATALOADER.SKIP_BAD_IMAGES = False

# --------------------------------------------------------------------------------------------------------- SOLVER
_C.SOLVER = CN()
# Optimizer steps.
_C.SOLVER.MAX_ITER = 40000
# "SGD" or "AdamW".  new
_C.SOLVER.OPTIMIZER = "SGD"
_C.SOLVER.BASE_LR = 0.001
# n > 0: BASE_LR is meant for batches of n images and is scaled by IMS_PER_BATCH / n; 0: taken as it is.  new
_C.SOLVER.REFERENCE_BATCH = 0
_C.SOLVER.BIAS_LR_FACTOR = 2
_C.SOLVER.DCONV_OFFSETS_LR_FACTOR = 1.0
_C.SOLVER.MOMENTUM = 0.9
_C.SOLVER.WEIGHT_DECAY = 0.0005
_C.SOLVER.WEIGHT_DECAY_BIAS = 0
# The learning rate is multiplied by GAMMA at each of STEPS.
_C.SOLVER.GAMMA = 0.1
_C.SOLVER.STEPS = (30000,)
# "linear" (from WARMUP_FACTOR to 1) or "constant" (WARMUP_FACTOR) for the first WARMUP_ITERS steps.
_C.SOLVER.WARMUP_FACTOR = 1.0 / 3
_C.SOLVER.WARMUP_ITERS = 500
_C.SOLVER.WARMUP_METHOD = "linear"
_C.SOLVER.CHECKPOINT_PERIOD = 2500
# Images of one optimizer step, over all processes.
_C.SOLVER.IMS_PER_BATCH = 16
# Each step averages the gradients of this many micro-batches of IMS_PER_BATCH / ACCUMULATE images.  new
_C.SOLVER.ACCUMULATE = 1
# Mixed precision: "" (off), "float16" (with a loss scaler) or "bfloat16".  new
_C.SOLVER.AMP = ""
# Largest norm of the whole gradient; 0: no clipping.  new
_C.SOLVER.CLIP_GRADIENTS = 0.0
# Steps between two log lines.  new
_C.SOLVER.LOG_PERIOD = 20
# Steps between two tests during training; 0: only at the end.  new
_C.SOLVER.TEST_PERIOD = 0
# Write TensorBoard event files.  new
_C.SOLVER.TENSORBOARD = True

# ----------------------------------------------------------------------------------------------------------- TEST
_C.TEST = CN()
# Rows [task, metric, [mean, deviation]] that the results are checked against.
_C.TEST.EXPECTED_RESULTS = []
_C.TEST.EXPECTED_RESULTS_SIGMA_TOL = 4
_C.TEST.IMS_PER_BATCH = 8
# 0: no limit.
_C.TEST.DETECTIONS_PER_IMG = 100
# "pycocotools" or "faster_coco_eval" (same numbers, to be installed by the user).  new
_C.TEST.SCORER = "pycocotools"

# Multi-scale and flip testing.
_C.TEST.BBOX_AUG = CN()
_C.TEST.BBOX_AUG.ENABLED = False
_C.TEST.BBOX_AUG.H_FLIP = False
# Further sizes of the short side, and the limit of the long side.
_C.TEST.BBOX_AUG.SCALES = ()
_C.TEST.BBOX_AUG.MAX_SIZE = 4000
_C.TEST.BBOX_AUG.SCALE_H_FLIP = False
# Vote: each pass makes its own detections; then boxes of a class that overlap by VOTE_TH decide together.
_C.TEST.BBOX_AUG.VOTE = False
_C.TEST.BBOX_AUG.VOTE_TH = 0.66
# "vote" (one mean box for each group), "soft-vote" (also the members, with lower scores) or "nms" (no vote).
_C.TEST.BBOX_AUG.MERGE_TYPE = "vote"
# With VOTE, for each of SCALES: (a, b) keeps the boxes with area between a^2 and b^2 square pixels of that pass.
_C.TEST.BBOX_AUG.SCALE_RANGES = ()

add_unused_keys(_C)
