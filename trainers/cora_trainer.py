"""CoraTrainer: what the stages share. A stage is a subclass that overrides `compute_loss`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.utils import ModelOutput

from .arguments import CoraTrainingArguments


class CoraTrainer(Trainer):
    """Logs each loss term, gives each part its learning rate, and reads items in order (see `InstructionDataset`)."""

    args: CoraTrainingArguments
    # `compute_loss` returns means; without this they would be multiplied by accumulation steps.
    loss_is_scaled_for_ga = False
    uses_anchors = False
    """Whether the stage's conditional queries come with their anchors."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._term_sums: dict[str, torch.Tensor] = {}
        self._term_count = 0

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, and their (answer tokens, masks) over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.stack([_counts(inputs) for inputs in batches]).sum(0) if batches else torch.zeros(2)
        return batches, self.accelerator.reduce(counts.to(device), "sum")

    def labelled_loss(
        self, model: torch.nn.Module, inputs: dict, totals: torch.Tensor | None
    ) -> tuple[torch.Tensor, ModelOutput]:
        """Eq. 5: the weighted sum of the loss terms on labelled masks, each of them logged.

        Args:
            totals: `num_items_in_batch` of `compute_loss`.
        """
        output = model(**inputs)
        terms = {name: output[name] for name in ("lm_loss", "bce_loss", "dice_loss", "iou_loss")}
        terms = self.global_means(terms, inputs, totals)
        self.record_terms(terms)
        return self.accelerator.unwrap_model(model).weighted_sum(terms), output

    def global_means(
        self, terms: Mapping[str, torch.Tensor | None], inputs: dict, totals: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Scales the mean terms of a micro-batch so that their mean over micro-batches and processes is the mean over
        all tokens (`lm_loss`) or masks (the others) of the optimizer step.

        A mean of means would give a mask more weight the fewer others share its micro-batch; so two processes would
        not equal one.

        Args:
            totals: of `get_batch_samples`; None (outside of training) leaves the terms as they are.
        """
        if totals is None:
            shares = torch.ones(2)
        else:
            parts = self.current_gradient_accumulation_steps * self.accelerator.num_processes
            shares = _counts(inputs).to(totals) * parts / totals.clamp(min=1)
        return {
            name: term * shares[0 if name == "lm_loss" else 1].to(term)
            for name, term in terms.items()
            if term is not None
        }

    def create_optimizer(self, model=None):
        """AdamW over the trained parameters: the language side, SAM, and the projection, each at its own rate."""
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(self.parameter_groups(model), **options)
        return self.optimizer

    def parameter_groups(self, model: torch.nn.Module) -> list[dict]:
        rates = {
            "sam.": self.args.sam_learning_rate or self.args.learning_rate,
            "seg_projector.": self.args.projector_learning_rate or self.args.learning_rate,
            "": self.args.learning_rate,
        }
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                rate = next(rate for part, rate in rates.items() if part in name)
                groups.setdefault((rate, self.args.weight_decay * (name in decayed)), []).append(parameter)
        return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]

    def record_terms(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Sums loss terms until the next log line, which shows their means over steps and processes."""
        for name, term in terms.items():
            self._term_sums[name] = self._term_sums.get(name, 0.0) + term.detach().float()
        self._term_count += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._term_count:
            for name, total in self._term_sums.items():
                logs[name] = round(self.accelerator.reduce(total / self._term_count, "mean").item(), 5)
            self._term_sums, self._term_count = {}, 0
        super().log(logs, start_time)


def _counts(inputs: dict) -> torch.Tensor:
    """(answer tokens, masks) of a collated batch."""
    masks = sum(len(masks) for masks in inputs["mask_labels"])
    return torch.tensor([(inputs["labels"] != -100).sum().item(), masks], dtype=torch.float64)
