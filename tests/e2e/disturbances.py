"""What may happen to a service of the compose stack; each returns when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.e2e.containers import PROJECT, ComposeStack, docker


def kill(service: str) -> Callable[[ComposeStack], None]:
    """kill -9; the engine starts it again."""

    def disturb(stack: ComposeStack) -> None:
        before = stack.state(service)
        stack.kill_process(service)
        stack.wait_for_another_start(service, before)

    return disturb


def pause(service: str) -> Callable[[ComposeStack], None]:
    """Ten seconds in which it does nothing, and its connections stay open."""

    def disturb(stack: ComposeStack) -> None:
        stack.compose("pause", service)
        try:
            time.sleep(10)
        finally:
            stack.compose("unpause", service)

    return disturb


def cut_off(service: str) -> Callable[[ComposeStack], None]:
    """Five seconds without the network of the workers."""

    def disturb(stack: ComposeStack) -> None:
        network, container = f"{PROJECT}_workers", stack.container(service)
        docker("network", "disconnect", network, container)
        try:
            time.sleep(5)
        finally:
            docker("network", "connect", "--alias", service, network, container)

    return disturb


def replace(service: str) -> Callable[[ComposeStack], None]:
    """Another container in its place, with another address, as an upgrade does it."""

    def disturb(stack: ComposeStack) -> None:
        stack.compose("up", "--detach", "--wait", "--no-deps", "--force-recreate", service)

    return disturb
