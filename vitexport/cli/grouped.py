"""Show the options of ``build`` and ``plan`` by what they are about, and examples first."""

from __future__ import annotations

from collections.abc import Mapping

import click

from vitexport.targets import catalogue

# By heading; every option of ``build`` is in one of them.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Target and bundle": ("target", "jetpack", "out", "force"),
    "Model and weights": (
        *("checkpoint", "checkpoint_key", "ema", "pretrained", "model_kwargs", "model_from", "num_classes", "seed"),
    ),
    "Pictures": ("img_size", "in_chans", "mean", "std", "crop_pct", "crop_mode", "interpolation"),
    "What the model computes": ("head", "features", "task", "threshold", "softmax"),
    "Zero-shot classifiers": ("class_embeddings", "classes", "templates", "open_clip", "logit_scale", "logit_bias"),
    "Precision and INT8": (
        *("precision", "calibration", "calibration_size", "placement", "observer", "rounding", "degraded", "equalize"),
        *("include", "exclude", "recipe"),
    ),
    "Validation": (
        *("data", "labels", "class_order", "expect_top1", "max_drop", "min_agreement", "max_map_drop"),
        *("min_label_agreement", "max_error_increase", "max_deviation", "min_cosine"),
    ),
    "Files": ("batch", "opset", "embed_preprocess", "top_indices"),
    "Output": ("as_json", "quiet", "verbose", "help"),
}
EXAMPLES = (
    ("your checkpoint for this CPU", "--checkpoint w.pth --target cpu --calibration train --data val"),
    ("a timm model for an NVIDIA L4", "vit_small_patch16_224 --target l4 --calibration images"),
    ("an embedding for a Jetson", "vit_small_patch14_dinov2.lvd142m --target jetson-agx-orin-64gb"),
)


class Grouped(click.Command):
    """A command whose options stand under headings."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The text, then examples."""
        super().format_help_text(ctx, formatter)
        with formatter.section("Examples"):
            for title, words in EXAMPLES:
                # As one types them: wrapped, they could not be copied.
                formatter.write(f"  # {title}\n  vitexport {ctx.info_name} {words}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every group that has options, under its heading."""
        records = {
            parameter.name: record
            for parameter in self.get_params(ctx)
            if (record := parameter.get_help_record(ctx)) is not None
        }
        for heading, names in GROUPS.items():
            if rows := [records[name] for name in names if name in records]:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def complete_target(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Targets that begin so, for a shell."""
    return [name for name in ("cpu", *catalogue()) if name.startswith(incomplete)]
