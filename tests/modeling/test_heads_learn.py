"""Every dense head and assignment rule learns two boxes by heart and then finds them."""
import pytest
import torch

from fcos_core.modeling.detector import build_detection_model
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.box_ops import pairwise_iou
from tests.thin import thin_config

HEADS = {
    "FCOS": [],
    "ATSS": [],
    "ATSS-SSC": ["MODEL.ATSS.POSITIVE_TYPE", "SSC"],
    "ATSS-IoU": ["MODEL.ATSS.POSITIVE_TYPE", "IoU"],
    "ATSS-TOPK": ["MODEL.ATSS.POSITIVE_TYPE", "TOPK"],
    "ATSS-point": ["MODEL.ATSS.REGRESSION_TYPE", "POINT"],
    "ATSS-nine": ["MODEL.ATSS.ASPECT_RATIOS", (0.5, 1.0, 2.0), "MODEL.ATSS.SCALES_PER_OCTAVE", 3],
    "RETINANET": [],
    "GFL": [],
    "TOOD": [],
}


@pytest.mark.parametrize("name", sorted(HEADS))
def test_two_boxes_by_heart(name):
    head = name.split("-")[0]
    options = ["MODEL.{}_ON".format(head), True, "MODEL.{}.NUM_CLASSES".format(head), 3]
    options += ["MODEL.{}.NUM_CONVS".format(head), 1, "MODEL.{}.INFERENCE_TH".format(head), 0.05]
    options += ["MODEL.RESNETS.TRANS_FUNC", "BottleneckWithBatchNorm", "MODEL.RESNETS.STEM_FUNC", "StemWithBatchNorm"]
    model = build_detection_model(thin_config(*(options + HEADS[name])))
    image = torch.zeros(1, 3, 96, 128)
    boxes = torch.tensor([[16.0, 16.0, 55.0, 60.0], [70.0, 20.0, 120.0, 85.0]])
    image[:, 0, 16:61, 16:56], image[:, 1, 20:86, 70:121] = 2.0, 2.0
    target = BoxList(boxes, (128, 96))
    target.add_field("labels", torch.tensor([1, 2]))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(image, [target]).values()).backward()
        optimizer.step()
    for module in model.modules():  # too few steps for running statistics
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    with torch.no_grad():
        (found,) = model.eval()(image)
    for box, label in zip(boxes, (1, 2)):
        best = found[found.get_field("labels") == label][:1]
        assert len(best) == 1 and pairwise_iou(best.bbox, box[None]).item() > 0.7, (best.bbox, box)
