"""ovsl: open-vocabulary semantic segmentation with PyTorch Lightning.

Tensor shapes in docstrings use one legend throughout:

- ``B`` images in a batch, ``N`` instances or tokens, ``Q`` mask queries
- ``C`` classes (or channels where the text says so), ``D`` dimensions of the joint image-text space
- ``H, W`` pixels of an image, ``h, w`` cells of a feature map or of low-resolution masks
"""

__version__ = "0.1.0"
