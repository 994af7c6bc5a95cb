"""The names, signatures and registered names of the predecessors, at their old paths.

`golden/old_names.json.gz` lists them: module -> name -> signature, or for a class method -> signature; "" stands for a
name that is no function. A call that was right must be right here: the same keywords, in the same places.
"""
import gzip
import importlib
import importlib.util
import inspect
import json
import os
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

with gzip.open(os.path.join(ROOT, "tests", "golden", "old_names.json.gz"), "rt") as stream:
    OLD = json.load(stream)

# Whole modules that are not carried; importing them says so in a sentence.
MODULES_NOT_CARRIED = ("fcos_core.modeling.roi_heads", "fcos_core.modeling.backbone.fbnet")

# Names whose use says in a sentence that they are not carried.
NAMES_NOT_CARRIED = {
    # the heads and proposals of two-stage detectors
    "fcos_core.modeling.registry": (
        "RPN_HEADS ROI_BOX_FEATURE_EXTRACTORS ROI_BOX_PREDICTOR ROI_KEYPOINT_FEATURE_EXTRACTORS "
        "ROI_KEYPOINT_PREDICTOR ROI_MASK_FEATURE_EXTRACTORS ROI_MASK_PREDICTOR"
    ),
    "fcos_core.modeling.rpn.rpn": "RPNHead RPNHeadConvRegressor RPNHeadFeatureSingleConv RPNModule",
    "fcos_core.modeling.backbone.resnet": "ResNetHead",
    "fcos_core.modeling.backbone": "fbnet",
    # their results
    "fcos_core.data.datasets.evaluation.coco.coco_eval": "prepare_for_coco_keypoint prepare_for_coco_segmentation",
}

# Names that are simply not there, with the reason.
GONE = {
    # steps of generate_anchors, which computes all anchors at once
    "fcos_core.modeling.rpn.anchor_generator": "_generate_anchors _mkanchors _ratio_enum _scale_enum _whctrs",
    "atss_core.modeling.rpn.anchor_generator": "_generate_anchors _mkanchors _ratio_enum _scale_enum _whctrs",
    # steps of the renaming, which goes by rules for single names
    "fcos_core.utils.c2_model_loading": "_rename_basic_resnet_weights _rename_fpn_weights",
    # variables of code that ran when the file was run as a program
    "fcos_core.structures.bounding_box": "bbox s_bbox t_bbox",
    "fcos.fcos": "parser args fcos im f bbox_results",
    # the compiled operators differentiate by themselves: these classes have `apply` alone
    "fcos_core.layers.dcn.deform_conv_func": (
        "DeformConvFunction.forward DeformConvFunction.backward "
        "ModulatedDeformConvFunction.forward ModulatedDeformConvFunction.backward"
    ),
    "fcos_core.layers.dcn.deform_pool_func": "DeformRoIPoolingFunction.forward DeformRoIPoolingFunction.backward",
    "fcos_core.layers.roi_align": "_ROIAlign.forward _ROIAlign.backward",
    "fcos_core.layers.roi_pool": "_ROIPool.forward _ROIPool.backward",
    "fcos_core.layers.sigmoid_focal_loss": "_SigmoidFocalLoss.forward _SigmoidFocalLoss.backward",
    # iteration is by __iter__ alone
    "fcos_core.structures.segmentation_mask": "SegmentationMask.next SegmentationMask.__next__",
    # masks and keypoints are not predicted, so the demo draws none
    "demo.predictor": "vis_keypoints COCODemo.create_mask_montage COCODemo.overlay_keypoints COCODemo.overlay_mask",
    # tools/demo.py reads videos
    "demo.webcam": "main",
}

# Signatures that differ on purpose.
OTHER_SIGNATURES = {
    # torch's own layers, which call their argument `input`
    "fcos_core.layers.misc.BatchNorm2d.forward",
    "fcos_core.layers.misc.Conv2d.forward",
    "fcos_core.layers.misc.ConvTranspose2d.forward",
    # the default of `padding` follows kernel and dilation; it is the old 1 for the old uses
    "fcos_core.layers.misc.DFConv2d.__init__",
    # the default is an empty tuple in place of an empty list
    "fcos_core.modeling.rpn.loss.RPNLossComputation.match_targets_to_anchors",
}

# Registered names that are not carried.
NOT_REGISTERED = {"SingleConvRPNHead"}


def carried(module):
    return not module.startswith(MODULES_NOT_CARRIED)


def find(module):
    """Import a module by its old path; those of demo/ lie beside its scripts."""
    if not module.startswith("demo."):
        return importlib.import_module(module)
    path = os.path.join(ROOT, *module.split(".")) + ".py"
    spec = importlib.util.spec_from_file_location(module.replace(".", "_"), path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def listed(table, module):
    return set(table.get(module, "").split())


def parse(signature):
    namespace = {}
    exec("def function{}: pass".format(signature), namespace)
    return inspect.signature(namespace["function"])


def differences(old, new):
    """What a call that fits `old` could stumble over in `new`: list of sentences."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = list(new.parameters.values())
    places = [p for p in parameters if p.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD]
    rest = list(places)
    found = []
    for wanted in old.parameters.values():
        if wanted.kind in variable:
            continue
        if not rest:
            if not any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in parameters):
                found.append("{} is missing".format(wanted.name))
            continue
        mine = rest.pop(0)
        if mine.name != wanted.name:
            found.append("{} has become {}".format(wanted.name, mine.name))
        if wanted.default is not inspect.Parameter.empty and mine.default != wanted.default:
            found.append("{}: {!r} has become {!r}".format(wanted.name, wanted.default, mine.default))
    keywords = [p for p in parameters if p.kind == inspect.Parameter.KEYWORD_ONLY]
    found += ["{} is new and has no default".format(p.name) for p in rest + keywords if p.default is p.empty]
    return found


def check_function(function, signature, name):
    last = name.split(".")[-1]
    operator = last.startswith("__") and last not in ("__init__", "__call__")  # called by [], len(), for: no keywords
    if signature and not operator and name not in OTHER_SIGNATURES:
        assert differences(parse(signature), inspect.signature(function)) == [], name


@pytest.mark.parametrize("module", sorted(m for m in OLD if carried(m) and m != "demo.webcam"))
def test_old_names_of_a_module(module):
    found = find(module)
    gone, refused = listed(GONE, module), listed(NAMES_NOT_CARRIED, module)
    for name, signature in OLD[module].items():
        if name.startswith("registered:"):
            table = vars(importlib.import_module("fcos_core.modeling.registry")).get(name.split(":")[1])
            table = getattr(found, name.split(":")[1], None) if table is None else table
            assert set(signature) - NOT_REGISTERED <= set(table or ()), name
        elif name in refused:
            with pytest.raises(ImportError, match="carried by this package|predicted by this package"):
                exec("from {} import {}".format(module, name))
        elif name in gone:
            assert not hasattr(found, name), "{} is there, take it off the list".format(name)
        else:
            assert hasattr(found, name), name
            check_name(module, name, getattr(found, name), signature, gone)


def check_name(module, name, value, signature, gone):
    if not isinstance(signature, dict):
        check_function(value, signature, "{}.{}".format(module, name))
        return
    for method, its_signature in signature.items():
        if "{}.{}".format(name, method) in gone:
            assert method not in vars(value), "{}.{} is there, take it off the list".format(name, method)
            continue
        assert hasattr(value, method), "{}.{}".format(name, method)
        check_function(getattr(value, method), its_signature, "{}.{}.{}".format(module, name, method))


@pytest.mark.parametrize("module", sorted(m for m in OLD if not carried(m)))
def test_a_module_that_is_not_carried_says_so(module):
    with pytest.raises(ImportError, match="not carried by this package"):
        importlib.import_module(module)
    assert module not in sys.modules


def test_everything_that_is_left_out_was_there():
    """No list above names something that the predecessors did not have."""
    for table in (GONE, NAMES_NOT_CARRIED):
        for module in table:
            for name in listed(table, module):
                entry = OLD[module]
                for part in name.split("."):
                    assert part in entry, "{}.{}".format(module, name)
                    entry = entry[part]
    assert all(any(m.startswith(prefix) for m in OLD) for prefix in MODULES_NOT_CARRIED)


def test_the_comparison_of_signatures_finds_what_breaks_a_call():
    old = parse("(self, a, b=1, *rest)")
    assert differences(old, parse("(self, a, b=1, *rest, c=None, **more)")) == []
    assert differences(old, parse("(self, a, b=1, d=2)")) == []
    assert differences(old, parse("(self, a)")) == ["b is missing"]
    assert differences(old, parse("(self, b, a=1)")) == ["a has become b", "b has become a"]
    assert differences(old, parse("(self, a, b=2)")) == ["b: 1 has become 2"]
    assert differences(old, parse("(self, a, b=1, *, c)")) == ["c is new and has no default"]
    assert differences(old, parse("(self, a, b=1, c)".replace("c)", "c=3)"))) == []
