"""Batches for detectors and segmentors, made up."""

import torch


def detection_batch(sizes, counts, classes=5, seed=0):
    """Noise with random objects: padded inputs and samples as the data preprocessor hands them over."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for (h, w), count in zip(sizes, counts, strict=True):
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([w, h]) * 0.5
        side = 2 + torch.rand(count, 2, generator=generator) * torch.tensor([w, h]) * 0.4
        boxes = torch.cat([corner, corner + side], 1)
        masks = torch.zeros(count, h, w, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top : bottom + 1, left : right + 1] = True
        labels = torch.randint(0, classes, (count,), generator=generator)
        samples.append({"size": (h, w), "boxes": boxes, "labels": labels, "masks": masks})
    return pad(sizes, generator), samples


def segmentation_batch(sizes, classes=5, seed=0):
    """Noise with noise for masks."""
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.randint(0, classes, size, generator=generator) for size in sizes]
    return pad(sizes, generator), [{"size": size, "mask": mask} for size, mask in zip(sizes, masks, strict=True)]


def pad(sizes, generator):
    inputs = torch.zeros(len(sizes), 3, *(max(side) for side in zip(*sizes, strict=True)))
    for x, (h, w) in zip(inputs, sizes, strict=True):
        x[:, :h, :w] = torch.randn(3, h, w, generator=generator)
    return inputs
