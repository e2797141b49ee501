"""Made-up samples for a training step of every kind of model, for dev/zoo_sweep.py."""

import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData


def detection(size: int, model, masks: bool = True):
    """A detection sample with two boxes and a segmentation map, with or without masks of the objects."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    shape = (size, size)
    meta = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), shape)
    sample = DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0), img_id=0, flip=False, text='a . b . c'))
    edge = size / 8
    boxes = torch.tensor([[edge, edge, 5 * edge, 5 * edge], [2 * edge, 3 * edge, 7 * edge, 7 * edge]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 0]))
    if masks:
        found = np.zeros((2, size, size), dtype=np.uint8)
        for mask, box in zip(found, boxes.int().tolist()):
            mask[box[1] : box[3], box[0] : box[2]] = 1
        sample.gt_instances.masks = BitmapMasks(found, *shape)
    sample.gt_instances.instances_ids = torch.tensor([0, 1])
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    sample.proposals = InstanceData(bboxes=boxes.clone(), labels=torch.zeros(2), scores=torch.ones(2))
    sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, *shape, dtype=torch.long))
    return sample


def boxes_only(size: int, model):
    """A detection sample without masks."""
    return detection(size, model, masks=False)


def video(size: int, model):
    """A clip of two frames: a key frame and one that it is compared with."""
    from mmdet.structures import TrackDataSample

    clip = TrackDataSample(metainfo=dict(key_frames_inds=[0], ref_frames_inds=[1]))
    clip.video_data_samples = [detection(size, model) for _ in range(2)]
    return clip


def segmentation(size: int, model):
    """A segmentation sample with a label and an edge map."""
    from mmseg.structures import SegDataSample

    shape = (size, size)
    sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
    label = torch.zeros(1, *shape, dtype=torch.long)
    label[..., size // 2 :] = 1
    sample.gt_sem_seg = PixelData(data=label)
    sample.gt_edge_map = PixelData(data=label.clone())
    return sample


def classification(size: int, model):
    """A classification sample with a label and, for masked image modelling, a mask."""
    from mmpretrain.structures import DataSample

    sample = DataSample(metainfo=dict(num_classes=1000)).set_gt_label(1)
    patch = 4 if 'SimMIM' in type(model).__name__ else 16
    mask = torch.zeros(size // patch, size // patch, dtype=torch.bool)
    mask[::2] = True
    sample.set_mask(mask)
    return sample


def batches(zoo: str, model, size: int) -> list[dict]:
    """Batches of two samples in the forms that the models of a zoo take, the usual one first.

    Args:
        zoo: package of the model.
        model: it says how many channels its images have.
        size: side of the images in pixels.
    """
    mean = getattr(model.data_preprocessor, 'mean', None)
    channels = image_channels(model) if mean is None else mean.numel()
    images = [torch.randint(0, 256, (channels, size, size), dtype=torch.uint8) for _ in range(2)]
    stacked = torch.stack(images)
    clips = [torch.stack([image, image]) for image in images]
    forms = dict(
        mmdet=[(images, detection), (images, boxes_only), (clips, video)],
        mmseg=[(images, segmentation)],
        mmpretrain=[(form, classification) for form in (images, stacked, [stacked], [stacked, stacked])],
    )
    return [dict(inputs=form, data_samples=[sample(size, model) for _ in range(2)]) for form, sample in forms[zoo]]


def image_channels(model) -> int:
    """Input channels of the first convolution, if it can read an image."""
    first = next((m.in_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)), 3)
    return first if first <= 4 else 3
