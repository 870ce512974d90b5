"""CoraTrainer: what the stages share. A stage is a subclass that overrides `compute_loss`."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from datasets_scripts.command_line import UsageError
from modeling_cora.losses import LOSS_TERMS

from .arguments import CoraTrainingArguments
from .base_trainer import SHARDED_GRADIENTS, BaseTrainer, gradients_are_sharded
from .hub_uploads import HubUploads


class CoraTrainer(HubUploads, BaseTrainer):
    """Eq. 5 as means over an optimizer step, a learning rate for each part, uploads of what others need."""

    args: CoraTrainingArguments
    uses_anchors = False
    """Whether the stage's conditional queries come with their anchors."""
    uses_unlabelled = False
    """Whether batches are pairs of labelled and unlabelled images, and the trainer takes `UnlabelledArguments`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.accelerator.mixed_precision == "no":
            # frozen parts may be stored in bfloat16, trained ones are fp32, and no autocast brings them together
            self.model.float()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, and what `counts` says of them over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [self.counts(inputs) for inputs in batches]
        names = sorted(counts[0]) if counts else []
        totals = torch.tensor([sum(c[name] for c in counts) for name in names], dtype=torch.long, device=device)
        totals = self.accelerator.reduce(totals, "sum") if names else totals
        return batches, dict(zip(names, totals.tolist(), strict=True))

    def counts(self, inputs: dict) -> dict[str, int]:
        """How many `tokens` (of answers) and `masks` a micro-batch has; what its terms are means over."""
        return {
            "tokens": int((inputs["labels"] != -100).sum()),
            "masks": sum(len(masks) for masks in inputs["mask_labels"]),
        }

    def labelled_loss(
        self, terms: Mapping[str, torch.Tensor], counts: Mapping[str, int], totals: Mapping[str, float] | None
    ) -> torch.Tensor:
        """Eq. 5: the weighted sum of the loss terms on labelled masks, each of them logged.

        Args:
            terms: those of `LOSS_TERMS`, means over a micro-batch.
            counts: of the micro-batch.
            totals: `num_items_in_batch` of `compute_loss`.
        """
        terms = {n: self.global_mean(terms[n], counts[items], items, totals) for n, items in LOSS_TERMS.items()}
        self.record_terms(terms)
        loss = self.accelerator.unwrap_model(self.model).weighted_sum(terms)
        if self.uses_anchors and self.is_deepspeed_enabled:
            # DeepSpeed sums up what gradients there are, so every process needs one of each weight: of the anchors'
            # encoder, too, where its images have none
            loss = loss + 0.0 * sum(p.sum() for p in self.model.parameters() if p.requires_grad)
        return loss

    def global_mean(
        self, term: torch.Tensor, count: int, name: str, totals: Mapping[str, float] | None
    ) -> torch.Tensor:
        """Scales a micro-batch's mean over `count` items so that the mean over micro-batches and processes is the mean
        over all items of the optimizer step.

        A mean of means would give a mask more weight the fewer others share its micro-batch; so two processes would
        not equal one.

        Args:
            name: of the items in `counts`.
            totals: of `get_batch_samples`; None (outside of training) leaves the term as it is.
        """
        if totals is None:
            return term
        parts = self.current_gradient_accumulation_steps * self.accelerator.num_processes
        return term * (count * parts / max(1.0, totals[name]))

    def create_optimizer(self, model=None):
        """AdamW over the trained parameters: the language side, SAM, and the projection, each at its own rate."""
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(self.parameter_groups(model), **options)
        return self.optimizer

    def parameter_groups(self, model: torch.nn.Module) -> list[dict]:
        own = {"sam.": self.args.sam_learning_rate, "seg_projector.": self.args.projector_learning_rate, "": None}
        # a rate of 0 is one, too
        rates = {part: self.args.learning_rate if rate is None else rate for part, rate in own.items()}
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                rate = next(rate for part, rate in rates.items() if part in name)
                groups.setdefault((rate, self.args.weight_decay * (name in decayed)), []).append(parameter)
        return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def refuse_sharded_anchors(trainer: CoraTrainer) -> None:
    """Anchors take a second pass of the vision tower, which a process whose micro-batch has none leaves out. With
    sharded weights the others would wait for it for ever. With sharded gradients (ZeRO-2) these come in another order
    there, and those of different weights are summed up (of two processes: a norm of 28.3 instead of 31.6).

    Raises:
        UsageError: a stage with anchors under FSDP, or DeepSpeed's ZeRO-2 or ZeRO-3.
    """
    if trainer.uses_anchors and gradients_are_sharded(trainer):
        raise UsageError(f"distributed_type: stages 2 and 3 do not run with {SHARDED_GRADIENTS}")


def freeze_idle_anchors(trainer: CoraTrainer) -> None:
    """With sharded gradients, where no stage shows anchors, their encoder does not train: a weight that never gets a
    gradient has no optimizer state, and no checkpoint can be gone on from without it."""
    if gradients_are_sharded(trainer):
        for name, parameter in trainer.model.named_parameters():
            if "anchor_encoder." in name:
                parameter.requires_grad_(False)
