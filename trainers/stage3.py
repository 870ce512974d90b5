"""Stage 3: labelled and unlabelled images together (eq. 9).

    accelerate launch trainers/stage3.py RECIPE --model runs/stage2 --data DIR --pseudo_labels DIR
        --consistency_weights DIR --output_dir DIR

    L = L^l + sigma * (L_seg^u + L_t^u)

L^l is stage 1's loss. L_seg^u compares answers on unlabelled images with pseudo-labels, pixel by pixel as much as the
model's answers to equivalent queries agree (eqs. 6, 7). L_t^u draws their `[SEG]` embeddings towards those of labelled
objects of the same class (eq. 8).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # run as a file: `import evaluate` would find trainers/evaluate.py in place of the library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate.utils import gather_object
from transformers.utils import ModelOutput

from datasets_scripts.command_line import one_line_errors
from datasets_scripts.records import DataError
from modeling_cora.consistency import consistency_weight, mask_variance
from modeling_cora.image_layouts import VISION_INPUTS, select_images
from modeling_cora.losses import mask_losses
from modeling_cora.masks import resize_mask_logits
from trainers.arguments import UnlabelledArguments
from trainers.cora_trainer import CoraTrainer
from trainers.stage import train_stage
from trainers.token_bank import TokenBank


class Stage3Trainer(CoraTrainer):
    """Eq. 9. Batches come from `PairedCollator`.

    Args:
        unlabelled: the options.
        num_classes: of the data set.
    """

    uses_anchors = True
    uses_unlabelled = True

    def __init__(self, *args, unlabelled: UnlabelledArguments, num_classes: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.unlabelled = unlabelled
        self.bank = TokenBank(unlabelled.bank_size, num_classes, unlabelled.bank_balanced)
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def counts(self, inputs: dict) -> dict[str, int]:
        masks = [len(masks) for masks in inputs["masks"]]
        return {
            "tokens": int((inputs["inputs"]["labels"] != -100).sum()),
            "masks": sum(masks[: inputs["labelled"]]),
            "unlabelled": sum(masks[inputs["labelled"] :]),
        }

    def _prepare_inputs(self, inputs: dict) -> dict:
        """Weights stay fp32: DeepSpeed casts what floats to the model's type, and bf16 knows nothing between .996 and
        1, where most of them are."""
        prepared = super()._prepare_inputs({**inputs, "weights": None})
        if inputs["weights"] is not None:
            prepared["weights"] = [weights.to(self.args.device) for weights in inputs["weights"]]
        return prepared

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        own, counts = self.accelerator.unwrap_model(model), self.counts(inputs)
        output = model(**inputs["inputs"])
        weights = self._weights(own, inputs, output)
        labelled, unlabelled = _split(output, inputs["labelled"])
        masks, sizes = inputs["masks"], inputs["inputs"]["reshaped_input_sizes"]
        first = inputs["labelled"]
        terms = mask_losses(own.config, labelled, masks[:first], sizes[:first])
        loss = self.labelled_loss({**output, **terms}, counts, num_items_in_batch)
        of_labelled = labelled["seg_embeddings"].detach().float().cpu()
        aligned, classes = (one[: len(of_labelled)].cpu() for one in (self.aligned(inputs), inputs["classes"]))
        self._pending.append((of_labelled[aligned], classes[aligned]))
        if counts["unlabelled"]:
            reduction = self.unlabelled.pixel_reduction
            pixels = mask_losses(own.config, unlabelled, masks[first:], sizes[first:], weights, reduction)
            terms = {f"pseudo_{name}": pixels[name] for name in ("bce_loss", "dice_loss")}
            if self.unlabelled.alignment:
                terms["contrast_loss"] = self._contrast(unlabelled["seg_embeddings"], inputs)
            count = counts["unlabelled"]
            terms = {k: self.global_mean(v, count, "unlabelled", num_items_in_batch) for k, v in terms.items()}
            self.record_terms(terms)
            contrast = terms.pop("contrast_loss", 0.0)
            loss = loss + self.unlabelled.unlabelled_weight * sum(terms.values())
            loss = loss + self.unlabelled.contrast_weight * contrast
        return (loss, output) if return_outputs else loss

    def _contrast(self, embeddings: torch.Tensor, inputs: dict) -> torch.Tensor:
        """Eq. 8, the mean over unlabelled embeddings; those for which the bank has nothing count 0, as do those that
        `aligned_queries` leaves out."""
        aligned, classes = (one[-len(embeddings) :] for one in (self.aligned(inputs), inputs["classes"]))
        numbers = [number for number, chosen in zip(inputs["numbers"], aligned.tolist(), strict=True) if chosen]
        losses, skipped = self.bank.contrast(
            embeddings[aligned],
            classes[aligned],
            self.unlabelled.alignment_temperature,
            self.unlabelled.bank_negatives,
            [self._generator(number) for number in numbers],
        )
        self.record_terms({"contrast_skipped": losses.new_tensor(float(skipped))})
        return losses.sum() / len(embeddings)

    def aligned(self, inputs: dict) -> torch.Tensor:
        """Which masks' embeddings eq. 8 takes: bool (N,)."""
        whole = inputs["whole"]
        return whole if self.unlabelled.aligned_queries == "classes" else torch.ones_like(whole)

    def _weights(self, model: torch.nn.Module, inputs: dict, output: ModelOutput) -> list[torch.Tensor] | None:
        """lambda of eq. 6 for each mask of each unlabelled image; None for 1 everywhere."""
        if self.unlabelled.consistency == "none" or len(inputs["masks"]) == inputs["labelled"]:
            return None
        weights = inputs["weights"]
        if self.unlabelled.consistency == "online":
            options = self.unlabelled
            variances = self._variances(model, inputs, output.sam_image_embeddings)
            weights = [consistency_weight(v, options.weight_kind, options.weight_temperature) for v in variances]
        self.record_terms({"mean_weight": torch.cat([w.flatten() for w in weights]).mean()})
        return weights

    @torch.no_grad()
    def _variances(
        self, model: torch.nn.Module, inputs: dict, sam_image_embeddings: torch.Tensor
    ) -> list[torch.Tensor]:
        """Eq. 6 by the current weights, for each unlabelled image (n, H, W); SAM's encoder has seen the images."""
        first, masks = inputs["labelled"], inputs["masks"][inputs["labelled"] :]
        vision = {name: inputs["inputs"][name] for name in VISION_INPUTS if name in inputs["inputs"]}
        chosen = torch.arange(first, first + len(masks), device=sam_image_embeddings.device)
        training = model.training
        model.eval()  # without dropout: what differs shall be the words
        answers = model(
            **inputs["rephrasings"], **select_images(vision, chosen), sam_image_embeddings=sam_image_embeddings[first:]
        )
        model.train(training)
        variances = []
        input_size = model.config.sam_config.vision_config.image_size
        for image, of_image in enumerate(masks):
            logits = answers.pred_masks[answers.seg_batch_index == image]
            reshaped = inputs["inputs"]["reshaped_input_sizes"][first + image].tolist()
            logits = resize_mask_logits(logits, input_size, reshaped, of_image.shape[-2:])
            variances.append(mask_variance(logits.unflatten(0, (len(of_image), -1)).transpose(0, 1)))
        return variances

    def _generator(self, number: tuple[int, int]) -> torch.Generator:
        """Of one mask's own random numbers: the same with any number of processes."""
        generator = torch.Generator()
        item, place = number
        generator.manual_seed((self.args.seed * 1_000_003 + item) * 1_009 + place)
        return generator

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        # once for each optimizer step: the bank is the same for all of its micro-batches
        self._fill_bank()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _fill_bank(self) -> None:
        """Labelled embeddings of the last step, of all processes, in the order of the data."""
        steps = gather_object([self._pending]) if self.accelerator.num_processes > 1 else [self._pending]
        for micro_batch in zip(*steps, strict=True):
            for tokens, classes in micro_batch:
                self.bank.push(tokens, classes)
        self._pending = []

    def _save_checkpoint(self, model, trial):
        self._fill_bank()
        if self.args.should_save:  # on each node where there is no shared disk; all processes have the same bank
            # first: a checkpoint that was cut short is missing its end, not its bank
            self.bank.save(Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def load_more(self, checkpoint):
        try:
            self.bank.load(checkpoint)
        except FileNotFoundError:
            raise DataError(f"{checkpoint}: has no token bank; is it of stage 3?") from None


def _split(output: ModelOutput, labelled: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What concerns the masks of the first `labelled` images of a batch, and of the others."""
    names = ("pred_masks", "iou_scores", "seg_embeddings", "seg_batch_index")
    first = output.seg_batch_index < labelled
    parts = [{name: output[name][where] for name in names} for where in (first, ~first)]
    parts[1]["seg_batch_index"] = parts[1]["seg_batch_index"] - labelled
    return parts[0], parts[1]


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    train_stage(Stage3Trainer, argv)


if __name__ == "__main__":
    main()
