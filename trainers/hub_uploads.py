"""What a training sends to the Hub: the run's files and the card made of them, as `python -m modeling_cora.hub push`.

transformers would send all of `output_dir`: training_args.bin too, which names places of this machine and may hold the
token.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import run_as_future as in_background
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from datasets_scripts.files import write_bytes
from modeling_cora.hub.push import publication
from modeling_cora.hub.run_folder import REPLACED, published, read_run
from publishing.hub import make_repository, upload


class HubUploads(Trainer):
    """A Trainer whose `push_to_hub` uploads what others need of a run, and nothing else."""

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

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        license: str | None = None,
    ) -> Any:
        """As in the base class.

        Args:
            license: of the weights; "apache-2.0" for a random start, else none where not given.

        Raises:
            HubError: the Hub refuses it.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return self._upload(commit_message or "", not blocking, token, revision, license)

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

    def _upload(
        self,
        message: str,
        run_as_future: bool = True,
        token: str | None = None,
        revision: str | None = None,
        license: str | None = None,
    ) -> Any:
        run = read_run(self.args.output_dir, only_its_own=True)
        files = publication(replace(run, history=tuple(self.state.log_history)), self.hub_model_id, license)
        write_bytes(Path(self.args.output_dir) / "README.md", files["README.md"])
        call = partial(
            upload,
            files,
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
