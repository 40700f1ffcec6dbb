"""Small models with random weights, as folders: open_clip teachers, and VLMs of real architectures (`transformers`).

A VLM has a tokenizer trained on a few sentences, and its family's image processor, chat template and special tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import hoi.world
from hoi.config import TeacherConfig
from hoi.vlm.transformers_loading import quiet
from hoi.world.models.clip import BPE_FILE

CLIP_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
TIMM = {"image_size": 64, "timm_model_name": "mobilenetv2_050", "timm_pool": "", "timm_proj": "linear"}
TOWERS: dict[str, dict[str, Any]] = {
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
    "vit": VIT,
    "vit_average": {**VIT, "pool_type": "avg"},
    "vit_attention": {**VIT, "attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
    "timm_convolution": TIMM,
    "timm_map_pool": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": ""},
}
"""The image towers of `hoi.teachers.towers`; pooling decides how a region reaches the joint space."""
SENTENCES = [
    "What is the person doing with the object? Answer yes or no.",
    "Is a person riding a horse? Yes. No. yes no",
    "riding a horse, holding an umbrella, sitting on a bench, walking a dog",
    "Describe the image in one short sentence.",
    "USER: ASSISTANT: user assistant model caption en",
]
WIDTH, LAYERS, HEADS = 32, 2, 4
SPREAD = 0.3
"""Standard deviation of the weights: with the usual 0.02 a small model finds everything equally likely."""
VISION: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "initializer_range": SPREAD,
}
TEXT: dict[str, Any] = {
    **VISION,
    "num_key_value_heads": 2,
    "head_dim": WIDTH // HEADS,
    "max_position_embeddings": 2048,
}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def write_clip(folder: Path, kind: str = "resnet") -> str:
    """Write an open_clip model without weights; return the name that loads it with `pretrained: random`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = {"embed_dim": 16, "vision_cfg": TOWERS[kind], "text_cfg": CLIP_TEXT}
    plain = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}}
    (folder / "open_clip_config.json").write_text(json.dumps(plain))
    return f"local-dir:{folder}"


def teacher_config(folder: Path, kind: str = "resnet", **settings: Any) -> TeacherConfig:
    """Write such a model and return a teacher section that loads it."""
    plain = {"model": write_clip(folder / kind, kind), "pretrained": "random", "batch_size": 8, **settings}
    return TeacherConfig.model_validate(plain)


def write_coca(folder: Path, full: bool = True) -> str:
    """Write a CoCa without weights; return the name that loads it with `pretrained: random`.

    Args:
        full: As the published models are: a class token in the text tower, and an attentional pooler.
    """
    text: dict[str, Any] = {"context_length": 20, "vocab_size": 808, "width": 32, "heads": 2, "layers": 2}
    vision: dict[str, Any] = {**VIT, "image_size": 32, "patch_size": 8, "attn_pooler_heads": 2}
    pooler: dict[str, Any] = {"attentional_pool": True, "attn_pooler_queries": 9} if full else {}
    tokens: dict[str, Any] = {"output_tokens": True, "embed_cls": full, "tokenizer_kwargs": {"bpe_path": BPE_FILE}}
    config = {
        "embed_dim": 32,
        "vision_cfg": {**vision, "output_tokens": True, **pooler},
        "text_cfg": {**text, **tokens},
        "multimodal_cfg": text,
        "custom_text": True,
    }
    folder.mkdir()
    shutil.copyfile(Path(hoi.world.__file__).parent / "weights/clip" / BPE_FILE, folder / BPE_FILE)
    plain = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(plain))
    return f"local-dir:{folder}"


def write_vlm(folder: Path, family: str, seed: int = 0, **sizes: Any) -> Path:
    """Write a model of one of `FAMILIES`, its tokenizer and its processor.

    Args:
        sizes: `width`, `layers`, `image_px` in place of the small ones.
    """
    import transformers

    torch.manual_seed(seed)
    with quiet():
        model, processor = FAMILIES[family](transformers, **sizes)
        model.generation_config.update(eos_token_id=processor.tokenizer.eos_token_id)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def _tokenizer(special: list[str], eos: str, *, sentencepiece: bool = False, **named: str) -> Any:
    """Return a tokenizer trained on `SENTENCES`: of bytes as in GPT-2, or with "▁" before every word as in Llama."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=sentencepiece))
    if sentencepiece:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(parts)
        special, alphabet, size = [*special, *(f"<0x{byte:02X}>" for byte in range(256))], [], 700
        # Word by word: the normaliser puts "▁" before each.
        texts = [word for sentence in SENTENCES for word in sentence.split()]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet, size, texts = pre_tokenizers.ByteLevel.alphabet(), 420, SENTENCES
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", *special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    extra = {"extra_special_tokens": named} if named else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token=eos, **extra)


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {**TEXT, "vocab_size": len(tokenizer), **ids, **more}


def _siglip(image_px: int, **more: Any) -> dict[str, Any]:
    kind = {"model_type": "siglip_vision_model", "vision_use_head": False}
    return {**VISION, **kind, "image_size": image_px, "patch_size": 8, **more}


def _qwen(kind: str, t: Any, width: int = WIDTH, layers: int = LAYERS, image_px: int = 112) -> tuple[Any, Any]:
    """Qwen-VL: position ids follow the image's grid (M-RoPE); of 3.5, every second layer is a recurrent one."""
    image, video, start, end = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
    tokenizer = _tokenizer(["<|im_start|>", "<|im_end|>", start, end, image, video], "<|im_end|>")
    patch = 14 if kind == "qwen2_vl" else 16
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": image_px**2}
    head = width // HEADS
    wide = {"hidden_size": width, "intermediate_size": 2 * width}
    text = _text(tokenizer, **wide, num_hidden_layers=layers, head_dim=head, bos_token_id=None)
    section = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [head // 8, head // 8, head // 4]}
    text["rope_parameters"] = section if kind == "qwen2_vl" else {**section, "mrope_interleaved": True}
    vision: dict[str, Any] = {"patch_size": patch, "depth": layers, "num_heads": HEADS, "initializer_range": SPREAD}
    named = {"image": image, "video": video, "vision_start": start, "vision_end": end}
    config: dict[str, Any] = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()
    }
    config |= {"text_config": text, "vision_config": vision}
    family = "Qwen2VL" if kind == "qwen2_vl" else "Qwen3VL"
    images = t.Qwen2VLImageProcessor(size=size, patch_size=patch)
    videos = getattr(t, f"{family}VideoProcessor")(size=size, patch_size=patch)
    template = CHATML.replace("IMAGE", f"{start}{image}{end}")
    processor = getattr(t, f"{family}Processor")(images, tokenizer, videos, chat_template=template)
    if kind == "qwen2_vl":
        vision |= {"hidden_size": width, "embed_dim": width, "mlp_ratio": 2}
        return t.Qwen2VLForConditionalGeneration(t.Qwen2VLConfig(**config)), processor
    vision |= {**wide, "out_hidden_size": width, "num_position_embeddings": 64}
    if kind == "qwen3_vl":
        vision["deepstack_visual_indexes"] = [0]
        return t.Qwen3VLForConditionalGeneration(t.Qwen3VLConfig(**config)), processor
    text |= {"layer_types": ["linear_attention", "full_attention"] * (layers // 2), "head_dim": 32}
    text |= {f"linear_num_{kind}_heads": 2 for kind in ("key", "value")}
    text |= {f"linear_{kind}_head_dim": 16 for kind in ("key", "value")}
    text["rope_parameters"] |= {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}
    return t.Qwen3_5ForConditionalGeneration(t.Qwen3_5Config(**config)), processor


def _llava(t: Any, image_px: int = 56) -> tuple[Any, Any]:
    """LLaVA: a CLIP tower before a Llama, whose tokenizer puts a space before every text."""
    tokenizer = _tokenizer(["<s>", "</s>", "<image>"], "</s>", sentencepiece=True)
    vision = t.CLIPVisionConfig(**VISION, image_size=image_px, patch_size=14)
    text, image = t.LlamaConfig(**_text(tokenizer)), tokenizer.convert_tokens_to_ids("<image>")
    config = t.LlavaConfig(vision_config=vision, text_config=text, image_token_id=image, vision_feature_layer=-1)
    crop = {"height": image_px, "width": image_px}
    processor = t.LlavaProcessor(
        t.CLIPImageProcessor(size={"shortest_edge": image_px}, crop_size=crop),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA,
    )
    return t.LlavaForConditionalGeneration(config), processor


def _idefics3(t: Any, image_px: int = 32) -> tuple[Any, Any]:
    """Idefics3 (and SmolVLM): an image is cut into tiles."""
    around, end = "<fake_token_around_image>", "<end_of_utterance>"
    places = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = _tokenizer(["<|im_start|>", "<image>", around, "<global-img>", end, *places], end)
    config = t.Idefics3Config(
        vision_config={**VISION, "image_size": image_px, "patch_size": 8},
        text_config=_text(tokenizer, model_type="llama", bos_token_id=None),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    tiles, ends = {"longest_edge": image_px}, "{% endfor %}{% endfor %}"
    images = t.Idefics3ImageProcessor(size={"longest_edge": 2 * image_px}, max_image_size=tiles)
    template = VICUNA.replace("<image>\n", "<image>").replace(ends, f"{{% endfor %}}{end}\n{{% endfor %}}")
    number = (image_px // 8 // 2) ** 2
    processor = t.Idefics3Processor(images, tokenizer, image_seq_len=number, chat_template=template)
    return t.Idefics3ForConditionalGeneration(config), processor


def _paligemma(t: Any, image_px: int = 32) -> tuple[Any, Any]:
    """PaliGemma: no chat template, positions from 1, and a prompt whose tokens all see each other."""
    tokenizer = _tokenizer(["<bos>", "<eos>", "<image>"], "<eos>", image_token="<image>")
    tokenizer.bos_token = "<bos>"
    images = t.SiglipImageProcessor(size={"height": image_px, "width": image_px})
    images.image_seq_length = (image_px // 8) ** 2
    # Before the config: it adds tokens for places.
    processor = t.PaliGemmaProcessor(images, tokenizer)
    config = t.PaliGemmaConfig(
        vision_config=_siglip(image_px, projection_dim=WIDTH),
        text_config=_text(tokenizer, model_type="gemma", bos_token_id=tokenizer.bos_token_id),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=WIDTH,
    )
    return t.PaliGemmaForConditionalGeneration(config), processor


def _gemma3(t: Any, image_px: int = 32) -> tuple[Any, Any]:
    """Gemma 3: layers that only see the last few tokens, and image tokens that all see each other."""
    named = {"boi": "<start_of_image>", "eoi": "<end_of_image>", "image": "<image_soft_token>"}
    special = ["<bos>", "<|im_start|>", "<|im_end|>", *named.values()]
    tokenizer = _tokenizer(special, "<|im_end|>", **{f"{name}_token": token for name, token in named.items()})
    tokenizer.bos_token = "<bos>"
    number = (image_px // 8 // 2) ** 2
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    config = t.Gemma3Config(
        text_config=_text(
            tokenizer, bos_token_id=tokenizer.bos_token_id, query_pre_attn_scalar=WIDTH // HEADS, **layers
        ),
        vision_config=_siglip(image_px),
        mm_tokens_per_image=number,
        initializer_range=SPREAD,
        **{f"{name}_token_index": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()},
    )
    images = t.Gemma3ImageProcessor(size={"height": image_px, "width": image_px})
    template = CHATML.replace("IMAGE", named["boi"])
    processor = t.Gemma3Processor(images, tokenizer, image_seq_length=number, chat_template=template)
    model = t.Gemma3ForConditionalGeneration(config)
    # Initialised to zero otherwise, and then the image has no influence.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=SPREAD)
    return model, processor


FAMILIES: dict[str, Callable[..., tuple[Any, Any]]] = {
    **{kind: partial(_qwen, kind) for kind in ("qwen2_vl", "qwen3_vl", "qwen3_5")},
    "llava": _llava,
    "idefics3": _idefics3,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
}
