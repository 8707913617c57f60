"""Writing checkpoints beside training: the copy to host memory is all that training waits for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor


class BackgroundWriter:
    """Writes in a thread, one file at a time.

    A kill in the middle of a write leaves the files that were there before, as `ovsl.runs.files.whole_file` does.
    """

    def __init__(self) -> None:
        # Made when it is needed: a process that is forked before has no use for it.
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Begin to write, after the write before has ended.

        Args:
            write: Called in the thread; must use nothing that training changes.

        Raises:
            Exception: What the write before ended with.
        """
        self.wait()
        self._pending = self._begin(write)

    def then(self, action: Callable[[], None]) -> None:
        """Do something when the write that was submitted last is on the disk, and only if it is.

        Args:
            action: Called in the thread.
        """
        before = self._pending

        def follow() -> None:
            if before is not None:
                before.result()
            action()

        self._pending = self._begin(follow)

    def check(self) -> None:
        """Learn of a write that has ended; returns at once.

        Raises:
            Exception: What it ended with.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until everything that was submitted is done.

        Raises:
            Exception: What it ended with.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _begin(self, action: Callable[[], None]) -> Future[None]:
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="checkpoint writer")
        return self._thread.submit(action)


def copy_to_host(state: Any) -> Any:
    """Copy what a checkpoint holds, so that training may go on to change it.

    Args:
        state: Nested dictionaries, lists and tuples of tensors and plain values.

    Returns:
        The same with tensors of its own in host memory; tensors that were one are one.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}

    def copy(node: Any) -> Any:
        if isinstance(node, Tensor):
            place = (node.device, node.data_ptr(), node.dtype, node.shape, node.stride())
            if place not in copies or not node.numel():
                copies[place] = node.detach().to("cpu", copy=True)
            return copies[place]
        if isinstance(node, Mapping):
            return {key: copy(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(map(copy, node))
        return node

    return copy(state)
