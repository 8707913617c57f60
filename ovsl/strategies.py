"""Strategies of the trainer beside Lightning's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from ovsl.errors import InputError
from ovsl.runs.sharded import spread_like, whole_on_host

__all__ = ["FullyShardedStrategy"]

EVALUATED_IN = (
    "on_validation_start",
    "on_test_start",
    "on_predict_start",
    "validation_step",
    "test_step",
    "predict_step",
)
"""Where evaluation uses weights."""


class FullyShardedStrategy(DDPStrategy):
    """Keep of what trains, of its gradients and of the optimiser's state a part on each process (FSDP2).

    Weights are gathered for a step and freed after it; the frozen CLIP is whole on every process, since words are
    embedded outside of steps. Checkpoints are those of any other strategy, written by the first process: a run may go
    on with another number of processes, or without sharding. Precision and gradient clipping are the trainer's.

    Works for every method whose training uses its weights in the training step alone, as all of ovsl do.

    Args:
        **options: Of Lightning's `DDPStrategy`, such as `timeout` and `process_group_backend`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def configure_ddp(self) -> None:
        """Shard what trains, in place."""
        module = self.lightning_module
        assert module is not None
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not trained:
            raise InputError("There is nothing to shard, since nothing trains: take trainer.strategy ddp.")
        for parameter in (*module.parameters(), *module.buffers()):
            distributed.broadcast(parameter.data, 0)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        own = type(module)
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=False,
            ignored_params={p for p in module.parameters() if not p.requires_grad},
        )
        for name in ("__name__", "__qualname__", "__module__"):
            # Checkpoints and tables call a method by its class.
            setattr(type(module), name, getattr(own, name))
        register_fsdp_forward_method(module, "training_step")
        for name in EVALUATED_IN:
            _gather_during(module, name)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Give all weights to the first process, and nothing to the others."""
        assert self.lightning_module is not None
        state = whole_on_host(dict(self.lightning_module.state_dict()))
        return state if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Give all of the optimiser's state to the first process, and nothing to the others."""
        state = whole_on_host(super().optimizer_state(optimizer))
        return state if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take each process's part of the state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            state = {
                number: {key: spread_like(value, parameter) for key, value in saved["state"][number].items()}
                for number, parameter in zip(numbers, parameters, strict=True)
                if number in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})


def _gather_during(module: nn.Module, name: str) -> None:
    """Let a method find whole weights, outside of training."""
    method = getattr(module, name)

    @wraps(method)
    def gathered(*arguments: Any, **options: Any) -> Any:
        assert isinstance(module, FSDPModule)
        module.unshard()
        try:
            return method(*arguments, **options)
        finally:
            module.reshard()

    setattr(module, name, gathered)
