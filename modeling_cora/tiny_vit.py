"""MobileSAM's image encoder: TinyViT-5M in the place of SAM's ViT, a hundredth of ViT-H's parameters.

Architecture: TinyViT (arXiv 2207.10666) as MobileSAM uses it (arXiv 2306.14289, `mobile_sam/modeling/tiny_vit_sam.py`):
two strided convolutions, a stage of inverted bottlenecks, three stages of window attention with a learned bias for each
offset, the last one at the same stride as the one before; then SAM's neck. Batch normalisation is folded into the
convolutions, so pretrained weights behave as in inference.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

WIDTHS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEADS = (2, 4, 5, 10)
WINDOWS = (7, 7, 14, 7)
STRIDES = (2, 2, 1)
"""Of the convolution between two stages; with the 4 of the stem, the encoder's stride is 16."""


class TinyVitBottleneck(nn.Module):
    """1x1 up, 3x3 depthwise, 1x1 down, around which the input is added: (B, C, h, w) -> the same."""

    def __init__(self, width: int, expansion: int = 4):
        super().__init__()
        hidden = expansion * width
        self.conv1 = nn.Conv2d(width, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.conv3 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(inner))


class TinyVitDownsample(nn.Module):
    """(B, C, h, w) -> (B, C', h / stride, w / stride)."""

    def __init__(self, width: int, new_width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, new_width, 1)
        self.conv2 = nn.Conv2d(new_width, new_width, 3, stride, padding=1, groups=new_width)
        self.conv3 = nn.Conv2d(new_width, new_width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class TinyVitAttention(nn.Module):
    """Attention inside of windows: (windows, side * side, C) -> the same."""

    def __init__(self, width: int, heads: int, side: int):
        super().__init__()
        self.heads, self.side = heads, side
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, side * side))

    def _bias(self) -> torch.Tensor:
        """(heads, n, n): one learned number for each distance in rows and columns."""
        place = torch.arange(self.side * self.side, device=self.attention_biases.device)
        row, column = place // self.side, place % self.side
        offset = (row[:, None] - row).abs() * self.side + (column[:, None] - column).abs()
        return self.attention_biases[:, offset]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows, places, width = x.shape
        # each head's query, key and value lie side by side
        qkv = self.qkv(self.norm(x)).view(windows, places, self.heads, -1).transpose(1, 2)
        query, key, value = qkv.chunk(3, -1)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=self._bias().to(query.dtype))
        return self.proj(attended.transpose(1, 2).reshape(windows, places, width))


class TinyVitMlp(nn.Module):
    def __init__(self, width: int, expansion: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, expansion * width)
        self.fc2 = nn.Linear(expansion * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class TinyVitBlock(nn.Module):
    """Window attention, a depthwise convolution across windows, an MLP: (B, C, h, w) -> the same."""

    def __init__(self, width: int, heads: int, side: int):
        super().__init__()
        self.attn = TinyVitAttention(width, heads, side)
        self.local_conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlp = TinyVitMlp(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, width, height, columns = x.shape
        side = self.attn.side
        padded = F.pad(x, (0, -columns % side, 0, -height % side))
        rows, across = padded.shape[2] // side, padded.shape[3] // side
        windows = padded.view(batch, width, rows, side, across, side).permute(0, 2, 4, 3, 5, 1)
        attended = self.attn(windows.reshape(-1, side * side, width))
        attended = attended.view(batch, rows, across, side, side, width).permute(0, 5, 1, 3, 2, 4)
        x = x + attended.reshape(padded.shape)[..., :height, :columns]
        x = self.local_conv(x).permute(0, 2, 3, 1)
        return (x + self.mlp(x)).permute(0, 3, 1, 2).contiguous()


class TinyVitEncoder(nn.Module):
    """(B, 3, S, S) -> `last_hidden_state` (B, C, S / 16, S / 16), C = SAM's prompt width.

    Trained at S = 1024; smaller inputs lose much (MobileSAM with boxes: mIoU .91, at 512 pixels .61).
    """

    def get_input_embeddings(self) -> nn.Module:
        """What sees the pixels; transformers asks for it where activations are checkpointed."""
        return self.stem[0]

    def __init__(self, output_channels: int = 256):
        super().__init__()
        first = WIDTHS[0]
        self.stem = nn.ModuleList([
            nn.Conv2d(3, first // 2, 3, 2, padding=1), nn.Conv2d(first // 2, first, 3, 2, padding=1)
        ])  # fmt: skip
        stages = [nn.Sequential(*(TinyVitBottleneck(first) for _ in range(DEPTHS[0])))]
        for width, depth, heads, side in zip(WIDTHS[1:], DEPTHS[1:], HEADS[1:], WINDOWS[1:], strict=True):
            stages.append(nn.Sequential(*(TinyVitBlock(width, heads, side) for _ in range(depth))))
        self.stages = nn.ModuleList(stages)
        self.downsamples = nn.ModuleList(
            TinyVitDownsample(*widths) for widths in zip(WIDTHS, WIDTHS[1:], STRIDES, strict=False)
        )
        self.neck = nn.ModuleDict({
            "conv1": nn.Conv2d(WIDTHS[-1], output_channels, 1, bias=False),
            "layer_norm1": nn.LayerNorm(output_channels, eps=1e-6),
            "conv2": nn.Conv2d(output_channels, output_channels, 3, padding=1, bias=False),
            "layer_norm2": nn.LayerNorm(output_channels, eps=1e-6),
        })  # fmt: skip

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        x = self.stem[1](F.gelu(self.stem[0](pixel_values)))
        for index in range(len(DEPTHS)):
            if index:
                x = self.downsamples[index - 1](x)
            x = self.stages[index](x)
        for number in ("1", "2"):
            x = self.neck[f"conv{number}"](x)
            x = self.neck[f"layer_norm{number}"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return BaseModelOutput(last_hidden_state=x)


__all__ = ["TinyVitEncoder"]
