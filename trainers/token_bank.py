"""The bank of eq. 8: recent `[SEG]` embeddings of labelled objects, by class."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch.nn.functional import one_hot

from datasets_scripts.files import write_bytes
from modeling_cora.losses import token_contrast

BANK_FILE = "token_bank.safetensors"


class TokenBank:
    """First in, first out, of detached fp32 embeddings on the CPU.

    Args:
        size: of the whole bank (GLUS: 512).
        balanced: every class keeps its own queue, of `size` divided by the number of classes (at least 1), so that
            frequent classes do not push rare ones out. False: one queue, as in GLUS.
        num_classes: of the data set.
    """

    def __init__(self, size: int, num_classes: int, balanced: bool = True):
        self.size, self.balanced = size, balanced
        self.per_class = max(1, size // num_classes)
        self.tokens = torch.zeros(0, 0)
        self.classes = torch.zeros(0, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.classes)

    def push(self, tokens: torch.Tensor, classes: torch.Tensor) -> None:
        """Adds embeddings (n, C) of the given classes (n,), the oldest first."""
        tokens = tokens.detach().float().cpu()
        if not len(tokens):
            return
        self.tokens = torch.cat([self.tokens, tokens]) if len(self) else tokens.clone()
        self.classes = torch.cat([self.classes, classes.cpu()])
        if self.balanced:
            _, of_class = self.classes.unique(return_inverse=True)
            from_here = one_hot(of_class).flip(0).cumsum(0).flip(0)  # of each class, how many here and later
            keep = from_here.gather(1, of_class[:, None])[:, 0] <= self.per_class
        else:
            keep = torch.arange(len(self)) >= len(self) - self.size
        self.tokens, self.classes = self.tokens[keep], self.classes[keep]

    def contrast(
        self,
        tokens: torch.Tensor,
        classes: torch.Tensor,
        temperature: float,
        negatives: int | None,
        generators: list[torch.Generator],
    ) -> tuple[torch.Tensor, int]:
        """Eq. 8 for each token; 0 for a token without a positive or a negative in the bank.

        Args:
            tokens: (n, C), of unlabelled objects.
            classes: (n,), by their pseudo-labels.
            negatives: drawn with replacement, beside one positive (GLUS: 128); None: every positive, every negative.
            generators: n, so that what is drawn for a token depends on the token alone.

        Returns:
            fp32 (n,), and for how many tokens the bank had nothing.
        """
        losses, skipped = [], 0
        bank = self.tokens.to(tokens.device)
        for token, class_id, generator in zip(tokens, classes.tolist(), generators, strict=True):
            same = self.classes == class_id
            near, far = same.nonzero()[:, 0], (~same).nonzero()[:, 0]
            if not len(near) or not len(far):
                losses.append(token.float().sum() * 0)
                skipped += 1
                continue
            if negatives is not None:
                near = near[torch.randint(len(near), (1,), generator=generator)]
                far = far[torch.randint(len(far), (negatives,), generator=generator)]
            losses.append(token_contrast(token[None], bank[near][None], bank[far][None], temperature)[0])
        return torch.stack(losses) if losses else tokens.new_zeros(0), skipped

    def save(self, folder: Path) -> None:
        """Writes the bank into a checkpoint."""
        tensors = {"tokens": self.tokens.contiguous(), "classes": self.classes.contiguous()}
        write_bytes(folder / BANK_FILE, save(tensors))

    def load(self, folder: Path) -> None:
        """Raises:
        FileNotFoundError: the checkpoint has no bank.
        """
        saved = load_file(folder / BANK_FILE)
        self.tokens, self.classes = saved["tokens"], saved["classes"]
