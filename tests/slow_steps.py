"""A callback that leaves time to kill a run between two of its steps."""

import time

from lightning.pytorch import Callback


class SlowSteps(Callback):
    """Wait after every training step."""

    def on_train_batch_end(self, *args, **kwargs) -> None:
        time.sleep(1.5)
