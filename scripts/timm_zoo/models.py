"""Output: which timm models are run, and by which families they are shown."""

from __future__ import annotations

import timm

from vitexport.source import VIT_FAMILIES

# One small and one usual model of each family, and of the variants of the largest ones that differ in their graph.
DEFAULT: dict[str, tuple[str, ...]] = {
    "vision_transformer": (
        *("test_vit", "vit_tiny_patch16_224", "vit_base_patch16_224", "vit_base_patch16_clip_224"),
        *("vit_xsmall_patch16_clip_224", "vit_base_patch32_clip_quickgelu_224", "vit_base_patch16_siglip_224"),
        *("vit_base_patch16_siglip_gap_224", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "flexivit_small"),
        *("vit_little_patch16_reg4_gap_256", "vit_dwee_patch16_reg1_gap_256", "vit_so150m_patch16_reg4_gap_256"),
        *("vit_so150m_patch16_reg4_map_256", "vit_small_patch16_18x2_224", "vit_base_patch16_rpn_224"),
        *("vit_base_patch16_xp_224", "beit3_base_patch16_224", "vit_base_patch14_reg1_tipsv2", "vit_base_patch16_radio_v3"),
        *("aimv2_large_patch14_224",),
    ),
    "vision_transformer (parallel)": ("vit_dpwee_patch16_reg1_gap_256", "vit_pwee_patch16_reg1_gap_256"),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224", "vit_base_mci_224"),
    "vision_transformer_relpos": (
        *("test_vit_relpos", "vit_relpos_small_patch16_224", "vit_srelpos_small_patch16_224", "vit_relpos_base_patch16_224"),
    ),
    "vision_transformer_sam": ("samvit_base_patch16_224", "samvit_base_patch16"),
    "deit": ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "deit_base_patch16_224"),
    "eva": (
        *("eva02_tiny_patch14_224", "eva02_small_patch14_336", "eva02_base_patch16_clip_224", "vit_small_patch16_dinov3"),
        *("vit_tiny_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3", "vit_small_patch16_rope_224"),
        *("vit_small_patch16_rope_mixed_ape_224", "vit_medium_patch16_rope_reg1_gap_256", "vit_pe_core_tiny_patch16_384"),
        *("vit_pe_spatial_tiny_patch16_512", "vit_pe_core_base_patch16_224", "vit_small_patch16_lingbot"),
    ),
    "beit": ("beit_base_patch16_224", "beitv2_base_patch16_224"),
    "cait": ("cait_xxs24_224", "cait_s24_224"),
    "coat": ("coat_tiny", "coat_lite_small"),
    "convit": ("convit_tiny", "convit_small"),
    "cpubone": ("cpubone_nano", "cpubone_b1_dwnorm"),
    "crossvit": ("crossvit_tiny_240", "crossvit_15_dagger_240"),
    "csatv2": ("csatv2",),
    "davit": ("davit_tiny", "davit_small"),
    "deepseek_vit": ("deepseek_vit_412m",),
    "edgenext": ("edgenext_xx_small", "edgenext_small"),
    "efficientformer": ("efficientformer_l1", "efficientformer_l3"),
    "efficientformer_v2": ("efficientformerv2_s0", "efficientformerv2_s2"),
    "efficientvit_mit": ("efficientvit_b0", "efficientvit_b3"),
    "efficientvit_msra": ("efficientvit_m0", "efficientvit_m5"),
    "fastvit": ("fastvit_t8", "fastvit_sa24"),
    "focalnet": ("focalnet_tiny_srf", "focalnet_tiny_lrf"),
    "gcvit": ("gcvit_xxtiny", "gcvit_tiny"),
    "gemma4_vit": ("gemma4_vit_167m",),
    "hiera": ("hiera_tiny_224", "hiera_small_abswin_256"),
    "hieradet_sam2": ("hieradet_small", "sam2_hiera_tiny"),
    "iformer": ("iformer_t", "iformer_m"),
    "levit": ("levit_128s", "levit_conv_256", "levit_256d"),
    "lowformer": ("lowformer_b0", "lowformer_b1"),
    "maxxvit": (
        *("test_coatnet", "test_maxvit", "coatnet_rmlp_nano_rw_224", "maxvit_tiny_tf_224", "maxxvit_rmlp_nano_rw_256"),
        *("maxxvitv2_nano_rw_256", "coatnext_nano_rw_224"),
    ),
    "metaformer": ("poolformerv2_s12", "poolformer_s12", "caformer_s18", "convformer_s18"),
    "mobilenetv5": ("mobilenetv5_base",),
    "mobilevit": ("mobilevit_xxs", "mobilevit_s", "mobilevitv2_050", "mobilevitv2_100"),
    "mvitv2": ("mvitv2_tiny", "mvitv2_base_cls"),
    "naflexvit": ("naflexvit_base_patch16_gap", "naflexvit_base_patch16_map", "naflexvit_base_patch16_siglip"),
    "nest": ("nest_tiny", "nest_small_jx"),
    "nextvit": ("nextvit_small", "nextvit_base"),
    "pit": ("pit_ti_224", "pit_s_distilled_224"),
    "pvt_v2": ("pvt_v2_b0", "pvt_v2_b2_li"),
    "qwen3_vit": ("qwen3_vit_88m", "qwen3_vit_88m_enc"),
    "repvit": ("repvit_m1", "repvit_m2_3"),
    "shvit": ("shvit_s1", "shvit_s4"),
    "swiftformer": ("swiftformer_xs", "swiftformer_l1"),
    "swin_transformer": ("swin_tiny_patch4_window7_224", "swin_s3_tiny_224"),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", "swinv2_small_window8_256"),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", "swinv2_cr_tiny_ns_224"),
    "tiny_vit": ("tiny_vit_5m_224", "tiny_vit_21m_224"),
    "tnt": ("tnt_s_patch16_224", "tnt_s_legacy_patch16_224"),
    "twins": ("twins_pcpvt_small", "twins_svt_small"),
    "visformer": ("visformer_tiny", "visformer_small"),
    "vitamin": ("vitamin_small_224", "vitamin_base_224"),
    "volo": ("volo_d1_224", "volo_d2_224"),
    "xcit": ("xcit_nano_12_p8_224", "xcit_small_12_p16_224"),
    "torchvision": ("torchvision:vit_b_32", "torchvision:vit_b_16"),
}


def default_names() -> list[str]:
    """The default list, in the order of its families."""
    return [name for names in DEFAULT.values() for name in names]


def all_names() -> list[str]:
    """Every model of timm that belongs to a family of Vision Transformers, and torchvision's."""
    names = [
        name for name in timm.list_models() if timm.model_entrypoint(name).__module__.rpartition(".")[2] in VIT_FAMILIES
    ]
    return [*names, *(f"torchvision:vit_{size}" for size in ("b_16", "b_32", "l_16", "l_32", "h_14"))]
