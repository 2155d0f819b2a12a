"""Augmentation of letterboxed training pictures; boxes move alike (chosen)."""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from mnerqg.boxes import Floats
from mnerqg.config import AugmentConfig
from mnerqg.inputs.images import CANVAS_PADDING_RGB, Pixels


class Augmenter:
    """Random flip, affine and colour changes, each behind its switch."""

    def __init__(self, config: AugmentConfig) -> None:
        steps: list[torch.nn.Module] = []
        if config.flip:
            steps.append(v2.RandomHorizontalFlip())
        if config.affine:
            padding = [float(round(value)) for value in CANVAS_PADDING_RGB]
            steps.append(v2.RandomAffine(degrees=5, translate=(0.08, 0.08), scale=(0.85, 1.1), fill=padding))
        if config.colour:
            steps.append(v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3))
        self._transform = v2.Compose(steps) if steps else None
        self._drop_picture = config.drop_picture

    def __call__(self, pixels: Pixels, boxes_canvas: Floats, *, seed: int) -> tuple[Pixels, Floats] | None:
        """Augment one picture, or withhold it (None).

        Args:
            pixels: [S, S, 3] the letterboxed canvas.
            boxes_canvas: [N, 4] xyxy in canvas pixels; may leave the canvas afterwards.
            seed: decides everything that is random here; the global generators stay as they are.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if torch.rand(()) < self._drop_picture:
                return None
            if self._transform is None:
                return pixels, boxes_canvas
            side = pixels.shape[0]
            image, boxes = self._transform(
                tv_tensors.Image(torch.from_numpy(pixels.copy()).permute(2, 0, 1)),
                tv_tensors.BoundingBoxes(
                    torch.from_numpy(boxes_canvas.reshape(-1, 4)), format="XYXY", canvas_size=(side, side)
                ),
            )
        return image.permute(1, 2, 0).contiguous().numpy(), boxes.as_subclass(torch.Tensor).numpy()
