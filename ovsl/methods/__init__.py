"""The methods: one folder and one line here for each."""

from ovsl.methods.base import SegmentationModule
from ovsl.methods.cat_seg import CATSeg
from ovsl.methods.clip_dinoiser import CLIPDINOiser
from ovsl.methods.clip_diy import CLIPDIY
from ovsl.methods.clip_lightweight import CLIPLightweight
from ovsl.methods.denseclip import DenseCLIP
from ovsl.methods.fc_clip import FCCLIP
from ovsl.methods.lseg import LSeg
from ovsl.methods.maskclip import MaskCLIP
from ovsl.methods.patch_text import PatchText
from ovsl.methods.san import SAN
from ovsl.methods.training_free import TrainingFree
from ovsl.methods.zegclip import ZegCLIP

__all__ = [
    "CLIPDIY",
    "FCCLIP",
    "SAN",
    "CATSeg",
    "CLIPDINOiser",
    "CLIPLightweight",
    "DenseCLIP",
    "LSeg",
    "MaskCLIP",
    "PatchText",
    "SegmentationModule",
    "TrainingFree",
    "ZegCLIP",
]
