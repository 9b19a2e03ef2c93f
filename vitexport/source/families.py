"""timm's modules whose networks are Vision Transformers or their relatives. Plain data."""

from __future__ import annotations

from vitexport.errors import InputError

# Token mixing by attention, whole or in part of the blocks. A convolutional network would export too, but nothing here
# (placement, fusion, checks) was made for it, so it is refused by name.
VIT_FAMILIES = frozenset(
    {
        *("beit", "cait", "coat", "convit", "cpubone", "crossvit", "csatv2", "davit", "deepseek_vit", "deit", "edgenext"),
        *("efficientformer", "efficientformer_v2", "efficientvit_mit", "efficientvit_msra", "eva", "fastvit", "focalnet"),
        *("gcvit", "gemma4_vit", "hiera", "hieradet_sam2", "iformer", "levit", "lowformer", "maxxvit", "metaformer"),
        *("mobilenetv5", "mobilevit", "mvitv2", "naflexvit", "nest", "nextvit", "pit", "pvt_v2", "qwen3_vit", "repvit"),
        *("shvit", "swiftformer", "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit", "tnt"),
        *("twins", "visformer", "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos"),
        *("vision_transformer_sam", "vitamin", "volo", "xcit"),
    }
)


def check_family(name: str, module: str) -> None:
    """Check the module that defines a network against the families.

    Raises:
        InputError: It is none of them.
    """
    family = module.rpartition(".")[2]
    if family not in VIT_FAMILIES:
        raise InputError(
            f"{name} is defined in timm.models.{family}, which is not a Vision Transformer family. "
            "vitexport exports Vision Transformers and their relatives; timm's own export script serves other networks."
        )
