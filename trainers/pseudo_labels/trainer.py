"""One trainer for all methods: it turns a method's terms into a loss that does not depend on how many processes share
the batch, and keeps the teacher where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from datasets_scripts.command_line import UsageError
from datasets_scripts.records import DataError, Scene, SceneSet
from trainers.base_trainer import SHARDED_WEIGHTS, BaseTrainer, weights_are_sharded

from .arguments import SemiSupervisedTrainingArguments
from .batch_norm import synchronise_batch_norm
from .dataset import SemiSupervisedDataset, collate
from .evaluation import evaluate_scenes, scores
from .losses import Mean, weighted_sum
from .methods import Method, Step
from .methods.supervised import Supervised
from .segmenter import SemanticSegmenter

TEACHER = "teacher"


class SemiSupervisedSegmentationTrainer(BaseTrainer):
    """Trains a segmenter by a method.

    Every mean is over the batch of all processes, BatchNorm too, so two processes equal one with twice the batch. With
    gradient accumulation the means are those of each micro-batch, as in the public codes.
    """

    args: SemiSupervisedTrainingArguments

    def __init__(
        self,
        segmenter: SemanticSegmenter,
        method: Method,
        args: SemiSupervisedTrainingArguments,
        train_dataset: SemiSupervisedDataset,
        scene_set: SceneSet,
        val: Sequence[Scene] = (),
    ):
        if args.world_size > 1:
            segmenter = synchronise_batch_norm(segmenter, args.device)
        super().__init__(
            model=segmenter,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=list(val) or None,
            data_collator=collate,
            callbacks=[AfterStep(method)],
        )
        if weights_are_sharded(self):  # a method calls the segmenter itself too, not only what is wrapped around it
            raise UsageError(f"distributed_type: segmenters do not run with {SHARDED_WEIGHTS}")
        self.method, self.scene_set, self.val = method, scene_set, tuple(val)
        self.burn_in = Supervised(method.arguments)
        for part in (method.teacher, getattr(method, "clip", None)):
            if part is not None:
                part.to(args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        processes = self.accelerator.num_processes
        segmenter = self.accelerator.unwrap_model(model)
        step = Step(model, segmenter, inputs, self.accelerator.gather if processes > 1 else None, processes)
        # in the burn-in the data set gives labelled images alone
        method = self.burn_in if self.method.views.unlabelled and "weak" not in inputs else self.method
        # accelerate's own reaches `forward` alone, not the passes whose answers are pseudo-labels
        with self.accelerator.autocast():
            terms = method.terms(step)
        terms, values = self.global_means(terms)
        self.record_terms(values)
        loss = weighted_sum(terms, method.weights(self.state.global_step / self.state.max_steps))
        return (loss, {"terms": terms}) if return_outputs else loss

    def global_means(self, means: dict[str, Mean]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Terms of this process, of which the mean over processes is the mean over all pixels of the batch; and these
        means."""
        totals = torch.stack([mean.total.detach().double() for mean in means.values()])
        counts = torch.stack([mean.count.detach().double() for mean in means.values()])
        totals, counts = self.accelerator.reduce(torch.stack([totals, counts]), "sum")
        processes, counts = self.accelerator.num_processes, counts.clamp(min=1)
        terms = {
            name: mean.total * (processes / count).to(mean.total)
            for (name, mean), count in zip(means.items(), counts, strict=True)
        }
        return terms, dict(zip(means, totals / counts, strict=True))

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """mIoU and pixel accuracy of what predicts in the end, on val; every process gets them."""
        segmenter = self.method.trained(self.accelerator.unwrap_model(self.model))
        own = self.val[self.args.process_index :: self.args.world_size]
        matrix = evaluate_scenes(
            segmenter,
            self.scene_set,
            own,
            self.args.window_stride,
            progress=self.is_world_process_zero() and not self.args.disable_tqdm,
        )
        matrix = self.accelerator.reduce(torch.from_numpy(matrix).to(self.args.device), "sum").cpu().numpy()
        self.val_scores = scores(matrix, self.scene_set.classes)
        metrics = {f"{metric_key_prefix}_{name}": self.val_scores[name] for name in ("miou", "accuracy")}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            groups = self.parameter_groups(self.model if model is None else model)
            if self.args.optimizer == "sgd":
                self.optimizer = torch.optim.SGD(groups, lr=self.args.learning_rate, momentum=self.args.momentum)
            else:
                betas = (self.args.adam_beta1, self.args.adam_beta2)
                self.optimizer = torch.optim.AdamW(
                    groups, lr=self.args.learning_rate, betas=betas, eps=self.args.adam_epsilon
                )
        return self.optimizer

    def parameter_groups(self, model: torch.nn.Module) -> list[dict]:
        """Backbone and decoder, each at its learning rate. Norms and biases decay too, as in all three public codes:
        SemiVL's configuration names norms, but mmcv finds the longer `backbone` and `head` first."""
        groups: dict[float, list[torch.nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                in_backbone = "network.backbone." in name or "network.skip_encoder." in name
                rate = self.args.learning_rate * (1.0 if in_backbone else self.args.head_learning_rate_multiplier)
                groups.setdefault(rate, []).append(parameter)
        return [{"params": own, "lr": rate, "weight_decay": self.args.weight_decay} for rate, own in groups.items()]

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.method.teacher is not None:
            self.method.teacher.save_pretrained(Path(output_dir or self.args.output_dir) / TEACHER)

    def load_more(self, checkpoint):
        if self.method.teacher is not None:
            try:
                weights = load_file(checkpoint / TEACHER / "model.safetensors")
            except FileNotFoundError:
                raise DataError(f"{checkpoint}: has no {TEACHER}; is it of another method?") from None
            self.method.teacher.load_state_dict(weights)


class AfterStep(TrainerCallback):
    """Lets the method move its teacher on, before a checkpoint is written."""

    def __init__(self, method: Method):
        self.method = method

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.method.after_step(getattr(model, "module", model), state.global_step - 1)
