"""Checkpoints as the frameworks themselves write them, and what each framework's own model computes.

Every `Case` writes a file or folder with the real library and gives the logits of that library's model for one image; what
vitexport loads from it must compute the same, or be refused by name.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import io
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vitexport.source import ModelRequest

NAME = "vit_tiny_patch16_224"
CLASSES = 5
SHAPE = {"depth": 1, "img_size": 32}
State = dict[str, torch.Tensor]
IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(7))
LARGE = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(7))
Made = tuple[ModelRequest, "torch.Tensor | None"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        framework, container, prefix, head, ema: Its kind, for the table.
        make: Writes it into a folder; returns the request, and the logits of `IMAGE`, or None where it has to be refused.
        refusal: What the refusal has to name.
        image: What the logits are of.
    """

    framework: str
    container: str
    prefix: str
    head: str
    ema: str
    make: Callable[[Path], Made]
    refusal: str = ""
    image: torch.Tensor = dataclasses.field(default=IMAGE, repr=False)

    @property
    def name(self) -> str:
        return "-".join((self.framework, self.container, self.prefix or "plain", self.head, self.ema)).replace(" ", "_")


def trained(name: str = NAME, *, seed: int = 1, **kwargs: Any) -> nn.Module:
    """A model of timm's with weights that no seed of vitexport gives, and outputs that are not all alike."""
    torch.manual_seed(1000 + seed)
    model: nn.Module = timm.create_model(name, **{"num_classes": CLASSES, **SHAPE, **kwargs})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, image: torch.Tensor = IMAGE) -> torch.Tensor:
    result: torch.Tensor = model(image)
    return result


def request(path: Path, **changes: Any) -> ModelRequest:
    """The file alone; it has to say the rest."""
    return ModelRequest(**{"name": NAME, "checkpoint": path, "pretrained": False, **changes})


# ---- one state_dict in every container, prefix and head


CONTAINERS: Mapping[str, tuple[str, Callable[[State, Path], None]]] = {
    "pth": ("w.pth", torch.save),
    "legacy": ("w.pth", lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False)),
    "safetensors": ("w.safetensors", save_file),
    "safetensors by another name": ("w.weights", save_file),
    "pth.tar": ("w.pth.tar", lambda state, path: torch.save({"epoch": 3, "arch": NAME, "state_dict": state}, path)),
    "ckpt": (
        "w.ckpt",
        lambda state, path: torch.save({"state_dict": state, "optimizer_states": [{"state": {0: {}}}]}, path),
    ),
    "bin": ("w.bin", torch.save),
    "model": (
        "w.pt",
        lambda state, path: torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}}, path),
    ),
    "model_state_dict": ("w.pt", lambda state, path: torch.save({"model_state_dict": state, "loss": 0.1, "epoch": 1}, path)),
    "net": ("w.pt", lambda state, path: torch.save({"net": state, "acc": 91.2}, path)),
    "nested": ("w.pt", lambda state, path: torch.save({"checkpoint": {"weights": state}}, path)),
    "no suffix": ("weights", torch.save),
}
PREFIXES = (
    *("", "module.", "_orig_mod.", "model.", "net.", "backbone.", "timm_model.", "base_model.model.", "model._orig_mod."),
    "module._orig_mod.encoder.",
)
HEADS = ("own", "dropout", "outside", "no bias", "mlp", "half")
# A head without a bias cannot be told from a file that lacks one.
REFUSED_HEADS = {"mlp": "head.0", "no bias": "head.bias is missing"}


def headed(head: str) -> tuple[nn.Module, State, str]:
    """A model with that head; its tensors; and what a refusal has to name."""
    model: Any = trained()
    if head == "dropout":
        model.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(192, CLASSES))
    elif head == "no bias":
        model.head = nn.Linear(192, CLASSES, bias=False)
    elif head == "mlp":
        model.head = nn.Sequential(nn.Linear(192, 16), nn.GELU(), nn.Linear(16, CLASSES))
    state = dict(model.eval().state_dict())
    if head == "half":
        state = {name: tensor.half() for name, tensor in state.items()}
        model.load_state_dict(state)
    return model, state, REFUSED_HEADS.get(head, "")


def plain(container: str, prefix: str, head: str) -> Case:
    def make(folder: Path) -> Made:
        model, state, refusal = headed(head)
        if head == "outside" and prefix:
            # As a module of its own with a trunk and a Linear, both attributes.
            moved = {f"{prefix}{name}": value for name, value in state.items() if not name.startswith("head.")}
            named = moved | {f"classifier.{name.partition('.')[2]}": state[name] for name in ("head.weight", "head.bias")}
        else:
            named = {f"{prefix}{name}": value for name, value in state.items()}
        name, write = CONTAINERS[container]
        write({key: value.clone() for key, value in named.items()}, folder / name)
        return request(folder / name), None if refusal else logits(model)

    return Case("PyTorch", container, prefix, head, "none", make, REFUSED_HEADS.get(head, ""))


# ---- averaged weights


def averaged(ema: str, prefix: str) -> Case:
    def make(folder: Path) -> Made:
        raw, mean = trained(seed=2), trained(seed=3)
        first, second = ({f"{prefix}{name}": value for name, value in m.state_dict().items()} for m in (raw, mean))
        files: dict[str, dict[str, Any]] = {
            "both": {"state_dict": first, "state_dict_ema": second},
            "both, --ema": {"state_dict": first, "state_dict_ema": second},
            "model_ema": {"model": first, "model_ema": second},
            "model_ema, --ema": {"model": first, "model_ema": second},
            "only": {"state_dict_ema": second},
            "in one": {"state_dict": {**first, **{f"ema_model.module.{name}": v for name, v in mean.state_dict().items()}}},
            "in one, --ema": {
                "state_dict": {**first, **{f"ema_model.module.{name}": v for name, v in mean.state_dict().items()}}
            },
        }
        path = folder / "last.pth.tar"
        torch.save({"epoch": 2, **files[ema]}, path)
        wanted = mean if ema == "only" or "--ema" in ema else raw
        return request(path, ema=True if "--ema" in ema else None), logits(wanted)

    return Case("PyTorch", "pth.tar", prefix, "own", ema, make)


# ---- timm


def timm_arguments(**changes: Any) -> argparse.Namespace:
    """What timm's train.py keeps, as far as it bears on the model."""
    values = {
        *(
            ("model", NAME),
            ("num_classes", CLASSES),
            ("gp", None),
            ("img_size", 32),
            ("in_chans", None),
            ("input_size", None),
        ),
        *(("crop_pct", None), ("mean", None), ("std", None), ("interpolation", ""), ("model_ema", False), ("lr", 1e-3)),
    }
    return argparse.Namespace(**{**dict(values), "model_kwargs": {"depth": 1}, **changes})


def timm_saver(ema: str, pooling: str, *, name: str | None) -> Case:
    def make(folder: Path) -> Made:
        from timm.utils import CheckpointSaver, ModelEmaV3

        model = trained(global_pool=pooling)
        average = ModelEmaV3(trained(seed=4, global_pool=pooling))
        args = timm_arguments(gp=None if pooling == "token" else pooling)
        saver = CheckpointSaver(
            *(model, torch.optim.SGD(model.parameters(), 0.1)),
            args=args,
            model_ema=None if ema == "none" else average,
            checkpoint_dir=str(folder),
            recovery_dir=str(folder),
        )
        saver.save_checkpoint(0, 50.0)
        wanted = average.module if "--ema" in ema else model
        changes = {"ema": True} if "--ema" in ema else {}
        return request(folder / "model_best.pth.tar", name=name, **changes), logits(wanted)

    return Case("timm CheckpointSaver", "pth.tar", "no MODEL" if name is None else "", f"{pooling} pooling", ema, make)


def timm_hub(container: str) -> Case:
    def make(folder: Path) -> Made:
        from timm.models import save_for_hf

        model: Any = trained()
        save_for_hf(model, str(folder), model_args=SHAPE, safe_serialization=container == "safetensors")
        return request(folder, name=None), logits(model)

    return Case("timm save_for_hf", container, "", "own", "none", make)


# ---- Lightning


def lightning_module(attribute: str, head: str) -> Any:
    import lightning

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, model_name: str, num_classes: int) -> None:
            super().__init__()
            self.save_hyperparameters()
            model: Any = trained(model_name)
            if head == "outside":
                model.reset_classifier(0)
                self.classifier = nn.Linear(192, num_classes)
            setattr(self, attribute, model)
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(num_classes))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen = getattr(self, attribute)(image)
            result: torch.Tensor = self.classifier(seen) if head == "outside" else seen
            return result

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Module(NAME, CLASSES).eval()


def lightning(attribute: str, head: str, *, name: str | None) -> Case:
    def make(folder: Path) -> Made:
        import lightning as library

        module = lightning_module(attribute, head)
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            trainer = library.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=0)
            trainer.strategy.connect(module)
            trainer.save_checkpoint(folder / "epoch=3.ckpt")
        return request(folder / "epoch=3.ckpt", name=name), logits(module)

    return Case("Lightning", "ckpt", f"{attribute}." + (" no MODEL" if name is None else ""), head, "none", make)


# ---- transformers


def timm_wrapper(container: str) -> Case:
    def make(folder: Path) -> Made:
        import transformers

        config = transformers.TimmWrapperConfig(
            architecture=NAME, model_args=dict(SHAPE), num_labels=CLASSES, id2label={i: f"kind {i}" for i in range(CLASSES)}
        )
        model = transformers.TimmWrapperForImageClassification(config).eval()
        quietly(lambda: model.save_pretrained(folder, max_shard_size="400KB" if container == "sharded" else "5GB"))
        with torch.no_grad():
            seen = model(IMAGE).logits
        return request(folder, name=None), seen

    return Case("transformers TimmWrapper", container, "timm_model.", "own", "none", make)


def transformers_vit(container: str) -> Case:
    def make(folder: Path) -> Made:
        import transformers

        config = transformers.ViTConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=96,
            image_size=32,
            patch_size=8,
            id2label={i: f"kind {i}" for i in range(CLASSES)},
        )
        torch.manual_seed(5)
        model = transformers.ViTForImageClassification(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        size = {"height": 32, "width": 32}
        quietly(lambda: transformers.ViTImageProcessor(size=size).save_pretrained(folder))
        if container == "bin":
            config.save_pretrained(folder)
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
            (folder / "config.json").write_text(
                json.dumps(
                    {**json.loads((folder / "config.json").read_text()), "architectures": ["ViTForImageClassification"]}
                )
            )
        else:
            quietly(lambda: model.save_pretrained(folder))
        with torch.no_grad():
            seen = model(IMAGE).logits
        return request(folder, name=None), seen

    return Case("transformers ViT", container, "vit.", "own", "none", make)


def transformers_other() -> Case:
    def make(folder: Path) -> Made:
        import transformers

        config = transformers.SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[1, 2], image_size=32, window_size=4)
        model = transformers.SwinForImageClassification(config)
        quietly(lambda: model.save_pretrained(folder))
        return request(folder, name=None), None

    return Case("transformers Swin", "safetensors", "swin.", "own", "none", make, "is a swin model of transformers")


def quietly(step: Callable[[], object]) -> None:
    """Without the progress bars of a library."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step()


# ---- PEFT


def peft(form: str) -> Case:
    refusal = {"adapter": "PEFT adapter", "state_dict": "LoRA layers", "merged": ""}[form]

    def make(folder: Path) -> Made:
        import peft as library

        settings = library.LoraConfig(target_modules=["qkv"], r=2, modules_to_save=["head"])
        model = quiet_value(lambda: library.get_peft_model(trained(), settings))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.1)
        if form == "adapter":
            model.save_pretrained(folder)
            return request(folder), None
        path = folder / "w.pth"
        if form == "state_dict":
            torch.save(model.state_dict(), path)
            return request(path), None
        merged = model.merge_and_unload().eval()
        torch.save({f"base_model.model.{name}": value for name, value in merged.state_dict().items()}, path)
        return request(path), logits(merged)

    return Case("PEFT", form, "base_model.model.", "own", "none", make, refusal)


def quiet_value(step: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return step()


# ---- torchvision


def torchvision(head: str) -> Case:
    def make(folder: Path) -> Made:
        from torchvision.models import VisionTransformer

        torch.manual_seed(6)
        model: Any = VisionTransformer(
            image_size=32, patch_size=16, num_layers=1, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=CLASSES
        )
        if head == "heads = Linear":
            model.heads = nn.Linear(192, CLASSES)
        elif head == "heads = Sequential":
            model.heads = nn.Sequential(nn.Dropout(0.1), nn.Linear(192, CLASSES))
        else:
            nn.init.normal_(model.heads.head.weight)
        torch.save(model.eval().state_dict(), folder / "tv.pth")
        return request(folder / "tv.pth"), logits(model)

    return Case("torchvision", "pth", "", head, "none", make)


# ---- open_clip


def open_clip(tower: str, *, config: bool = False) -> Case:
    """A CLIP of open_clip, with or without the file that describes it."""

    def make(folder: Path) -> Made:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        torch.manual_seed(8)
        own = {"layers": 1, "width": 192, "head_width": 64, "patch_size": 16, "image_size": 32}
        timm_tower = {"timm_model_name": NAME, "timm_pool": "", "timm_proj": "linear", "image_size": 224}
        vision: dict[str, Any] = timm_tower if tower == "timm" else own
        text = CLIPTextCfg(context_length=8, vocab_size=50, width=32, heads=1, layers=1)
        activation = tower == "QuickGELU"
        model = CLIP(embed_dim=48, vision_cfg=CLIPVisionCfg(**vision), text_cfg=text, quick_gelu=activation).eval()
        if config:
            described = {
                "embed_dim": 48,
                "vision_cfg": vision,
                "text_cfg": dataclasses.asdict(text),
                "quick_gelu": activation,
            }
            preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
            text_of = json.dumps({"model_cfg": described, "preprocess_cfg": {**preprocess, "resize_mode": "shortest"}})
            (folder / "open_clip_config.json").write_text(text_of, encoding="utf-8")
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
        with torch.no_grad():
            seen = model.encode_image(LARGE if tower == "timm" else IMAGE)
        if config:
            return request(folder, name=None), seen
        arch = NAME if tower == "timm" else f"vit_base_patch16_clip_{'quickgelu_' if activation else ''}224"
        kwargs = {} if tower == "timm" else {"embed_dim": 192, "num_heads": 3, "depth": 1}
        size = None if tower == "timm" else 32
        asked = request(folder / "open_clip_pytorch_model.bin", name=arch, kwargs=kwargs, img_size=size)
        return (dataclasses.replace(asked, num_classes=48) if tower == "timm" else asked), seen

    container = "folder" if config else "bin"
    return Case("open_clip", container, "visual.", tower, "none", make, image=LARGE if tower == "timm" else IMAGE)


# ---- the official repositories


def dinov2(registers: int) -> Case:
    """Names of facebookresearch/dinov2: timm's own filter is what it is compared with."""

    def make(folder: Path) -> Made:
        arch = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
        own: Any = timm.create_model(arch, depth=1, img_size=28, num_classes=0)
        state = {name: tensor + 0.02 for name, tensor in own.state_dict().items()} | {"mask_token": torch.zeros(1, 384)}
        if registers:
            state["register_tokens"] = state.pop("reg_token")
            state["pos_embed"] = torch.cat([torch.full((1, 1, 384), 0.03), state["pos_embed"]], dim=1)
        torch.save(state, folder / "dinov2_vits14_pretrain.pth")
        from timm.models.vision_transformer import checkpoint_filter_fn

        own.load_state_dict(checkpoint_filter_fn(copy.copy(state), own))
        seen = logits(own.eval(), IMAGE[..., :28, :28])
        return request(folder / "dinov2_vits14_pretrain.pth", name=arch), seen

    return Case("DINOv2", "pth", "", f"{registers} registers", "none", make, image=IMAGE[..., :28, :28])


def old_swin() -> Case:
    """Names of microsoft/Swin-Transformer and of timm before 0.9, compared with timm's own filter."""

    def make(folder: Path) -> Made:
        shape = {"depths": (1, 1), "num_heads": (2, 4), "embed_dim": 32, "img_size": 32, "window_size": 4}
        own: Any = timm.create_model("swin_tiny_patch4_window7_224", num_classes=CLASSES, **shape)
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        state = {
            name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): value
            for name, value in own.state_dict().items()
        }
        state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
        state["layers.1.blocks.0.attn_mask"] = torch.zeros(4, 16, 16)
        torch.save({"model": state, "epoch": 299}, folder / "swin.pth")
        asked = request(folder / "swin.pth", name="swin_tiny_patch4_window7_224", img_size=32)
        return asked, logits(own.eval())

    return Case("Swin-Transformer", "pth", "", "own", "none", make)


def cases() -> Iterator[Case]:
    """All of them; of the large product of containers, prefixes and heads every pair."""
    for index, (container, prefix, head) in enumerate(itertools.product(CONTAINERS, PREFIXES, HEADS)):
        # A step that shares no factor with the lengths of the lists meets every pair of their entries.
        if index % 7 == 0:
            yield plain(container, prefix, head)
    for ema in ("both", "both, --ema", "model_ema", "model_ema, --ema", "only", "in one", "in one, --ema"):
        for prefix in ("", "module."):
            yield averaged(ema, prefix)
    for ema in ("none", "both", "both, --ema"):
        for pooling in ("token", "avg"):
            for name in (NAME, None):
                yield timm_saver(ema, pooling, name=name)
    yield from (timm_hub(container) for container in ("safetensors", "bin"))
    for attribute, head in itertools.product(("model", "net", "backbone"), ("own", "outside")):
        for name in (NAME, None):
            yield lightning(attribute, head, name=name)
    yield from (timm_wrapper(container) for container in ("safetensors", "sharded"))
    yield from (transformers_vit(container) for container in ("safetensors", "bin"))
    yield transformers_other()
    yield from (peft(form) for form in ("adapter", "state_dict", "merged"))
    yield from (torchvision(head) for head in ("heads.head", "heads = Linear", "heads = Sequential"))
    towers = itertools.product(("own", "QuickGELU", "timm"), (False, True))
    yield from (open_clip(tower, config=config) for tower, config in towers)
    yield from (dinov2(registers) for registers in (0, 4))
    yield old_swin()
