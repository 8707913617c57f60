"""Time of CLIP-DIY's crops: all through CLIP together against one at a time through Pillow, as published.

`python experiments/benchmarks/clip_diy_crops.py [--model ViT-B-32] [--images 3] [--threads 2]` prints seconds an image
and of the processor for both ways, run in turns, and the largest difference of their cosines. The weights of CLIP are
random, save the toy's.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ovsl.clip import CLIPSettings, TextEmbeddings
from ovsl.methods import CLIPDIY


def one_at_a_time(module: CLIPDIY, images: Tensor, text: TextEmbeddings) -> list[Tensor]:
    """Every crop an 8-bit picture, resized by Pillow, and one call of CLIP for each."""
    grids = []
    for size, step in module.levels:
        starts = range(0, images.shape[2] - size + 1, step)
        rows = []
        for image in images:
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            for top in starts:
                for left in starts:
                    crop = picture.crop((left, top, left + size, top + size))
                    small = crop.resize((module.crop_side, module.crop_side), Image.Resampling.BICUBIC)
                    pixels = module.clip.normalize(torch.from_numpy(np.array(small)).permute(2, 0, 1)[None])
                    embedding = functional.normalize(module.clip.model.encode_image(pixels), dim=1)  # type: ignore[operator]
                    rows.append(embedding @ text.vectors.T)
        side = len(starts)
        grids.append(torch.cat(rows).unflatten(0, (len(images), side, side)).permute(0, 3, 1, 2))
    return grids


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    module = CLIPDIY(CLIPSettings(args.model, "random")).eval()
    vectors = functional.normalize(torch.randn(21, module.clip.embedding_dimension), dim=1)
    text = TextEmbeddings(vectors, torch.arange(21), 21)
    side = module.sizes.image_size
    forms = {"one at a time": one_at_a_time, "together": CLIPDIY.grids}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    with torch.inference_mode():
        for number in range(args.images + 1):
            image = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
            found = []
            for name, form in forms.items():
                start, processor = time.perf_counter(), time.process_time()
                found.append(form(module, image, text))
                if number:  # the first image warms up
                    seconds[name].append((time.perf_counter() - start, time.process_time() - processor))
        difference = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))
    for name, times in seconds.items():
        wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:14} {wall:.2f} s, processor {processor:.2f} s an image (median of {len(times)})")
    print(f"largest difference of a cosine: {difference:.1e}")


if __name__ == "__main__":
    main()
