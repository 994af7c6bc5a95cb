import json
import os
import pickle

import pytest
import torch

from fcos_core.data import build, make_data_loader
from fcos_core.data.build import _compute_aspect_ratios, _quantize, build_dataset, make_batch_data_sampler
from fcos_core.data.collate_batch import BatchCollator, BBoxAugCollator
from fcos_core.data.datasets import COCODataset, ConcatDataset, PascalVOCDataset
from fcos_core.data.datasets.detection import ImageReadError
from fcos_core.data.samplers import DistributedSampler
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.image_list import ImageList

from .samples import box

# 11 images, wide and tall ones mixed, some without boxes
IMAGES = [(k, 40 + k, 30) if k % 3 else (k, 30, 41 + k) for k in range(1, 12)]
ANNOTATIONS = [box(k, [k, k, 10 + k, 9], 1 + k % 2) for k in range(1, 12) if k not in (4, 6)]


@pytest.fixture
def own(make_coco):
    return ":".join(make_coco(IMAGES, ANNOTATIONS))


def batches(cfg, **arguments):
    """Everything that a training loader yields, in comparable form."""
    return [(images.tensors, images.image_sizes, [t.bbox.tolist() for t in targets], ids)
            for images, targets, ids in make_data_loader(cfg, **arguments)]


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(one, other))


def test_training_batches(own, make_cfg):
    loader = make_data_loader(make_cfg("DATASETS.TRAIN", (own,), "SOLVER.MAX_ITER", 14))
    assert len(loader) == 14
    seen, count = set(), 0
    for images, targets, ids in loader:
        assert isinstance(images, ImageList) and isinstance(targets, tuple) and isinstance(ids, tuple)
        assert images.tensors.dtype == torch.float32 and images.tensors.shape[0] == len(targets) == len(ids) in (1, 2)
        assert images.tensors.shape[2] % 16 == images.tensors.shape[3] % 16 == 0
        assert len({h >= w for h, w in images.image_sizes}) == 1  # aspect groups
        for (h, w), target in zip(images.image_sizes, targets):
            assert min(h, w) in (24, 32, 40) and max(h, w) <= 80
            assert isinstance(target, BoxList) and tuple(target.size) == (w, h)
            assert target.get_field("labels").dtype == torch.int64 and len(target.get_field("labels")) == len(target)
        seen.update(ids)
        count += 1
    assert count == 14 and seen == set(range(11))


def test_padding_is_zero_and_the_picture_in_the_corner(own, make_cfg):
    cfg = make_cfg("DATASETS.TRAIN", (own,), "SOLVER.MAX_ITER", 1)
    images, _, _ = next(iter(make_data_loader(cfg)))
    for tensor, (h, w) in zip(images.tensors, images.image_sizes):
        inside = tensor[:, :h, :w]
        assert (tensor != 0).sum() == (inside != 0).sum() > 0.9 * inside.numel()


def test_the_same_seed_gives_the_same_batches(own, make_cfg):
    cfg = make_cfg("DATASETS.TRAIN", (own,), "SOLVER.MAX_ITER", 13, "SEED", 5)
    first = batches(cfg)
    torch.rand(3)
    assert same(first, batches(cfg))
    cfg.SEED = 6
    assert not same(first, batches(cfg))


def test_no_seed_counts_as_zero(own, make_cfg):
    cfg = make_cfg("DATASETS.TRAIN", (own,), "SOLVER.MAX_ITER", 3, "SEED", -1)
    first = batches(cfg)
    cfg.SEED = 0
    assert same(first, batches(cfg))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_goes_on_with_the_same_batches(own, make_cfg, accumulate):
    cfg = make_cfg("DATASETS.TRAIN", (own,), "SOLVER.MAX_ITER", 15, "SEED", 3, "SOLVER.ACCUMULATE", accumulate)
    whole = batches(cfg)
    assert len(whole) == 15 * accumulate
    for start in (1, 6, 7, 14, 15):
        assert same(whole[start * accumulate:], batches(cfg, start_iter=start))


def test_batches_do_not_depend_on_the_number_of_workers(own, make_cfg):
    cfg = make_cfg("DATASETS.TRAIN", (own,), "SOLVER.MAX_ITER", 9)
    alone = batches(cfg)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert same(alone, batches(cfg))


def test_loading_leaves_the_generators_of_the_run_alone(own, make_cfg):
    cfg = make_cfg("DATASETS.TRAIN", (own,), "SOLVER.MAX_ITER", 3)
    torch.manual_seed(1)
    want = torch.rand(2)
    torch.manual_seed(1)
    batches(cfg)
    assert torch.equal(torch.rand(2), want)


def test_augmentation_changes_from_pass_to_pass(make_coco, make_cfg):
    name = ":".join(make_coco([(1, 40, 30)], [box(1, [2, 2, 10, 10])]))
    cfg = make_cfg("DATASETS.TRAIN", (name,), "SOLVER.MAX_ITER", 24, "SOLVER.IMS_PER_BATCH", 1)
    found = batches(cfg)
    assert len({b[1][0] for b in found}) == 3                                     # three sizes
    assert len({(b[1][0], b[2][0][0][0]) for b in found}) == 6                    # flipped and not


def test_two_processes_share_the_work(own, make_cfg, monkeypatch):
    cfg = make_cfg("DATASETS.TRAIN", (own,), "SOLVER.MAX_ITER", 6, "SOLVER.IMS_PER_BATCH", 4,
                   "DATALOADER.ASPECT_RATIO_GROUPING", False)
    seen, flips = [], []
    for rank in (0, 1):
        monkeypatch.setattr(build.comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(build.comm, "get_rank", lambda rank=rank: rank)
        loader = make_data_loader(cfg, is_distributed=True)
        plan = list(loader.batch_sampler)
        assert [len(batch) for batch in plan] == [2] * 6
        seen.append({int(index) for batch in plan[:3] for index in batch})
        flips.append({index.seed for batch in plan for index in batch})
    assert seen[0] | seen[1] == set(range(11)) and len(seen[0] & seen[1]) == 1    # 11 images, one of them twice
    assert not flips[0] & flips[1]


@pytest.mark.parametrize("world, accumulate, batch, want", [(2, 1, 3, 4), (2, 2, 6, 8), (1, 3, 2, 3), (1, 1, 0, 1)])
def test_batch_that_cannot_be_divided(own, make_cfg, monkeypatch, world, accumulate, batch, want):
    monkeypatch.setattr(build.comm, "get_world_size", lambda: world)
    monkeypatch.setattr(build.comm, "get_rank", lambda: 0)
    cfg = make_cfg("DATASETS.TRAIN", (own,), "SOLVER.IMS_PER_BATCH", batch, "SOLVER.ACCUMULATE", accumulate)
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH .*set it to {}".format(want)):
        make_data_loader(cfg, is_distributed=True)


def test_testing_covers_everything_once(own, make_cfg, make_voc):
    voc = make_voc({"a": (40, 30, [("cat", 1, 1, 9, 9, 1)]), "b": (30, 40, [])}) + ":train"
    cfg = make_cfg("DATASETS.TEST", (own, voc), "SOLVER.ACCUMULATE", 3)
    first, second = make_data_loader(cfg, is_train=False)
    assert isinstance(first.dataset, COCODataset) and isinstance(second.dataset, PascalVOCDataset)
    for loader, count in ((first, 11), (second, 2)):
        ids, sizes = [], []
        for images, _, batch_ids in loader:
            ids += batch_ids
            sizes += images.image_sizes
        assert sorted(ids) == list(range(count)) and {min(size) for size in sizes} == {32}
    assert second.dataset.keep_difficult  # scored, or ignored, but not dropped


def test_multi_scale_testing_gets_raw_pictures(own, make_cfg):
    cfg = make_cfg("DATASETS.TEST", (own,), "TEST.BBOX_AUG.ENABLED", True)
    images, targets, ids = next(iter(make_data_loader(cfg, is_train=False)[0]))
    assert [image.size for image in images] == [target.size for target in targets]
    assert images[0].size == (IMAGES[ids[0]][1], IMAGES[ids[0]][2])


def test_which_images_train(own, make_voc):
    class Catalog(object):
        @staticmethod
        def get(name):
            if name != "coco_mine":
                raise KeyError(name)
            ann_file, root = own.rsplit(":", 1)
            return {"factory": "COCODataset", "args": {"ann_file": ann_file, "root": root}}

    assert len(build_dataset([own], None, Catalog, True)[0]) == 11
    assert len(build_dataset(["coco_mine"], None, Catalog, True)[0]) == 9   # as the ancestors
    assert len(build_dataset(["coco_mine"], None, Catalog, False)[0]) == 11
    joined = build_dataset(("coco_mine", own), None, Catalog, True)
    assert len(joined) == 1 and isinstance(joined[0], ConcatDataset) and len(joined[0]) == 20
    assert len(build_dataset(("coco_mine", own), None, Catalog, False)) == 2
    assert len(build_dataset(own, None, Catalog, True)[0]) == 11            # a name instead of a tuple of names


def test_data_that_cannot_be_trained_on(own, make_coco, make_cfg):
    cfg = make_cfg()
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        make_data_loader(cfg)
    with pytest.raises(ValueError, match="DATASETS.TEST"):
        make_data_loader(cfg, is_train=False)
    bare = ":".join(make_coco([(1, 40, 30)], name="bare"))
    cfg.DATASETS.TRAIN = (bare,)
    with pytest.raises(ValueError, match="annotations to train on"):
        make_data_loader(cfg)
    cfg.DATASETS.TRAIN = (bare, own)  # background pictures beside others are fine
    assert len(make_data_loader(cfg).dataset) == 12
    other = ":".join(make_coco([(1, 40, 30)], [box(1, [1, 1, 5, 5])], [(1, "cow")], name="other"))
    cfg.DATASETS.TRAIN = (own, other)
    with pytest.raises(ValueError, match="same classes.*cow"):
        make_data_loader(cfg)


def test_no_image_left(make_coco, make_cfg, tmp_path):
    ann_file, root = make_coco([(1, 40, 30)], [box(1, [1, 1, 0, 5])])
    path = tmp_path / "catalog.py"
    path.write_text("class DatasetCatalog(object):\n    @staticmethod\n    def get(name):\n        return " + repr(
        {"factory": "COCODataset", "args": {"ann_file": ann_file, "root": root}}) + "\n")
    cfg = make_cfg("DATASETS.TRAIN", ("coco_mine",), "PATHS_CATALOG", str(path))
    with pytest.raises(ValueError, match="got none in"):
        make_data_loader(cfg)


def test_bad_images(own, make_cfg):
    os.remove(os.path.join(own.rsplit(":", 1)[1], "005.png"))
    cfg = make_cfg("DATASETS.TRAIN", (own, own), "DATASETS.TEST", (own,), "SOLVER.MAX_ITER", 12)
    with pytest.raises(ImageReadError, match="005.png"):
        batches(cfg)
    cfg.DATALOADER.SKIP_BAD_IMAGES = True
    loader = make_data_loader(cfg)
    ids = {i for _, _, batch_ids in loader for i in batch_ids}
    assert ids == set(range(22)) - {4, 15} and loader.dataset.num_bad_images == 2
    test_loader = make_data_loader(cfg, is_train=False)[0]
    assert sorted(i for _, _, batch_ids in test_loader for i in batch_ids) == list(range(11))
    assert test_loader.dataset.num_bad_images == 1


def test_error_of_a_worker_process_names_the_file(own, make_cfg):
    os.remove(os.path.join(own.rsplit(":", 1)[1], "005.png"))
    cfg = make_cfg("DATASETS.TRAIN", (own,), "SOLVER.MAX_ITER", 12, "DATALOADER.NUM_WORKERS", 1)
    with pytest.raises(ImageReadError, match="005.png"):
        batches(cfg)


@pytest.mark.parametrize("is_train", [True, False])
def test_workers_can_be_spawned(own, make_cfg, is_train):
    # What Windows and macOS do: everything a worker needs must go through pickle.
    cfg = make_cfg("DATASETS.TRAIN", (own,), "DATASETS.TEST", (own,))
    loader = make_data_loader(cfg, is_train)
    loader = loader if is_train else loader[0]
    dataset, collate, indices = pickle.loads(pickle.dumps(
        (loader.dataset, loader.collate_fn, next(iter(loader.batch_sampler)))))
    got = collate([dataset[i] for i in indices])
    want = next(iter(loader))
    assert torch.equal(got[0].tensors, want[0].tensors) and got[2] == want[2]


def test_class_without_skipping_is_reported(own, make_cfg, caplog):
    build._skip_bad_images([ConcatDataset([list(range(3))])], True)
    assert "SKIP_BAD_IMAGES has no effect on list" in caplog.text


def test_aspect_groups(own):
    dataset = COCODataset(*own.rsplit(":", 1), False)
    assert _compute_aspect_ratios(dataset)[:3] == [30 / 41.0, 30 / 42.0, 44 / 30.0]
    assert _quantize([0.5, 0.99, 1, 1.01, 2], [1]) == [0, 0, 1, 1, 1]
    assert _quantize([0.4, 1.5, 3], [2, 0.5]) == [0, 1, 2]
    for grouping in (True, [1], (0.5, 1)):
        sampler = make_batch_data_sampler(dataset, DistributedSampler(dataset, 1, 0), grouping, 3)
        for batch in sampler:
            assert len({IMAGES[i][2] >= IMAGES[i][1] for i in batch}) == 1
    plain = list(make_batch_data_sampler(dataset, range(11), [], 3))
    assert plain == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]


def test_collators():
    def sample(h, w, index):
        return torch.ones(3, h, w), BoxList([[0, 0, 1, 1]], (w, h)), index

    images, targets, ids = BatchCollator(8)([sample(5, 9, 4), sample(7, 3, 2)])
    assert images.tensors.shape == (2, 3, 8, 16) and images.image_sizes == [(5, 9), (7, 3)]
    assert ids == (4, 2) and [t.size for t in targets] == [(9, 5), (3, 7)]
    assert BatchCollator()([sample(5, 9, 4)])[0].tensors.shape == (1, 3, 5, 9)
    images, targets, ids = BBoxAugCollator()([sample(5, 9, 4), sample(7, 3, 2)])
    assert [image.shape[1:] for image in images] == [(5, 9), (7, 3)] and ids == (4, 2)


def test_crowds_only(make_coco, make_cfg):
    name = ":".join(make_coco([(1, 40, 30)], [box(1, [2, 2, 10, 10], iscrowd=1)]))
    images, targets, _ = next(iter(make_data_loader(make_cfg("DATASETS.TRAIN", (name,), "SOLVER.IMS_PER_BATCH", 1))))
    assert len(targets[0]) == 0 and targets[0].bbox.shape == (0, 4)
    assert targets[0].get_field("labels").dtype == torch.int64


def test_the_built_in_set(make_cfg, tmp_path, monkeypatch):
    from fcos_core.data.datasets import shapes

    monkeypatch.setattr(shapes, "SPLITS", {"train": (8, 100000), "val": (3, 200000)})
    monkeypatch.setenv("FCOS_CORE_DATA", str(tmp_path))
    cfg = make_cfg("DATASETS.TRAIN", ("shapes_train",), "DATASETS.TEST", ("shapes_val",), "SOLVER.MAX_ITER", 4)
    assert len(batches(cfg)) == 4
    dataset = make_data_loader(cfg, is_train=False)[0].dataset
    assert isinstance(dataset, COCODataset) and len(dataset) == 3 and len(dataset.categories) == 5
    with open(os.path.join(str(tmp_path), "shapes", "val_v1", "instances.json")) as f:
        assert len(json.load(f)["images"]) == 3
