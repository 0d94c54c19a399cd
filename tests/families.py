"""Every model family transpike must cover, as small random configurations that no download is needed for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

CLASSES, WIDTH, HEADS, DEPTH, VOCABULARY, TOKENS = 5, 32, 4, 2, 50, 9
Call = tuple[tuple[Any, ...], dict[str, Any]]  # args, kwargs
Inputs = Callable[[int], Call]


@dataclass(frozen=True)
class Family:
    """One small model: `build()` seeds and returns it in eval mode, `inputs(n)` gives (args, kwargs) for a batch of n.

    `batch_dim` is the batch's place in positional inputs and in the output; keyword tensors all have it first.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    batch_dim: int = 0


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Build, then re-draw what an initialiser left constant or tiny, so that every parameter changes the output."""
    torch.manual_seed(0)
    model = make().float().eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        spread = tensor.float().std().item() if tensor.numel() > 1 else 0.0
        with torch.no_grad():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                tensor.normal_(std=0.2)
            elif not isinstance(tensor, nn.Parameter):
                continue
            elif spread < 1e-3:
                tensor.normal_(mean=tensor.mean().round().item(), std=0.2)
            elif name.endswith("weight") and tensor.ndim >= 2:
                fair = 1 / math.sqrt(tensor[0].numel())
                if spread < 0.2 * fair:  # an attention from such weights is uniform and hides a wrong mask or scale
                    tensor.normal_(std=fair)
            elif tensor.ndim >= 2 and spread < 0.1:
                tensor.normal_(std=0.2)
    return model


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)


def _timm_cnn(blocks: list[list[str]], activation: type[nn.Module]) -> nn.Module:
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    return EfficientNet(decode_arch_def(blocks), CLASSES, num_features=64, stem_size=8, act_layer=activation)


def _timm_mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(CLASSES, img_size=32, patch_size=8, num_blocks=DEPTH, embed_dim=WIDTH)


def _vgg_bn() -> nn.Module:
    from timm.models.vgg import VGG

    plan = [8, "M", 16, "M", 24, 24, "M", 32, 32, "M", 32, 32, "M"]  # the stock widths are 120 million weights
    return VGG(plan, num_classes=CLASSES, norm_layer=nn.BatchNorm2d, mlp_ratio=0.01)


def _torchvision_vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(32, 8, DEPTH, HEADS, WIDTH, 2 * WIDTH, num_classes=CLASSES)


def _hugging_face(model: str, **options: Any) -> nn.Module:
    import transformers

    kind = getattr(transformers, model)
    return kind(kind.config_class(**options))


class _KoolLayer(nn.Module):
    """Encoder layer of Kool et al. 2019: batch normalisation over tokens, heads outermost, one weight per head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3, HEADS, WIDTH, WIDTH // HEADS) / math.sqrt(WIDTH))
        self.out = nn.Parameter(torch.randn(HEADS, WIDTH // HEADS, WIDTH) / math.sqrt(WIDTH))
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = (torch.matmul(x.reshape(1, -1, width), w).view(HEADS, n, tokens, -1) for w in self.qkv)
        heads = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(width // HEADS), dim=-1) @ v
        mixed = torch.mm(heads.permute(1, 2, 0, 3).reshape(-1, width), self.out.view(-1, width)).view_as(x)
        x = self.norms[0]((x + mixed).view(-1, width)).view_as(x)
        return self.norms[1]((x + self.mlp(x)).view(-1, width)).view_as(x)


class _TokensFirstLayer(nn.Module):
    """Pre-norm layer over [tokens, batch, width] with batch and heads merged into one dimension, as fairseq has it."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        tokens, n, width = x.shape
        parts = self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        q, k, v = (part.reshape(tokens, n * HEADS, -1).transpose(0, 1) for part in parts)
        weights = torch.softmax(torch.bmm(q * (width // HEADS) ** -0.5, k.transpose(1, 2)), dim=-1)
        x = x + self.out(torch.bmm(weights, v).transpose(0, 1).reshape(tokens, n, width))
        return x + self.mlp(self.norms[1](x))


class _Causal(nn.TransformerEncoder):
    """The stock encoder with a causal mask that it builds itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]), is_causal=True)


def _encoder(*, norm_first: bool, batch_first: bool, kind: Any = nn.TransformerEncoder) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, norm_first=norm_first, batch_first=batch_first)
    return kind(layer, DEPTH, enable_nested_tensor=not norm_first and batch_first)


def _images(size: int, n: int, *, keyword: str | None = None) -> Call:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randn(n, 3, size, size, generator=random) + torch.randn(n, 3, 1, 1, generator=random)
    return ((), {keyword: pixels}) if keyword else ((pixels,), {})


def _kept(n: int, *, side: str = "right") -> Tensor:
    """Attention mask [n, TOKENS] (1 = a real token): row i has TOKENS - i % 4 of them."""
    place = torch.arange(TOKENS) if side == "right" else torch.arange(TOKENS).flip(0)
    return (place < (TOKENS - torch.arange(n) % 4)[:, None]).long()


def _words(n: int, *, mask: str | None = "right", pad: int = 0, segments: bool = False, **fixed: Any) -> Call:
    ids = torch.randint(4, VOCABULARY, (n, TOKENS), generator=torch.Generator().manual_seed(1))
    kwargs: dict[str, Any] = {"input_ids": ids, **fixed}
    if mask:
        kept = _kept(n, side=mask)
        kwargs |= {"input_ids": torch.where(kept.bool(), ids, pad), "attention_mask": kept}
    if segments:
        kwargs["token_type_ids"] = (torch.arange(TOKENS) > TOKENS // 2).long().expand(n, TOKENS).contiguous()
    return (), kwargs


def _vectors(n: int, *, batch_dim: int = 0, padded: bool = False) -> Call:
    shape = (n, TOKENS, WIDTH) if batch_dim == 0 else (TOKENS, n, WIDTH)
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return (vectors,), {"src_key_padding_mask": _kept(n) == 0} if padded else {}


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": DEPTH, "num_heads": 3}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
MBCONV = [["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k3_s2_e6_c16_se0.25"], ["ir_r2_k5_s2_e6_c24_se0.25"]]
INVERTED = [["ds_r1_k3_s1_c8"], ["ir_r2_k3_s2_e6_c16"], ["ir_r2_k3_s1_e6_c24"]]
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {**VIT, "patch_size": 16},
    "deit3_small_patch16_224": VIT,
    "eva_giant_patch14_224": {**VIT, "mlp_ratio": 2},
    "eva02_tiny_patch14_224": {**VIT, "ref_feat_shape": (4, 4)},
    "eva02_base_patch16_clip_224": {**VIT, "ref_feat_shape": (4, 4)},  # q, k, v apart; norm inside attention and MLP
    "beit_base_patch16_224": VIT,
    "swin_tiny_patch4_window7_224": SWIN,
    "convnext_atto": {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)},
    "convnext_tiny": {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)},  # channels last inside a block, Linear MLP
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_width": 8},
    "mobilevit_xxs": {},
    "vit_small_patch16_dinov3": VIT,
}
SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
TEXT = {**SHAPE, "vocab_size": VOCABULARY}
BERT = {**TEXT, "intermediate_size": 64, "max_position_embeddings": 32, "num_labels": CLASSES}
LLAMA = {**TEXT, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 32}
SIGHT = {**SHAPE, "image_size": 32, "patch_size": 8, "intermediate_size": 64, "num_labels": CLASSES}
GPT2 = {**TEXT, "bos_token_id": 1, "eos_token_id": 1}
OPT = {**TEXT, "ffn_dim": 64, "max_position_embeddings": 32, "word_embed_proj_dim": WIDTH}
T5 = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": DEPTH, "num_heads": HEADS}

_pixels = partial(_images, 32, keyword="pixel_values")
_words_causal = partial(_words, use_cache=False)

HUGGING_FACE: tuple[tuple[str, str, dict[str, Any], Inputs], ...] = (
    ("hf_vit", "ViTForImageClassification", SIGHT, _pixels),
    ("hf_dinov2", "Dinov2ForImageClassification", SIGHT, _pixels),
    ("hf_clip_vision", "CLIPVisionModelWithProjection", {**SIGHT, "projection_dim": CLASSES}, _pixels),
    ("hf_bert", "BertForSequenceClassification", BERT, partial(_words, segments=True)),
    ("hf_bert_unmasked", "BertForSequenceClassification", BERT, partial(_words, mask=None)),
    ("hf_roberta", "RobertaForSequenceClassification", BERT, partial(_words, pad=1)),
    ("hf_distilbert", "DistilBertForSequenceClassification", {**TEXT, "hidden_dim": 64, "num_labels": CLASSES}, _words),
    ("hf_gpt2", "GPT2LMHeadModel", GPT2, partial(_words_causal, mask="left")),
    ("hf_gpt2_unmasked", "GPT2LMHeadModel", GPT2, partial(_words_causal, mask=None)),
    ("hf_opt", "OPTForCausalLM", OPT, partial(_words_causal, pad=1)),
    ("hf_llama", "LlamaForCausalLM", LLAMA, partial(_words_causal, mask="left")),
    ("hf_llama_unmasked", "LlamaForCausalLM", LLAMA, partial(_words_causal, mask=None)),
    ("hf_qwen3", "Qwen3ForCausalLM", {**LLAMA, "head_dim": 16}, _words_causal),
    ("hf_gemma", "GemmaForCausalLM", {**LLAMA, "num_key_value_heads": 1, "head_dim": 8}, _words_causal),
    ("hf_t5_encoder", "T5EncoderModel", T5, _words),
)


def _family(name: str, make: Callable[[], nn.Module], inputs: Inputs, batch_dim: int = 0) -> Family:
    return Family(name, partial(_seeded, make), inputs, batch_dim)


_pre, _post = partial(_encoder, norm_first=True), partial(_encoder, norm_first=False)
_tokens_first = partial(_vectors, batch_dim=1)
FAMILIES: tuple[Family, ...] = (
    *(_family(f"timm_{n}", partial(_timm, n, **o), partial(_images, o.get("img_size", 64))) for n, o in TIMM.items()),
    _family("timm_mixer", _timm_mixer, partial(_images, 32)),
    _family("timm_efficientnet", partial(_timm_cnn, MBCONV, nn.SiLU), partial(_images, 32)),
    _family("timm_mobilenetv2", partial(_timm_cnn, INVERTED, nn.ReLU6), partial(_images, 32)),
    _family("timm_vgg11_bn", _vgg_bn, partial(_images, 64)),
    _family("torchvision_vit", _torchvision_vit, partial(_images, 32)),
    *(_family(n, partial(_hugging_face, model, **o), i) for n, model, o, i in HUGGING_FACE),
    _family("torch_pre_norm", partial(_pre, batch_first=True), _vectors),
    _family("torch_post_norm", partial(_post, batch_first=True), _vectors),
    _family("torch_post_norm_padded", partial(_post, batch_first=True), partial(_vectors, padded=True)),
    _family("torch_pre_norm_tokens_first", partial(_pre, batch_first=False), _tokens_first, 1),
    _family("torch_post_norm_tokens_first", partial(_post, batch_first=False), partial(_tokens_first, padded=True), 1),
    _family("torch_causal", partial(_pre, batch_first=True, kind=_Causal), _vectors),
    _family("batchnorm_encoder", lambda: nn.Sequential(_KoolLayer(), _KoolLayer()), _vectors),
    _family("tokens_first", lambda: nn.Sequential(_TokensFirstLayer(), _TokensFirstLayer()), _tokens_first, 1),
)
