"""CoraTrainer: what the stages share. A stage is a subclass that overrides `compute_loss`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import run_as_future as in_background
from torch.utils.data import Sampler, SequentialSampler
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from datasets_scripts.files import write_bytes
from modeling_cora.hub.push import publication
from modeling_cora.hub.run_folder import REPLACED, published, read_run
from publishing.hub import make_repository, upload

from .arguments import CoraTrainingArguments
from .checkpoints import WholeCheckpoints


class CoraTrainer(WholeCheckpoints):
    """Logs each loss term, gives each part its learning rate, and reads items in order (see `InstructionDataset`)."""

    args: CoraTrainingArguments
    # `compute_loss` returns means; without this they would be multiplied by accumulation steps.
    loss_is_scaled_for_ga = False
    uses_anchors = False
    """Whether the stage's conditional queries come with their anchors."""
    uses_unlabelled = False
    """Whether batches are pairs of labelled and unlabelled images, and the trainer takes `UnlabelledArguments`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._term_sums: dict[str, torch.Tensor] = {}
        self._term_counts: dict[str, int] = {}

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, and what `counts` says of them over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [self.counts(inputs) for inputs in batches]
        names = sorted(counts[0]) if counts else []
        totals = torch.tensor([sum(c[name] for c in counts) for name in names], dtype=torch.float64, device=device)
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
            terms: `lm_loss`, `bce_loss`, `dice_loss`, `iou_loss`, means over a micro-batch.
            counts: of the micro-batch.
            totals: `num_items_in_batch` of `compute_loss`.
        """
        terms = {
            name: self.global_mean(terms[name], counts[items], items, totals)
            for name, items in (("lm_loss", "tokens"), ("bce_loss", "masks"), ("dice_loss", "masks"),
                                ("iou_loss", "masks"))
        }  # fmt: skip
        self.record_terms(terms)
        return self.accelerator.unwrap_model(self.model).weighted_sum(terms)

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
            self._term_counts[name] = self._term_counts.get(name, 0) + 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, total in self._term_sums.items():
                logs[name] = round(self.accelerator.reduce(total / self._term_counts[name], "mean").item(), 5)
            self._term_sums, self._term_counts = {}, {}
        super().log(logs, start_time)

    # -- the Hub: transformers would send all of `output_dir`, training_args.bin too, which may hold the token ---------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in the base class.

        Raises:
            HubError: the Hub refuses it; told in one line, before the training begins.
        """
        if self.is_world_process_zero():
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            private = self.args.hub_private_repo if private is None else private
            self.hub_model_id = make_repository(name, "model", bool(private), token or self.args.hub_token)
            self.push_in_progress = None

    def create_model_card(self, license: str | None = None, **_: Any) -> None:
        """README.md of `output_dir`, as `python -m modeling_cora.hub push` writes it, from the files of the run.

        Args:
            license: of the weights; "apache-2.0" for a random start, else none where not given.
        """
        if self.is_world_process_zero():
            write_bytes(Path(self.args.output_dir) / "README.md", self._publication(license)["README.md"])

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in the base class; `kwargs` go to `create_model_card`.

        Raises:
            HubError: the Hub refuses it.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        return self._upload(commit_message or "", not blocking, token, revision, kwargs.get("license"))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads in the background what a checkpoint has of the model, by way of `output_dir`: the checkpoint itself
        may be deleted by then."""
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END or busy:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        for path in published(checkpoint_folder):
            shutil.copy(path, Path(self.args.output_dir) / path.name)
        self.push_in_progress = PushInProgress([self._upload(f"Training in progress, step {self.state.global_step}")])

    def _publication(self, license: str | None = None) -> dict[str, Any]:
        run = read_run(self.args.output_dir, only_its_own=True)
        run = replace(run, history=tuple(self.state.log_history))
        return publication(run, self.hub_model_id, license)

    def _upload(
        self,
        message: str,
        run_as_future: bool = True,
        token: str | None = None,
        revision: str | None = None,
        license: str | None = None,
    ) -> Any:
        call = partial(
            upload,
            self._publication(license),
            self.hub_model_id,
            "model",
            message,
            REPLACED,
            token or self.args.hub_token,
            f"; the run is whole, python -m modeling_cora.hub push {self.args.output_dir} {self.hub_model_id} goes on",
            revision=revision or self.args.hub_revision,
        )
        # all of it in the background: a network that fails for a moment must not end a training
        return in_background(call) if run_as_future else call()
